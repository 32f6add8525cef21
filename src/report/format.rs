//! Formatting of numbers.

use std::time::SystemTime;

use chrono::{DateTime, Utc};

/// Placeholder for a missing number.
pub const NONE: &str = "-";

/// Formats a duration: `42 s`, `1 min 46 s`, `12 min`, `4 h 12 min`, `3 d 4 h`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..600 => format!("{minutes} min {} s", whole % 60),
        600..3600 => format!("{minutes} min"),
        3600..172_800 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// Formats a Dice or a loss.
pub fn score(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map_or(NONE.to_owned(), |value| format!("{value:.4}"))
}

/// Formats a rate, a time or a norm with three significant digits.
pub fn number(value: f64) -> String {
    let digits = if value == 0.0 { 0.0 } else { 2.0 - value.abs().log10().floor() };
    match digits {
        _ if !value.is_finite() => NONE.to_owned(),
        digits if digits > 6.0 => format!("{value:.2e}"),
        digits => format!("{value:.*}", digits.max(0.0) as usize),
    }
}

/// Formats a fraction as a percentage.
pub fn percent(part: f64) -> String {
    if part.is_finite() { format!("{:.1} %", 100.0 * part) } else { NONE.to_owned() }
}

/// Formats a size, e.g. `8.3 MB`.
pub fn bytes(bytes: u64) -> String {
    match bytes as f64 {
        few if few < 1e6 => format!("{:.1} kB", few / 1e3),
        some if some < 1e9 => format!("{:.1} MB", some / 1e6),
        many => format!("{:.2} GB", many / 1e9),
    }
}

/// Formats a date and time of day (UTC).
pub fn time(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let time = i64::try_from(seconds).ok().and_then(|seconds| DateTime::<Utc>::from_timestamp(seconds, 0));
    time.map_or(NONE.to_owned(), |time| time.format("%Y-%m-%d %H:%M UTC").to_string())
}

/// Formats a count, e.g. `1 case`, `2 cases`.
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn numbers_have_the_digits_that_count() {
        let durations = [0.31, 59.0, 61.0, 725.0, 15_120.0, 273_600.0].map(duration);
        assert_eq!(durations, ["0.3 s", "59 s", "1 min 1 s", "12 min", "4 h 12 min", "3 d 4 h"]);
        let numbers = [0.0, 2.8652, 0.0123456, 1234.5, 1.5e-7, f64::NAN].map(number);
        assert_eq!(numbers, ["0", "2.87", "0.0123", "1234", "1.50e-7", "-"]);
        assert_eq!((score(Some(f64::NAN)), score(Some(0.85184))), ("-".to_owned(), "0.8518".to_owned()));
        assert_eq!([8_316_984, 999].map(bytes), ["8.3 MB", "1.0 kB"]);
        assert_eq!(time(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)), "2001-09-09 01:46 UTC");
    }
}
