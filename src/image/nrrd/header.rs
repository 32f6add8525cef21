//! What the header of an NRRD file says.

use std::path::Path;

use super::axes::Axes;
use super::fields::Fields;
use crate::ImageError;
use crate::stored::Stored;
use crate::text_header::TextHeader;

/// A header, checked.
pub struct Header {
    /// Extents in the order of the file, the fastest axis first.
    pub size: Vec<usize>,
    pub axes: Axes,
    pub stored: Stored,
}

impl Header {
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let text = TextHeader::read(path, str::is_empty)?;
        let fail = |defect: String| ImageError::new(path, defect);
        if !text.lines.first().is_some_and(|magic| magic.starts_with("NRRD000")) {
            return Err(fail("is not an NRRD file: it does not begin with NRRD000".into()));
        }
        let fields = Fields::of(&text.lines);
        let size = fields.size().map_err(fail)?;
        let axes = Axes::of(&fields, &size).map_err(fail)?;
        let stored = fields.stored(path, text.len, size.iter().product())?;
        Ok(Self { size, axes, stored })
    }

    /// The file's axes of channels, z, y and x, where there are such.
    pub fn order(&self) -> [Option<usize>; 4] {
        let spatial = |axis: usize| self.axes.spatial.get(axis).copied();
        [self.axes.channel, spatial(2), spatial(1), spatial(0)]
    }
}
