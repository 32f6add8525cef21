//! `nnunet-dist completions`

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Print a shell completion script.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist completions bash > ~/.local/share/bash-completion/completions/nnunet-dist
  nnunet-dist completions zsh > ~/.zfunc/_nnunet-dist
  nnunet-dist completions fish > ~/.config/fish/completions/nnunet-dist.fish")]
pub struct Completions {
    /// Shell to complete for.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "nnunet-dist", &mut script);
        std::io::stdout().write_all(&script)?;
        Ok(())
    }
}
