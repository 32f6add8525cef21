//! `nnunet-launch` starts `nnunet-dist` on several GPUs and hosts, watches it from outside, and restarts it.
//!
//! # The way of a job
//!
//! 1. [`arguments`]: the command line; [`task`]: what each rank shall run.
//! 2. [`hosts`], [`gpus`] and [`layout`]: how many processes, and where.
//! 3. [`command`]: the line of `mpirun` or `srun` that starts them; [`environment`]: the variables that travel along.
//! 4. [`supervise`]: one attempt, from start to end. [`output`] prefixes its lines, [`status`] follows its progress,
//!    [`patience`] decides when it hangs, [`signals`] are passed on, [`cleanup`] leaves nobody behind.
//! 5. [`verdict`]: what an end means; [`restart`]: whether to try again; [`run`] ties all of it together.

mod agent;
mod arguments;
mod cleanup;
mod command;
mod environment;
mod error;
mod gpus;
mod hosts;
mod layout;
mod output;
mod patience;
mod restart;
mod run;
mod signals;
mod status;
mod supervise;
mod task;
mod verdict;

use std::io::Write;
use std::process::ExitCode;

use crate::arguments::Arguments;
use crate::error::LaunchError;

fn main() -> ExitCode {
    let arguments = match Arguments::from_command_line(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(usage) => {
            // Where not even the help can be printed there is nobody to tell.
            let _ = usage.print();
            return if usage.use_stderr() { LaunchError::USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    if let Some(shell) = arguments.completions {
        return match std::io::stdout().write_all(&Arguments::completion_script(shell)) {
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
