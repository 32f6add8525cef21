//! The pages of the book and their blocks of shell commands.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};

/// A comment before a block with the reason that test machines cannot run it: `<!-- docs-test: REASON -->`.
const MARKER: &str = "<!-- docs-test:";

/// A block of shell commands.
#[derive(Debug, Default, PartialEq)]
pub struct Block {
    /// Its lines, unchanged, with their line numbers in the page (from 1).
    pub lines: Vec<(usize, String)>,
    /// The reason that tests skip it.
    pub skipped: Option<String>,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All pages, README first.
pub fn pages() -> Vec<PathBuf> {
    fn add(folder: &Path, pages: &mut Vec<PathBuf>) {
        let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                add(&path, pages);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                pages.push(path);
            }
        }
    }
    let top = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "RELEASE.md", "SECURITY.md", "STYLE.md"];
    let mut pages = top.map(|name| root().join(name)).to_vec();
    add(&root().join("docs"), &mut pages);
    pages
}

/// The blocks of a page, in order; blocks in lists lose their indentation.
pub fn shell_blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut fence, mut skipped) = (None, None);
    for (index, line) in text.lines().enumerate() {
        let indentation = line.len() - line.trim_start().len();
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            fence = match fence {
                Some(_) => None,
                None => Some((kind == "sh", indentation)),
            };
            if let Some((true, _)) = fence {
                blocks.push(Block { lines: Vec::new(), skipped: skipped.take() });
            }
        } else if let Some((is_shell, indentation)) = fence {
            let block = blocks.last_mut().filter(|_| is_shell);
            block.into_iter().for_each(|block| block.lines.push((index + 1, without(line, indentation))));
        } else if let Some(rest) = line.trim().strip_prefix(MARKER) {
            skipped = rest.strip_suffix("-->").map(|reason| reason.trim().to_owned());
        } else if !line.trim().is_empty() {
            skipped = None;
        }
    }
    blocks
}

/// A line without the indentation of its fence.
fn without(line: &str, indentation: usize) -> String {
    let spaces = line.len() - line.trim_start_matches(' ').len();
    line[spaces.min(indentation)..].to_owned()
}
