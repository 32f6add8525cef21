//! One DICOM file: the attributes of its slice, and its pixels.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use dicom_object::{DefaultDicomObject, OpenFileOptions, Tag};

use super::lengths::check_lengths;
use crate::inexact::InexactValues;
use crate::raw_voxels::file_len;
use crate::reader_writer::warn_once;
use crate::{ImageError, ScalarType};

/// Attributes read here (DICOM PS3.6), with their keywords.
const MODALITY: (Tag, &str) = (Tag(0x0008, 0x0060), "Modality");
const SERIES_DESCRIPTION: (Tag, &str) = (Tag(0x0008, 0x103E), "SeriesDescription");
const SLICE_THICKNESS: (Tag, &str) = (Tag(0x0018, 0x0050), "SliceThickness");
const SPACING_BETWEEN_SLICES: (Tag, &str) = (Tag(0x0018, 0x0088), "SpacingBetweenSlices");
const SERIES_INSTANCE_UID: (Tag, &str) = (Tag(0x0020, 0x000E), "SeriesInstanceUID");
const IMAGE_POSITION: (Tag, &str) = (Tag(0x0020, 0x0032), "ImagePositionPatient");
const IMAGE_ORIENTATION: (Tag, &str) = (Tag(0x0020, 0x0037), "ImageOrientationPatient");
const SAMPLES_PER_PIXEL: (Tag, &str) = (Tag(0x0028, 0x0002), "SamplesPerPixel");
const PHOTOMETRIC: (Tag, &str) = (Tag(0x0028, 0x0004), "PhotometricInterpretation");
const NUMBER_OF_FRAMES: (Tag, &str) = (Tag(0x0028, 0x0008), "NumberOfFrames");
const ROWS: (Tag, &str) = (Tag(0x0028, 0x0010), "Rows");
const COLUMNS: (Tag, &str) = (Tag(0x0028, 0x0011), "Columns");
const PIXEL_SPACING: (Tag, &str) = (Tag(0x0028, 0x0030), "PixelSpacing");
const BITS_ALLOCATED: (Tag, &str) = (Tag(0x0028, 0x0100), "BitsAllocated");
const BITS_STORED: (Tag, &str) = (Tag(0x0028, 0x0101), "BitsStored");
const HIGH_BIT: (Tag, &str) = (Tag(0x0028, 0x0102), "HighBit");
const PIXEL_REPRESENTATION: (Tag, &str) = (Tag(0x0028, 0x0103), "PixelRepresentation");
const RESCALE_INTERCEPT: (Tag, &str) = (Tag(0x0028, 0x1052), "RescaleIntercept");
const RESCALE_SLOPE: (Tag, &str) = (Tag(0x0028, 0x1053), "RescaleSlope");
const PIXEL_DATA: (Tag, &str) = (Tag(0x7FE0, 0x0010), "PixelData");

/// Implicit and explicit VR little-endian: the transfer syntaxes with uncompressed pixels.
const NATIVE: [&str; 2] = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"];

/// A file of a series.
pub struct SeriesFile {
    pub path: PathBuf,
    /// SeriesInstanceUID.
    pub series: String,
    pub modality: String,
    pub description: String,
    /// The slice, or the reason it cannot be read; the error matters only if this series is selected.
    pub slice: Result<Slice, ImageError>,
}

/// The attributes of one slice.
#[derive(Clone, Debug)]
pub struct Slice {
    pub path: PathBuf,
    /// Rows and columns: `(y, x)`.
    pub extents: [usize; 2],
    /// Pixel size in mm along `(y, x)`.
    pub spacing: [f64; 2],
    /// Distance to the next slice in mm, as stated by the file.
    pub thickness: Option<f64>,
    /// Center of the first pixel, LPS, mm.
    pub position: [f64; 3],
    /// Directions of increasing x and y.
    pub x: [f64; 3],
    pub y: [f64; 3],
    bits: Bits,
    scaling: (f64, f64),
}

/// Bit layout of a pixel.
#[derive(Clone, Copy, Debug)]
struct Bits {
    allocated: usize,
    stored: usize,
    high: usize,
    signed: bool,
}

/// Whether this is a DICOM file: `DICM` after a preamble of 128 bytes.
pub fn is_dicom(path: &Path) -> bool {
    let begin = || -> std::io::Result<[u8; 132]> {
        let mut bytes = [0; 132];
        File::open(path)?.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    path.is_file() && begin().is_ok_and(|bytes| bytes.ends_with(b"DICM"))
}

impl SeriesFile {
    /// Reads everything but the pixels; `None` for an object without pixels, such as a report or a DICOMDIR.
    pub fn read(path: &Path) -> Result<Option<Self>, ImageError> {
        let not_whole = |defect: String| ImageError::new(path, format!("is not a valid DICOM file: {defect}"));
        check_lengths(path).map_err(not_whole)?;
        let object = OpenFileOptions::new().read_until(PIXEL_DATA.0).open_file(path);
        let object = object.map_err(|error| not_whole(error.to_string()))?;
        let attributes = Attributes(&object);
        let (Some(series), Some(_)) = (attributes.text(SERIES_INSTANCE_UID), attributes.text(ROWS)) else {
            return Ok(None);
        };
        let slice = Slice::parse(path, &attributes).map_err(|defect| ImageError::new(path, defect));
        let text = |attribute| attributes.text(attribute).unwrap_or_default();
        let (modality, description) = (text(MODALITY), text(SERIES_DESCRIPTION));
        Ok(Some(Self { path: path.to_owned(), series, modality, description, slice }))
    }
}

impl Slice {
    fn parse(path: &Path, attributes: &Attributes) -> Result<Self, String> {
        let syntax = attributes.0.meta().transfer_syntax();
        if !NATIVE.contains(&syntax) {
            return Err(format!("is compressed ({}); decompress it with `gdcmconv --raw IN OUT`", syntax_name(syntax)));
        }
        let frames: usize = attributes.number(NUMBER_OF_FRAMES)?.unwrap_or(1);
        if frames > 1 {
            return Err(format!("has {frames} frames; convert the series with `dcm2niix`"));
        }
        let samples: usize = attributes.number(SAMPLES_PER_PIXEL)?.unwrap_or(1);
        let photometric = attributes.text(PHOTOMETRIC).unwrap_or_else(|| "MONOCHROME2".into());
        if samples != 1 || !photometric.starts_with("MONOCHROME") {
            return Err(format!("is not grayscale: {samples} samples per pixel, {photometric}"));
        }
        let extents = [attributes.required(ROWS)?, attributes.required(COLUMNS)?];
        let allocated = attributes.required(BITS_ALLOCATED)?;
        let stored = attributes.number(BITS_STORED)?.unwrap_or(allocated);
        let high = attributes.number(HIGH_BIT)?.unwrap_or(stored.saturating_sub(1));
        let signed = attributes.number(PIXEL_REPRESENTATION)?.unwrap_or(0usize) == 1;
        let bits = Bits { allocated, stored, high, signed };
        if ![8, 16, 32].contains(&allocated) || stored == 0 || high >= allocated || high + 1 < stored {
            return Err(format!("is invalid: BitsStored {stored}, HighBit {high}, BitsAllocated {allocated}"));
        }
        let length = file_len(path).map_err(|error| error.defect)?;
        let bytes = extents[0].saturating_mul(extents[1]).saturating_mul(allocated / 8);
        if bytes == 0 || bytes as u64 > length {
            let [rows, columns] = extents;
            return Err(format!("Rows and Columns declare {rows} x {columns} pixels in a file of {length} bytes"));
        }
        let [dx, dy, dz, ex, ey, ez] = attributes.vector(IMAGE_ORIENTATION)?;
        let spacing: [f64; 2] = attributes.vector(PIXEL_SPACING)?;
        if spacing.iter().any(|mm| *mm <= 0.0) {
            return Err(format!("PixelSpacing is {spacing:?} mm"));
        }
        let slope = attributes.float(RESCALE_SLOPE)?.unwrap_or(1.0);
        let intercept = attributes.float(RESCALE_INTERCEPT)?.unwrap_or(0.0);
        let between = attributes.float(SPACING_BETWEEN_SLICES)?.map(f64::abs);
        Ok(Self {
            path: path.to_owned(),
            extents,
            spacing,
            thickness: between.or(attributes.float(SLICE_THICKNESS)?).filter(|mm| *mm > 0.0),
            position: attributes.vector(IMAGE_POSITION)?,
            x: [dx, dy, dz],
            y: [ex, ey, ez],
            bits,
            scaling: (slope, intercept),
        })
    }

    /// Scalar type of the stored values.
    pub fn scalar_type(&self) -> ScalarType {
        match (self.bits.allocated, self.bits.signed) {
            (8, false) => ScalarType::U8,
            (8, true) => ScalarType::I8,
            (16, false) => ScalarType::U16,
            (16, true) => ScalarType::I16,
            (_, false) => ScalarType::U32,
            (_, true) => ScalarType::I32,
        }
    }

    /// Reads the intensities, `(y, x)`, into `pixels`.
    pub fn read(&self, pixels: &mut [f32]) -> Result<(), ImageError> {
        let fail = |defect: String| ImageError::new(&self.path, defect);
        let object = OpenFileOptions::new().read_to(PIXEL_DATA.0).open_file(&self.path);
        let object = object.map_err(|error| fail(format!("is not a valid DICOM file: {error}")))?;
        let element = object.get(PIXEL_DATA.0).ok_or_else(|| fail("has no PixelData".into()))?;
        let bytes = element.to_bytes().map_err(|error| fail(format!("PixelData: {error}")))?;
        let size = self.bits.allocated / 8;
        if bytes.len() < pixels.len() * size {
            return Err(fail(format!("PixelData has {} bytes for {} pixels of {size}", bytes.len(), pixels.len())));
        }
        let (slope, intercept) = self.scaling;
        let mut inexact = InexactValues::default();
        for (pixel, bytes) in pixels.iter_mut().zip(bytes.chunks_exact(size)) {
            // The parser has already converted words to native byte order.
            let word = match *bytes {
                [a] => u32::from(a),
                [a, b] => u32::from(u16::from_ne_bytes([a, b])),
                [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
                _ => 0,
            };
            let value = self.bits.value(word) as f64 * slope + intercept;
            inexact.look_at(value);
            *pixel = value as f32;
        }
        if let Some(remark) = inexact.remark() {
            warn_once(&self.path, &remark);
        }
        Ok(())
    }
}

impl Bits {
    /// Extracts the value from a word; bits outside of it may be set to anything.
    fn value(self, word: u32) -> i64 {
        let value = i64::from(word >> (self.high + 1 - self.stored)) & ((1 << self.stored) - 1);
        match self.signed && value >> (self.stored - 1) & 1 == 1 {
            true => value - (1 << self.stored),
            false => value,
        }
    }
}

/// Typed access to a file's attributes; errors name the attribute.
struct Attributes<'a>(&'a DefaultDicomObject);

impl Attributes<'_> {
    fn text(&self, (tag, _): (Tag, &str)) -> Option<String> {
        let text = self.0.get(tag)?.to_str().ok()?.trim_matches(['\0', ' ']).to_owned();
        (!text.is_empty()).then_some(text)
    }

    fn number(&self, attribute: (Tag, &str)) -> Result<Option<usize>, String> {
        let parse = |text: String| text.parse().map_err(|_| format!("{} is {text:?}, not a valid number", attribute.1));
        self.text(attribute).map(parse).transpose()
    }

    fn required(&self, attribute: (Tag, &str)) -> Result<usize, String> {
        self.number(attribute)?.ok_or_else(|| missing(attribute))
    }

    fn float(&self, attribute: (Tag, &str)) -> Result<Option<f64>, String> {
        match self.text(attribute) {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(number) if f64::is_finite(number) => Ok(Some(number)),
                _ => Err(format!("{} is {text:?}, not a number", attribute.1)),
            },
        }
    }

    fn vector<const N: usize>(&self, attribute: (Tag, &str)) -> Result<[f64; N], String> {
        let text = self.text(attribute).ok_or_else(|| missing(attribute))?;
        let numbers: Vec<f64> = text.split('\\').filter_map(|number| number.trim().parse().ok()).collect();
        let finite = numbers.iter().all(|number| number.is_finite());
        let fits = <[f64; N]>::try_from(numbers).ok().filter(|_| finite);
        fits.ok_or_else(|| format!("{} is {text:?}, not {N} numbers", attribute.1))
    }
}

fn missing((tag, keyword): (Tag, &str)) -> String {
    format!("has no {keyword} ({:04X},{:04X})", tag.0, tag.1)
}

/// Transfer syntax UID with the name of its compression (DICOM PS3.6, annex A).
fn syntax_name(uid: &str) -> String {
    let name = match uid {
        "1.2.840.10008.1.2.1.99" => "deflate",
        "1.2.840.10008.1.2.2" => "big-endian, retired",
        "1.2.840.10008.1.2.5" => "RLE",
        uid if uid.starts_with("1.2.840.10008.1.2.4.5") || uid.ends_with(".4.70") => "JPEG",
        uid if uid.starts_with("1.2.840.10008.1.2.4.8") => "JPEG-LS",
        uid if uid.starts_with("1.2.840.10008.1.2.4.9") => "JPEG 2000",
        _ => "transfer syntax",
    };
    format!("{name}, {uid}")
}

#[cfg(test)]
mod tests {
    use dicom_core::{DataElement, PrimitiveValue, VR};
    use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
    use dicom_pixeldata::PixelDecoder;

    use super::*;

    #[test]
    fn ignores_bits_outside_of_the_stored_ones() {
        let bits = |stored, high, signed| Bits { allocated: 16, stored, high, signed };
        assert_eq!(bits(12, 11, false).value(0xF801), 0x801);
        assert_eq!(bits(12, 11, true).value(0x0801), 0x801 - 0x1000);
        assert_eq!(bits(12, 15, true).value(0x801F), 0x801 - 0x1000);
        assert_eq!(bits(16, 15, true).value(0xFFFF), -1);
        let wide = Bits { allocated: 32, stored: 32, high: 31, signed: true };
        assert_eq!(wide.value(u32::MAX), -1);
    }

    /// Comparison with `dicom-pixeldata` on the layouts that both support. It does not support 32 bits per pixel and
    /// ignores HighBit, and BitsStored of 8-bit pixels.
    #[test]
    fn unpacks_pixels_as_dicom_pixeldata_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slice.dcm");
        let layouts = [(8, 8), (16, 8), (16, 10), (16, 12), (16, 16)];
        for ((allocated, stored), signed) in layouts.into_iter().flat_map(|layout| [(layout, false), (layout, true)]) {
            for syntax in NATIVE {
                let object = object(syntax, [allocated, stored, stored - 1, u16::from(signed)]);
                object.write_to_file(&path).unwrap();
                let slice = SeriesFile::read(&path).unwrap().unwrap().slice.unwrap();
                let mut ours = vec![0.0; ROWS_COLUMNS[0] as usize * ROWS_COLUMNS[1] as usize];
                slice.read(&mut ours).unwrap();
                let theirs: Vec<f32> = object.decode_pixel_data().unwrap().to_vec().unwrap();
                assert_eq!(ours, theirs, "{allocated} {stored} {signed} {syntax}");
            }
        }
    }

    const ROWS_COLUMNS: [u16; 2] = [16, 18];

    /// A slice of pseudorandom bits; `bits`: BitsAllocated, BitsStored, HighBit, PixelRepresentation.
    fn object(syntax: &str, bits: [u16; 4]) -> DefaultDicomObject {
        let mut object = InMemDicomObject::new_empty();
        for ((tag, _), vr, text) in [
            (SERIES_INSTANCE_UID, VR::UI, "1.2.3"),
            (IMAGE_POSITION, VR::DS, "0\\0\\0"),
            (IMAGE_ORIENTATION, VR::DS, "1\\0\\0\\0\\1\\0"),
            (PIXEL_SPACING, VR::DS, "0.75\\0.5"),
            (PHOTOMETRIC, VR::CS, "MONOCHROME1"),
            (RESCALE_SLOPE, VR::DS, "1.7"),
            (RESCALE_INTERCEPT, VR::DS, "-1024"),
        ] {
            object.put(DataElement::new(tag, vr, PrimitiveValue::from(text)));
        }
        let [rows, columns] = ROWS_COLUMNS;
        let layout = [BITS_ALLOCATED, BITS_STORED, HIGH_BIT, PIXEL_REPRESENTATION].into_iter().zip(bits);
        for ((tag, _), value) in [(SAMPLES_PER_PIXEL, 1), (ROWS, rows), (COLUMNS, columns)].into_iter().chain(layout) {
            object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
        }
        let words = (0..u32::from(rows * columns)).map(|index| (index.wrapping_mul(2_654_435_761) >> 16) as u16);
        let (vr, pixels) = match bits[0] {
            8 => (VR::OB, PrimitiveValue::U8(words.map(|word| word as u8).collect())),
            _ => (VR::OW, PrimitiveValue::U16(words.collect())),
        };
        object.put(DataElement::new(PIXEL_DATA.0, vr, pixels));
        let meta = FileMetaTableBuilder::new()
            .transfer_syntax(syntax)
            .media_storage_sop_class_uid("1.2.840.10008.5.1.4.1.1.2")
            .media_storage_sop_instance_uid("1.2.3.4");
        object.with_meta(meta).unwrap()
    }
}
