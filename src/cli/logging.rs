//! Log lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging: 0 shows information, each step up more, each step down less. `RUST_LOG` overrides.
pub(super) fn init(verbosity: i16) {
    let level = match verbosity {
        ..=-2 => "error",
        -1 => "warn",
        0 => "info",
        1 => "debug",
        2.. => "trace",
    };
    // `nnunet` is the prefix of all crates of the workspace. Burn and CubeCL only log if RUST_LOG names them.
    let ours = EnvFilter::new(format!("warn,nnunet={level}"));
    let filter = EnvFilter::try_from_default_env().unwrap_or(ours);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_writer(std::io::stderr)
        .init();
}
