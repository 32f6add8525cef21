//! `nnunet-dist man`

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::Cli;

/// Write the manual pages of the program and of each of its commands.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nnunet-dist man --output ~/.local/share/man/man1")]
pub struct ManPages {
    /// Folder of the pages: nnunet-dist.1, nnunet-dist-train.1 and so on.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

impl ManPages {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut cli = Cli::command().disable_help_subcommand(true);
        cli.build();
        fs::create_dir_all(&self.output).with_context(|| self.output.display().to_string())?;
        write_pages(&cli, &self.output)
    }
}

/// Writes the page of a command, then those of its subcommands that are not hidden.
fn write_pages(command: &Command, folder: &Path) -> anyhow::Result<()> {
    let man = Man::new(command.clone());
    let path = folder.join(man.get_filename());
    fs::write(&path, render(&man, command)?).with_context(|| path.display().to_string())?;
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .try_for_each(|command| write_pages(command, folder))
}

fn render(man: &Man, command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    // `Man::render` would join the lines of the examples.
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (examples, notes) = help.split_once("\n\n").unwrap_or((&help, ""));
    for (heading, text) in [("EXAMPLES", examples), ("NOTES", notes)] {
        if !text.is_empty() {
            let mut section = Roff::default();
            section.control("SH", [heading]).control("nf", []);
            text.lines()
                .filter(|line| !["Example:", "Examples:"].contains(line))
                .for_each(|line| _ = section.text([roman(line)]));
            section.control("fi", []).to_writer(&mut page)?;
        }
    }
    man.render_version_section(&mut page)?;
    Ok(page)
}
