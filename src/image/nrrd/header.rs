//! Parsing of NRRD headers.

use std::path::Path;

use super::axes::Axes;
use super::fields::Fields;
use crate::ImageError;
use crate::raw_voxels::RawVoxels;
use crate::text_header::TextHeader;

/// A validated header.
pub struct Header {
    /// Extents in file order, fastest axis first.
    pub size: Vec<usize>,
    pub axes: Axes,
    pub raw_voxels: RawVoxels,
}

impl Header {
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let text = TextHeader::read(path, str::is_empty)?;
        let fail = |defect: String| ImageError::new(path, defect);
        if !text.lines.first().is_some_and(|magic| magic.starts_with("NRRD000")) {
            return Err(fail("is not an NRRD file: it does not start with NRRD000".into()));
        }
        let fields = Fields::parse(&text.lines);
        let size = fields.size().map_err(fail)?;
        let axes = Axes::new(&fields, &size).map_err(fail)?;
        let raw_voxels = fields.raw_voxels(path, text.len, size.iter().product())?;
        Ok(Self { size, axes, raw_voxels })
    }

    /// File indices of the axes `(channel, z, y, x)`; `None` for an axis the file does not have.
    pub fn order(&self) -> [Option<usize>; 4] {
        let spatial = |axis: usize| self.axes.spatial.get(axis).copied();
        [self.axes.channel, spatial(2), spatial(1), spatial(0)]
    }
}
