//! Results on standard output.
//!
//! A closed pipe (`nnunet-dist inspect … | head -1`) is not an error; another write error, such as a full disk, is
//! reported when the command has ended. [`out!`] and [`outln!`] replace `print!` and `println!`, which panic in both
//! cases.

use std::fmt;
use std::io::{self, Write};
use std::sync::Mutex;

/// First error of a write; later writes are dropped.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints to standard output.
macro_rules! out {
    ($($argument:tt)*) => { $crate::cli::output::write(format_args!($($argument)*)) };
}

/// Prints a line to standard output.
macro_rules! outln {
    ($($argument:tt)*) => { $crate::cli::output::write(format_args!("{}\n", format_args!($($argument)*))) };
}

pub(crate) use {out, outln};

/// Writes to standard output; keeps the first error for [`finish`].
pub fn write(text: fmt::Arguments) {
    let Ok(mut failure) = FAILURE.lock() else { return };
    if failure.is_none() {
        let mut stdout = io::stdout().lock();
        *failure = stdout.write_fmt(text).and_then(|()| stdout.flush()).err();
    }
}

/// Returns the first write error, unless the reader has closed the pipe.
///
/// # Errors
/// Returns the error of the first failed write.
pub fn finish() -> io::Result<()> {
    let failure = FAILURE.lock().ok().and_then(|mut failure| failure.take());
    match failure.filter(|error| error.kind() != io::ErrorKind::BrokenPipe) {
        Some(error) => Err(io::Error::new(error.kind(), format!("standard output: {error}"))),
        None => Ok(()),
    }
}
