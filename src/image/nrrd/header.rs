//! Parsing of NRRD headers.

use std::path::Path;

use super::axes::Axes;
use super::fields::Fields;
use crate::ImageError;
use crate::stored::Stored;
use crate::text_header::TextHeader;

/// A validated header.
pub struct Header {
    /// Extents in file order, fastest axis first.
    pub size: Vec<usize>,
    pub axes: Axes,
    pub stored: Stored,
}

impl Header {
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let text = TextHeader::read(path, str::is_empty)?;
        let fail = |defect: String| ImageError::new(path, defect);
        if !text.lines.first().is_some_and(|magic| magic.starts_with("NRRD000")) {
            return Err(fail("is not an NRRD file: it does not start with NRRD000".into()));
        }
        let fields = Fields::of(&text.lines);
        let size = fields.size().map_err(fail)?;
        let axes = Axes::of(&fields, &size).map_err(fail)?;
        let stored = fields.stored(path, text.len, size.iter().product())?;
        Ok(Self { size, axes, stored })
    }

    /// File indices of the axes `(channel, z, y, x)`; `None` for an axis the file does not have.
    pub fn order(&self) -> [Option<usize>; 4] {
        let spatial = |axis: usize| self.axes.spatial.get(axis).copied();
        [self.axes.channel, spatial(2), spatial(1), spatial(0)]
    }
}
