//! Records the tests that cannot run on this machine. `make test` ends with their number.

use std::env;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;
use std::thread;

/// Prints that the current test, or a part of it, is skipped, and appends the test's name and the reason to the file
/// `$NNUNET_SKIPPED`, if set. A skipped test passes.
///
/// A reason has one line.
pub fn skip(reason: impl Display) {
    println!("skipped: {reason}");
    let Some(path) = env::var_os("NNUNET_SKIPPED") else { return };
    // Names of nextest, of libtest without it.
    let name = match (env::var("NEXTEST_BINARY_ID"), env::var("NEXTEST_TEST_NAME")) {
        (Ok(binary), Ok(test)) => format!("{binary} {test}"),
        _ => thread::current().name().unwrap_or("unknown test").to_owned(),
    };
    // One write, so that tests of several processes do not mix their lines.
    let line = format!("{name}\t{}\n", reason.to_string().replace(['\n', '\t'], " "));
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
