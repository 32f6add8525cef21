//! The command line: parse, dispatch, map errors to exit codes.

use std::io::Write;
use std::process::ExitCode;

use nnunet_dist::cli::{Cli, exit};
use nnunet_dist::distributed;

fn main() -> ExitCode {
    let cli = match Cli::from_arguments() {
        Ok(cli) => cli,
        Err(usage) => {
            // If even the help text cannot be printed, there is nowhere to report it.
            let _ = usage.print();
            return if usage.use_stderr() { exit::USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    distributed::install_out_of_memory_hook();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = exit::code(&error);
            // A requested stop is not an error; the log has already reported it once for all ranks.
            if code != exit::STOPPED {
                let _ = writeln!(std::io::stderr(), "error: {}", exit::one_line(&error));
            }
            code.into()
        }
    }
}
