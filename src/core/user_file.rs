//! Text files that people write: JSON and TOML from any editor.
//!
//! Editors on Windows begin UTF-8 files with a byte order mark, which is no defect. Other encodings are refused by name.

use std::fmt;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;

/// UTF-8's byte order mark.
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// A text file that cannot be used.
#[derive(Debug)]
pub enum UserFileError {
    /// The file cannot be read.
    Io(io::Error),
    /// The file has another encoding or format than expected.
    Invalid(String),
}

impl fmt::Display for UserFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Invalid(defect) => f.write_str(defect),
        }
    }
}

impl std::error::Error for UserFileError {}

/// Reads a UTF-8 text file, without its byte order mark.
///
/// # Errors
/// Returns an error if the file cannot be read, or is in another encoding, which is named.
pub fn read_text(path: &Path) -> Result<String, UserFileError> {
    let bytes = std::fs::read(path).map_err(UserFileError::Io)?;
    decode_text(&bytes).map(str::to_owned).map_err(UserFileError::Invalid)
}

/// Reads a JSON file. A byte order mark is skipped.
///
/// # Errors
/// Returns an error if the file cannot be read, is not UTF-8, or is not JSON of this form, with line and column.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, UserFileError> {
    let bytes = std::fs::read(path).map_err(UserFileError::Io)?;
    parse_json(&bytes).map_err(UserFileError::Invalid)
}

/// Parses the bytes of a JSON file. A byte order mark is skipped.
///
/// # Errors
/// Returns a description of the defect, with line and column.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let text = decode_text(bytes)?;
    if text.trim().is_empty() {
        return Err("is empty, not JSON".to_owned());
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Decodes the bytes of a text file and removes its byte order mark.
///
/// # Errors
/// Returns a message that names the encoding, or the line of the first byte that is not UTF-8.
pub fn decode_text(bytes: &[u8]) -> Result<&str, String> {
    if let Some(encoding) = foreign_encoding(bytes) {
        return Err(format!("is text in {encoding}; save it as UTF-8"));
    }
    let bytes = bytes.strip_prefix(&BYTE_ORDER_MARK).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        format!("is not UTF-8 text: byte {:#04x} in line {line}; save it as UTF-8", bytes[error.valid_up_to()])
    })
}

/// Returns the name of the encoding if the text is UTF-16 or UTF-32, with a byte order mark or in front of a character
/// that every language shares.
fn foreign_encoding(bytes: &[u8]) -> Option<&'static str> {
    let begin: [bool; 4] = std::array::from_fn(|at| bytes.get(at).is_some_and(|byte| *byte != 0));
    match (bytes, begin) {
        ([0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..], _) => Some("UTF-32"),
        ([0xff, 0xfe, ..] | [0xfe, 0xff, ..], _) => Some("UTF-16"),
        ([_, _, _, _, ..], [true, false, false, false] | [false, false, false, true]) => Some("UTF-32"),
        ([_, _, ..], [true, false, ..] | [false, true, ..]) => Some("UTF-16"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn a_byte_order_mark_is_no_defect() {
        let parsed: Vec<u32> = parse_json(b"\xef\xbb\xbf[1, 2]").unwrap();
        assert_eq!(parsed, [1, 2]);
        assert_eq!(decode_text(b"\xef\xbb\xbfa").unwrap(), "a");
        assert_eq!(decode_text(b"").unwrap(), "");
    }

    #[test]
    fn other_encodings_are_named() {
        for text in ["\u{feff}{\"a\": 1}", "{\"a\": 1}"] {
            for bytes in [utf16(text, u16::to_le_bytes), utf16(text, u16::to_be_bytes)] {
                assert!(decode_text(&bytes).unwrap_err().contains("UTF-16"), "{bytes:?}");
            }
            let bytes: Vec<u8> = text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
            assert!(decode_text(&bytes).unwrap_err().contains("UTF-32"), "{bytes:?}");
        }
        let error = decode_text(b"{\n\"caf\xe9\": 1}").unwrap_err();
        assert!(error.contains("0xe9 in line 2") && error.contains("UTF-8"), "{error}");
    }

    #[test]
    fn defects_have_a_place() {
        let error = parse_json::<Vec<u32>>(b"[1,\n x]").unwrap_err();
        assert!(error.contains("line 2 column 2"), "{error}");
        assert!(parse_json::<Vec<u32>>(b" \n").unwrap_err().contains("is empty"));
    }
}
