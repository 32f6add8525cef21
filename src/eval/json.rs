//! JSON with NaN, compatible with Python's `json` module.

use std::io::{self, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};

use super::EvalError;
use nnunet_core::fsio::write_atomically;

const NAN: &str = "NaN";

/// Writes a value as JSON with every null as `NaN`; the value must not have optional members.
pub(super) fn to_writer(mut writer: impl Write, value: &impl Serialize) -> io::Result<()> {
    let formatter = NanFormatter(PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut writer, formatter))?;
    writer.write_all(b"\n")
}

/// Same as [`to_writer`], atomically to a file.
pub fn to_file(path: &Path, value: &impl Serialize) -> Result<(), EvalError> {
    write_atomically(path, |file| to_writer(file, value)).map_err(EvalError::io(path))
}

/// Parses JSON that may contain `NaN`; such members need [`null_is_nan`].
pub fn from_str<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(&nan_to_null(text))
}

/// Deserializes a number, null as NaN.
pub(super) fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Replaces `NaN` outside of strings by `null`.
fn nan_to_null(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    // Unescaped quotes toggle between inside and outside of a string.
    let mut in_string = false;
    let mut rest = text;
    while let Some(at) = rest.find(if in_string { &['"', '\\'][..] } else { &['"'][..] }) {
        let (piece, tail) = rest.split_at(at);
        let escape = tail.starts_with('\\');
        // A backslash escapes the next character.
        let taken = tail.chars().take(1 + usize::from(escape)).map(char::len_utf8).sum();
        push(&mut result, piece, in_string);
        result.push_str(&tail[..taken]);
        in_string ^= !escape;
        rest = &tail[taken..];
    }
    push(&mut result, rest, in_string);
    result
}

fn push(result: &mut String, piece: &str, in_string: bool) {
    if in_string {
        result.push_str(piece);
    } else {
        result.push_str(&piece.replace(NAN, "null"));
    }
}

/// Pretty-printed JSON with `NaN` for null.
struct NanFormatter(PrettyFormatter<'static>);

impl Formatter for NanFormatter {
    fn write_null<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(NAN.as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Number {
        #[serde(deserialize_with = "null_is_nan")]
        a: f64,
        name: String,
    }

    #[test]
    fn writes_nan_as_python_does() {
        let mut text = Vec::new();
        to_writer(&mut text, &Number { a: f64::NAN, name: "NaN".into() }).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "{\n    \"a\": NaN,\n    \"name\": \"NaN\"\n}\n");
    }

    #[test]
    fn reads_nan_and_null_outside_of_strings() {
        for (json, name) in [
            (r#"{"name": "NaN", "a": NaN}"#, "NaN"),
            (r#"{"name": "a \"NaN\\", "a":NaN}"#, "a \"NaN\\"),
            (r#"{"a": null, "name": "\\é NaN"}"#, "\\é NaN"),
        ] {
            let number: Number = from_str(json).unwrap();
            assert!(number.a.is_nan());
            assert_eq!(number.name, name);
        }
        assert_eq!(from_str::<Number>(r#"{"a": 0.5, "name": ""}"#).unwrap().a, 0.5);
        assert!(from_str::<Number>("{\"a\": 1, \"name\": \"\\").is_err());
    }
}
