# A preprocessor of mdBook: of links to files of the repository beside the book only the words are left.
.[1] | walk(
  if type == "string" then
    gsub("\\[(?<words>[^]]+)\\]\\((\\.\\./)+(src|tests|slurm|configs|launcher|benches|README\\.md)[^)]*\\)"; .words)
  else . end)
