//! Former names of flags, which scripts may still use.

use std::ffi::OsString;

/// Command (with subcommand, where it has one), former flag and present flag.
const RENAMED: [(&[&str], &str, &str); 8] = [
    (&["train"], "--accumulate", "--gradient-accumulation-steps"),
    (&["train"], "--stage-dir", "--local-cache-dir"),
    (&["train"], "--compare-every", "--weight-check-interval"),
    (&["scale"], "--accumulate", "--gradient-accumulation-steps"),
    (&["scale"], "--stage-dir", "--local-cache-dir"),
    (&["scale"], "--compare-every", "--weight-check-interval"),
    (&["predict"], "--accumulate", "--accumulator-dtype"),
    (&["bench", "infer"], "--accumulate", "--accumulator-dtype"),
];

/// Replaces former flags by their present names and returns a warning for each that it found.
///
/// Arguments after `--` stay as they are.
pub(super) fn update(arguments: Vec<OsString>) -> (Vec<OsString>, Vec<String>) {
    let words: Vec<String> = arguments
        .iter()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .filter(|argument| !argument.starts_with('-'))
        .take(2)
        .collect();
    let applies = |command: &[&str]| words.len() >= command.len() && command.iter().zip(&words).all(|(a, b)| a == b);
    let mut warnings = Vec::new();
    let mut is_literal = false;
    let replace = |argument: OsString| {
        is_literal |= argument == "--";
        let Some(text) = argument.to_str().filter(|_| !is_literal) else { return argument };
        let (flag, value) = text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value)));
        let Some((_, former, present)) =
            RENAMED.iter().find(|(command, former, _)| *former == flag && applies(command))
        else {
            return argument;
        };
        let warning = format!("{former} is now called {present}");
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
        value.map_or_else(|| present.into(), |value| format!("{present}={value}").into())
    };
    let updated = arguments.into_iter().map(replace).collect();
    (updated, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn updated(line: &str) -> (String, usize) {
        let (arguments, warnings) = update(line.split(' ').map(OsString::from).collect());
        let texts: Vec<String> = arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect();
        (texts.join(" "), warnings.len())
    }

    #[test]
    fn former_flags_take_their_present_names_with_one_warning_each() {
        let line = "nnunet-dist -v train --accumulate 2 --stage-dir=/tmp/a --stage-dir=/tmp/b";
        let expected =
            "nnunet-dist -v train --gradient-accumulation-steps 2 --local-cache-dir=/tmp/a --local-cache-dir=/tmp/b";
        assert_eq!(updated(line), (expected.to_owned(), 2));
        let line = "nnunet-dist predict --accumulate f16";
        assert_eq!(updated(line), ("nnunet-dist predict --accumulator-dtype f16".to_owned(), 1));
    }

    #[test]
    fn other_commands_and_literal_arguments_stay() {
        for line in
            ["nnunet-dist accumulate -w w", "nnunet-dist evaluate --accumulate", "nnunet-dist train -- --accumulate"]
        {
            assert_eq!(updated(line), (line.to_owned(), 0));
        }
    }
}
