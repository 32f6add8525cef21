//! Runs every command in the book, page by page and in order, as a reader would type it.
//!
//! A page is one shell with `set -e` in a folder of its own that contains everything the page assumes (`world.rs`).
//! Commands that take hours, or need GPUs, other hosts or root, are replaced by stand-ins that do a smaller version
//! (`commands.rs`, `stand_ins/`). The test prints each change a stand-in made and each line that was not run.
//!
//! `NNUNET_DOCS_TEST=1` (`make docs-test`) runs all pages; otherwise only the README and the tutorial run.
//! `NNUNET_DOCS_PAGE` selects pages whose path contains it, `NNUNET_DIST_BIN` another build of the program.

mod commands;
mod page;
mod report;
mod world;

use std::env;
use std::fs;

use self::commands::Commands;
use self::page::{Done, Page, name_of};
use self::report::Count;
use self::world::World;

use crate::job;
use crate::pages as book;
use crate::skip::skip;

/// The page with the examples of each command's `--help`, which are independent of each other.
const EXAMPLES: &str = "docs/reference/cli.md";
/// Set by `make docs-test`.
const ALL: &str = "NNUNET_DOCS_TEST";

#[test]
fn the_first_pages_run_also_under_mpirun() {
    if !can_run() {
        return;
    }
    let commands_folder = tempfile::tempdir().unwrap();
    let commands = Commands::new(&commands_folder.path().join("bin"));
    let first = |name: &str| ["README.md", "docs/tutorial.md"].contains(&name);
    let sum = run_pages(first, &World::new(), &commands);
    assert!(sum.run() >= 10, "only {} commands were run", sum.run());
    println!("all other pages: `make docs-test`");
}

#[test]
fn every_page_runs_also_under_mpirun() {
    if env::var_os(ALL).is_none() {
        skip("`make docs-test` runs every page");
        return;
    }
    if !can_run() {
        return;
    }
    let commands_folder = tempfile::tempdir().unwrap();
    let commands = Commands::new(&commands_folder.path().join("bin"));
    let chosen = env::var("NNUNET_DOCS_PAGE").unwrap_or_default();
    let sum = run_pages(|name| name.contains(&chosen), &World::with_networks(), &commands);
    if chosen.is_empty() {
        assert!(sum.run() >= 130, "only {} commands were run", sum.run());
        assert!(sum.run() > 3 * (sum.absent + sum.skipped), "too much is not run");
    }
}

/// Runs pages and prints their results; panics after all have run if any failed.
#[track_caller]
fn run_pages(is_chosen: impl Fn(&str) -> bool, world: &World, commands: &Commands) -> Count {
    let (mut done, mut failures): (Vec<Done>, Vec<String>) = Default::default();
    for path in book::pages() {
        let name = name_of(&path);
        let text = fs::read_to_string(&path).unwrap();
        let parts = if name == EXAMPLES { Page::sections(&name, &text) } else { vec![Page::new(&name, &text)] };
        for page in parts.into_iter().filter(|page| !page.statements.is_empty() && is_chosen(&page.name)) {
            let folder = world.folder_for(&page.name);
            match page.run(folder.path(), commands) {
                Ok(page) => done.push(page),
                Err(failure) => failures.push(failure),
            }
        }
    }
    let sum = report::print(&done);
    assert!(failures.is_empty(), "{} page(s) failed\n\n{}", failures.len(), failures.join("\n\n"));
    sum
}

/// The commands on the pages are for Open MPI and for a shell that the other tests need too.
fn can_run() -> bool {
    let found = job::launcher().is_some();
    if found && !job::is_open_mpi() {
        skip("the book's mpirun is Open MPI's");
    }
    found && job::is_open_mpi()
}

fn run_text(text: &str) -> Result<Done, String> {
    let folder = tempfile::tempdir().unwrap();
    let commands = Commands::new(&folder.path().join("bin"));
    Page::new("page.md", text).run(folder.path(), &commands)
}

#[test]
fn a_failing_page_names_the_line() {
    let failure =
        run_text("text\n```sh\ntrue\n```\n```sh\necho a word >&2\nls nowhere | cat\necho more\n```\n").unwrap_err();
    assert!(failure.starts_with("page.md:7: `ls nowhere | cat` failed"), "{failure}");
    assert!(failure.contains("a word") && failure.contains("nowhere") && !failure.contains("more"), "{failure}");
    let failure = run_text("```sh\nfrobnicate --all   # unknown\n```\n").unwrap_err();
    assert!(failure.contains("frobnicate is in no table"), "{failure}");
    // The program itself fails.
    let failure = run_text("```sh\nnnunet-dist plan -d nowhere -w work\n```\n").unwrap_err();
    assert!(failure.contains("page.md:2") && failure.contains("nowhere"), "{failure}");
}

#[test]
fn nothing_is_left_out_silently() {
    let page = "```sh\necho a >file\nsudo apt-get install all | cat\ncat file\n```\n<!-- docs-test: needs a GPU -->\n```sh\nfalse\n```\n";
    let done = run_text(page).unwrap();
    let count = Count::of(&done);
    assert_eq!([count.as_it_stands, count.small, count.absent, count.skipped], [2, 0, 1, 1]);
    assert_eq!(done.notes[0].text, "sudo apt-get install all: changes the machine");
}
