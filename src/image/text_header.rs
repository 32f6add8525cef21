//! Text headers, in front of the voxels or in a separate file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::ImageError;
use super::raw_voxels::file_len;

/// Maximum header length. Some programs store the history of a segmentation in the header.
const MAX_LEN: u64 = 16 << 20;

/// The lines of a header and its length in bytes.
pub struct TextHeader {
    pub lines: Vec<String>,
    pub len: u64,
}

impl TextHeader {
    /// Reads lines up to and including the one for which `is_last` is true, or to the end of the file.
    pub fn read(path: &Path, is_last: impl Fn(&str) -> bool) -> Result<Self, ImageError> {
        let fail = |error: std::io::Error| ImageError::new(path, error);
        let most = file_len(path)?.min(MAX_LEN);
        let mut file = BufReader::new(File::open(path).map_err(fail)?.take(most));
        let (mut lines, mut len) = (Vec::new(), 0);
        loop {
            let mut bytes = Vec::new();
            let read = file.read_until(b'\n', &mut bytes).map_err(fail)?;
            if read == 0 {
                return Ok(Self { lines, len });
            }
            len += read as u64;
            let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            let is_last = is_last(&line);
            lines.push(line);
            if is_last {
                return Ok(Self { lines, len });
            }
        }
    }
}

/// Parses the numbers of a field.
pub fn numbers<T: std::str::FromStr>(field: &str, value: &str) -> Result<Vec<T>, String> {
    let number = |word: &str| word.parse().map_err(|_| format!("{field} is {value:?}: {word:?} is not a valid number"));
    value.split_ascii_whitespace().map(number).collect()
}

/// Parses the extents of a field, fastest axis first. None may be 0, and the total size must be addressable.
pub fn extents(field: &str, value: &str, axes: usize) -> Result<Vec<usize>, String> {
    let extents: Vec<usize> = numbers(field, value)?;
    if extents.len() != axes {
        return Err(format!("{field} has {} entries for {axes} axes", extents.len()));
    }
    if extents.contains(&0) {
        return Err(format!("{field} is {value:?}; an axis has at least one voxel"));
    }
    // 8 bytes is the largest scalar.
    let bytes = extents.iter().try_fold(8usize, |product, extent| product.checked_mul(*extent));
    bytes
        .filter(|bytes| *bytes <= isize::MAX as usize)
        .ok_or_else(|| format!("{field} is {value:?}, over the addressable size"))?;
    Ok(extents)
}
