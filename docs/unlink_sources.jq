# mdBook preprocessor: replaces links to repository files outside the book by their text.
.[1] | walk(
  if type == "string" then
    gsub("\\[(?<words>[^]]+)\\]\\((\\.\\./)+(src|tests|slurm|configs|launcher|benches|[A-Z]+\\.md)[^)]*\\)"; .words)
  else . end)
