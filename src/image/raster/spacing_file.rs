//! JSON file with the spacing of a TIFF file (nnU-Net v2, `tif_reader_writer.py`): `{"spacing": [z, y, x]}`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::ImageError;
use nnunet_core::fsio;

/// Reads the spacing of an image, in mm along `(z, y, x)`; `None` if there is no such file.
///
/// `case.tif` and `case_0000.tif` both use `case.json`.
pub fn read(image: &Path) -> Result<Option<[f64; 3]>, ImageError> {
    let candidates = [image.with_extension("json"), without_channel(image)];
    let Some(path) = candidates.into_iter().find(|path| path.is_file()) else { return Ok(None) };
    let text = std::fs::read(&path).map_err(|error| ImageError::new(&path, error))?;
    let json: Value = serde_json::from_slice(&text).map_err(|error| ImageError::new(&path, error))?;
    let Some(spacing) = json.get("spacing") else { return Ok(None) };
    let numbers: Vec<f64> = spacing.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    match numbers.as_slice() {
        &[z, y, x] if [z, y, x].iter().all(|mm| mm.is_finite() && *mm > 0.0) => Ok(Some([z, y, x])),
        _ => Err(ImageError::new(&path, format!("spacing is {spacing}, not three numbers above 0"))),
    }
}

/// Writes the spacing of an image. `has_channel`: the name ends in a channel number to strip (false for label maps).
pub fn write(image: &Path, spacing: [f64; 3], has_channel: bool) -> Result<(), ImageError> {
    let path = if has_channel { without_channel(image) } else { image.with_extension("json") };
    fsio::write_json(&path, &json!({ "spacing": spacing })).map_err(|error| ImageError::new(&path, error))
}

/// `case.json` for `case_0000.tif`.
fn without_channel(image: &Path) -> PathBuf {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy();
    let digits = |digits: &str| digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_digit());
    let case = stem.rsplit_once('_').filter(|(case, channel)| !case.is_empty() && digits(channel));
    image.with_file_name(format!("{}.json", case.map_or(&*stem, |(case, _)| case)))
}
