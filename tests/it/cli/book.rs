//! Checks the book and the README: the program accepts every command in them, and every link has a target.

use std::fs;

use clap::Parser;
use nnunet_dist::cli::Cli;

use crate::pages::{Block, pages, shell_blocks};

/// The lines of all shell blocks, with lines that end in a backslash joined.
fn shell_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut continued = String::new();
    for (_, line) in shell_blocks(text).into_iter().flat_map(|block| block.lines) {
        match line.trim().strip_suffix('\\') {
            Some(begun) => continued += begun,
            None => lines.push(std::mem::take(&mut continued) + line.trim()),
        }
    }
    lines
}

/// Splits a line into words as a shell does, up to a comment. The variable of a `for` loop is replaced by one possible
/// value.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    // For example `$fold;` of a loop.
    let value = |word: String| match word.strip_prefix('$') {
        Some(name) => "0".to_owned() + if name.ends_with(';') { ";" } else { "" },
        None => word,
    };
    words.into_iter().map(value).collect()
}

/// The commands of this project in a line: after a launcher, or several separated by `;`.
fn commands(line: &str) -> Vec<Vec<String>> {
    let words = words(line);
    let parts = words.split(|word| [";", "do", "&&", "|"].contains(&word.as_str()));
    let ours = parts.filter_map(|part| {
        // The environment module has the same name as the program.
        let from = part.iter().position(|word| word == "nnunet-dist").filter(|_| part[0] != "module")?;
        let mut command = Vec::new();
        for word in part[from..].iter().take_while(|word| *word != ">") {
            command.push(word.trim_end_matches(';').to_owned());
            if word.ends_with(';') {
                break;
            }
        }
        Some(command)
    });
    ours.collect()
}

#[test]
fn the_program_accepts_every_command() {
    let mut count = 0;
    for page in pages() {
        for line in shell_lines(&fs::read_to_string(&page).unwrap()) {
            for command in commands(&line) {
                count += 1;
                if let Err(error) = Cli::try_parse_from(&command) {
                    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
                    let is_fine = [DisplayHelp, DisplayVersion].contains(&error.kind());
                    assert!(is_fine, "{}: {line}\n{error}", page.display());
                }
            }
        }
    }
    assert!(count > 50, "only {count} commands were found");
}

#[test]
fn every_link_within_the_project_leads_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let file = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            assert!(file.exists(), "{}: no {target}", page.display());
            if !anchor.is_empty() && file.extension().is_some_and(|ending| ending == "md") {
                let text = fs::read_to_string(&file).unwrap();
                let anchors = text.lines().filter(|line| line.starts_with('#')).map(anchor_of);
                assert!(anchors.into_iter().any(|each| each == anchor), "{}: no {target}", page.display());
            }
        }
    }
}

/// The anchor that GitHub makes of a heading.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

#[test]
fn commands_are_found_in_lines_of_a_shell() {
    let line = "for fold in 0 1; do mpirun -np 2 nnunet-dist train -w 'a b' -f $fold; done   # both";
    assert_eq!(commands(line), [["nnunet-dist", "train", "-w", "a b", "-f", "0"]]);
    assert_eq!(commands("sbatch slurm/train.sbatch"), Vec::<Vec<String>>::new());
    assert_eq!(shell_lines("```sh\na \\\n  b\n```\nc\n```text\nd\n```"), ["a b"]);
}

#[test]
fn a_block_may_have_a_reason_for_not_being_run() {
    let page = "<!-- docs-test: needs a GPU -->\n\n```sh\na\n```\n\n1. text\n\n   ```sh\n   b\n     c\n   ```\n";
    let block = |lines: &[(usize, &str)], skipped: Option<&str>| Block {
        lines: lines.iter().map(|(number, line)| (*number, (*line).to_owned())).collect(),
        skipped: skipped.map(str::to_owned),
    };
    assert_eq!(shell_blocks(page), [block(&[(4, "a")], Some("needs a GPU")), block(&[(10, "b"), (11, "  c")], None)]);
}
