//! `nnunet-launch` starts `nnunet-dist` on several GPUs and hosts, supervises it, and restarts it after failures.
//!
//! # Control flow
//!
//! 1. [`arguments`]: parses the command line; [`task`]: the program that each rank runs, and its environment.
//! 2. [`hosts`] and [`layout`]: determine the number of processes and their hosts.
//! 3. [`command`]: builds the command line of `mpirun` or `srun`.
//! 4. [`supervise`]: runs one attempt from start to end. [`output`] prefixes lines with ranks, [`status`] follows the
//!    progress, [`watchdog`] detects hangs, [`signals`] forwards signals, [`orphan_reaper`] kills orphaned processes.
//! 5. [`attempt`]: classifies the end of an attempt and decides whether to try again; [`run`]: combines all of this.

mod arguments;
mod attempt;
mod command;
mod error;
mod hosts;
mod layout;
mod orphan_reaper;
mod output;
mod run;
mod signals;
mod status;
mod supervise;
mod task;
mod watchdog;

use std::io::Write;
use std::process::ExitCode;

use crate::arguments::Arguments;
use crate::error::LaunchError;

fn main() -> ExitCode {
    let arguments = match Arguments::from_command_line(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(usage) => {
            let words: Vec<_> = std::env::args_os().collect();
            if let Some(line) = Arguments::with_separator(&words).filter(|_| usage.use_stderr()) {
                eprintln!("error: the command of nnunet-dist comes after `--`; write {line}");
                return LaunchError::USAGE.into();
            }
            // If even the help text cannot be printed, there is nowhere to report it.
            let _ = usage.print();
            return if usage.use_stderr() { LaunchError::USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let text = match arguments.completions {
        Some(shell) => Some(Ok(Arguments::completion_script(shell))),
        None => arguments.man.then(Arguments::manual_page),
    };
    if let Some(text) = text {
        return match text.and_then(|text| std::io::stdout().write_all(&text)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.into()),
        };
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(LaunchError::from).and_then(|runtime| runtime.block_on(run::run(arguments))) {
        Ok(code) => code.into(),
        Err(error) => fail(&error),
    }
}

fn fail(error: &LaunchError) -> ExitCode {
    eprintln!("error: {error}");
    error.code().into()
}
