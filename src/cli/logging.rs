//! Logging to standard error, and to the text log of a run.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use clap::ValueEnum;
use nnunet_core::run_log::RunLogWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines of time, level and message.
    #[default]
    Text,
    /// JSON objects, one per line.
    Json,
}

/// Initializes logging: 0 is the info level; positive values are more verbose, negative ones less. `RUST_LOG`
/// overrides.
pub(super) fn init(verbosity: i16, format: LogFormat) {
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
    let lines =
        || tracing_subscriber::fmt::layer().with_target(false).with_timer(UtcSeconds).log_internal_errors(false);
    let on_stderr = match format {
        LogFormat::Text => lines().with_ansi(has_colors()).with_writer(|| Stderr).boxed(),
        LogFormat::Json => lines().json().flatten_event(true).with_writer(|| Stderr).boxed(),
    };
    let in_run_log = lines().with_ansi(false).with_writer(|| RunLogWriter).boxed();
    tracing_subscriber::registry().with(filter).with(vec![on_stderr, in_run_log]).init();
}

/// Returns whether to color the log: on a terminal that has colors, unless `NO_COLOR` is set (<https://no-color.org>).
fn has_colors() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Times in UTC, such as `2026-01-31T12:00:00Z`.
struct UtcSeconds;

impl FormatTime for UtcSeconds {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        match DateTime::from_timestamp(seconds as i64, 0) {
            Some(time) => write!(writer, "{}", time.format("%Y-%m-%dT%H:%M:%SZ")),
            None => Ok(()),
        }
    }
}

/// Standard error, whose write errors are ignored: a log that cannot be written must not end a command.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
