//! Logging to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Initializes logging: 0 is the info level; positive values are more verbose, negative ones less. `RUST_LOG`
/// overrides.
pub(super) fn init(verbosity: i16) {
    let level = match verbosity {
        ..=-2 => "error",
        -1 => "warn",
        0 => "info",
        1 => "debug",
        2.. => "trace",
    };
    // Burn and CubeCL log below warnings only if RUST_LOG names them.
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
