//! Manual pages: one per command, with the sections that `man` and `apropos` expect.

use std::fs;

use clap::{Command, CommandFactory};
use nnunet_dist::cli::Cli;

use super::cli::nnunet_dist;

/// File names of the pages of a command and its subcommands.
fn names(command: &Command, names: &mut Vec<String>) {
    names.push(format!("{}.1", command.get_display_name().unwrap_or(command.get_name())));
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.filter(|command| command.get_name() != "help").for_each(|command| self::names(command, names));
}

#[test]
fn every_command_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    nnunet_dist(["man", "--output"]).arg(folder.path().join("man1")).assert().success();
    let files = fs::read_dir(folder.path().join("man1")).unwrap();
    let mut found: Vec<_> = files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let (mut cli, mut wanted) = (Cli::command(), Vec::new());
    cli.build();
    names(&cli, &mut wanted);
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    assert!(wanted.contains(&"nnunet-dist-bench-allreduce.1".into()) && !wanted.contains(&"nnunet-dist-man.1".into()));

    for name in wanted {
        let page = fs::read_to_string(folder.path().join("man1").join(&name)).unwrap();
        let lines: Vec<&str> = page.lines().collect();
        // `apropos` reads the line below NAME.
        let title = name.trim_end_matches(".1").replace('-', "\\-");
        let line = lines.iter().position(|line| *line == ".SH NAME").map(|heading| lines[heading + 1]);
        assert!(line.is_some_and(|line| line.starts_with(&format!("{title} \\- "))), "{name}: {line:?}");
        for heading in [".SH SYNOPSIS", ".SH DESCRIPTION", ".SH OPTIONS", ".SH VERSION"] {
            assert!(lines.contains(&heading), "{name}: no {heading}\n{page}");
        }
        assert!(!page.contains("as\\-rank"), "{name}: hidden options stay hidden");
    }
    let page = fs::read_to_string(folder.path().join("man1/nnunet-dist-train.1")).unwrap();
    let examples = page.split(".SH EXAMPLES\n.nf\n").nth(1).expect("the examples keep their lines");
    assert!(examples.starts_with("  nnunet\\-dist ") || examples.starts_with("  mpirun "), "{examples}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let failure = nnunet_dist(["man", "--output", "/dev/null/man1"]).assert().failure();
    failure.stderr(predicates::str::contains("/dev/null/man1"));
}
