//! Command-line interface: one file per subcommand that parses arguments and calls the library, without logic of its
//! own.
//!
//! Guarantees: results go to standard output, everything else to standard error; an error is one line that begins with
//! `error:`; the exit code tells the kind of error ([`exit`]).

use clap::{ArgAction, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

mod accumulate;
mod bench;
mod completions;
mod convert;
mod demo;
mod doctor;
mod ensemble;
mod evaluate;
pub mod exit;
mod export;
mod find_best_configuration;
mod import;
mod infer_flags;
mod inspect;
mod logging;
mod man;
pub mod nnunet_flags;
mod output;
mod phantom;
mod plan;
mod plans;
mod postprocess;
mod precision;
mod predict;
mod preprocess;
mod ranks;
mod renamed;
mod replay;
mod report;
mod run_flags;
mod scale;
mod serve;
mod status;
mod train;

/// nnU-Net, trained across many GPUs and nodes.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 120, after_help = EXAMPLE)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Increase verbosity on standard error (-v: debug, -vv: trace).
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,

    /// Decrease verbosity on standard error (-q: warnings, -qq: errors only).
    #[arg(short, long, action = ArgAction::Count, global = true, conflicts_with = "verbose")]
    quiet: u8,

    /// Format of the log on standard error.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t, global = true)]
    log_format: logging::LogFormat,

    /// Warnings about former names of flags.
    #[arg(skip)]
    warnings: Vec<String>,
}

const EXAMPLE: &str = "\
Example, from a folder of labeled images to the Dice:
  nnunet-dist plan -d Task04_Hippocampus -w hippocampus
  nnunet-dist preprocess -w hippocampus -c 3d_fullres
  mpirun -np 2 nnunet-dist train -w hippocampus -c 3d_fullres -f 0
  nnunet-dist predict -r hippocampus/runs/3d_fullres/fold_0 -i images -o predictions
  nnunet-dist evaluate -p predictions -g labels

Exit codes: 0 success, 1 internal error, 2 usage, 3 invalid data, plan or configuration,
4 device or library missing, 5 out of GPU memory, 75 temporary failure (a rank, the network or
the disk), retry, 79 stopped by a signal with a checkpoint saved, 101 panic";

#[derive(Debug, Subcommand)]
enum Command {
    Plan(plan::Plan),
    Preprocess(preprocess::Preprocess),
    Train(train::Train),
    Status(status::Status),
    Report(report::Report),
    Predict(predict::Predict),
    Serve(serve::Serve),
    Evaluate(evaluate::Evaluate),
    Accumulate(accumulate::Accumulate),
    FindBestConfiguration(find_best_configuration::FindBestConfiguration),
    Ensemble(ensemble::Ensemble),
    Postprocess(postprocess::Postprocess),
    Import(import::Import),
    Export(export::Export),
    Convert(convert::Convert),
    Inspect(inspect::Inspect),
    Replay(replay::Replay),
    Scale(scale::Scale),
    Bench(bench::Bench),
    Phantom(phantom::Phantom),
    Demo(demo::Demo),
    /// Report the libraries and devices found, and the command that installs each missing one.
    #[command(after_help = "Example:\n  nnunet-dist doctor")]
    Doctor,
    Completions(completions::Completions),
    #[command(hide = true)]
    Man(man::ManPages),
}

impl Cli {
    /// Parses the process's arguments, in which flags may have their former names.
    ///
    /// # Errors
    /// Returns clap's error, which is also used for `--help` and `--version`.
    pub fn from_arguments() -> Result<Self, clap::Error> {
        let (arguments, warnings) = renamed::update(std::env::args_os().collect());
        if let Some(line) = nnunet_flags::explain(&arguments) {
            return Err(clap::Error::raw(clap::error::ErrorKind::UnknownArgument, line + "\n"));
        }
        Ok(Self { warnings, ..Self::try_parse_from(arguments)? })
    }

    /// Runs the chosen command.
    ///
    /// # Errors
    /// Returns the errors of the library; [`exit::code`] maps them to the process's exit code.
    pub fn run(self) -> anyhow::Result<()> {
        let verbosity = i16::from(self.verbose) - i16::from(self.quiet);
        logging::init(verbosity, self.log_format);
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
        self.command.run()?;
        Ok(output::finish()?)
    }
}

impl Command {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Plan(command) => command.run(),
            Self::Preprocess(command) => command.run(),
            Self::Train(command) => command.run(),
            Self::Status(command) => command.run(),
            Self::Report(command) => command.run(),
            Self::Predict(command) => command.run(),
            Self::Serve(command) => command.run(),
            Self::Evaluate(command) => command.run(),
            Self::Accumulate(command) => command.run(),
            Self::FindBestConfiguration(command) => command.run(),
            Self::Ensemble(command) => command.run(),
            Self::Postprocess(command) => command.run(),
            Self::Import(command) => command.run(),
            Self::Export(command) => command.run(),
            Self::Convert(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Replay(command) => command.run(),
            Self::Scale(command) => command.run(),
            Self::Bench(command) => command.run(),
            Self::Phantom(command) => command.run(),
            Self::Demo(command) => command.run(),
            Self::Doctor => doctor::run(),
            Self::Completions(command) => command.run(),
            Self::Man(command) => command.run(),
        }
    }
}

/// Name of the lock file in a folder that a command writes.
const LOCK: &str = ".nnunet-dist.lock";

/// Returns whether two paths are the same existing folder, also through links.
fn same_folder(a: &std::path::Path, b: &std::path::Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Creates a progress bar on standard error; invisible if that is not a terminal.
fn progress_bar(length: usize, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} cases, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length as u64).with_style(style).with_message(what.to_owned())
}

/// Parses a number above 0.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if f64::is_finite(number) && number > 0.0 => Ok(number),
        _ => Err("must be a number above 0".into()),
    }
}

/// Returns the name of a choice in TOML, which equals its name on the command line.
fn name_of(choice: Option<impl clap::ValueEnum>) -> Option<String> {
    choice?.to_possible_value().map(|value| value.get_name().to_owned())
}
