//! Geometry from the forms of a NIfTI header, and forms from a geometry.

use super::affine::{self, Affine};
use super::stored_forms::NiftiForms;
use crate::Geometry;

/// `NIFTI_UNITS_MM` of nifti1.h.
const MILLIMETERS: u8 = 2;
/// `NIFTI_XFORM_SCANNER_ANAT` of nifti1.h.
const SCANNER: i16 = 1;
/// Names of the axes.
const AXES: [&str; 3] = ["x", "y", "z"];

impl NiftiForms {
    /// Forms in mm that state a geometry: the sform, and the qform if the directions are orthonormal.
    pub(super) fn from_geometry(geometry: &Geometry, is_plane: bool) -> Self {
        let mut geometry = geometry.clone();
        if is_plane {
            // The spacing across a plane is not stored.
            geometry.spacing[0] = 1.0;
        }
        let sform = affine::from_geometry(&geometry);
        let mut direction = geometry.direction;
        for (row, entries) in direction.iter_mut().enumerate() {
            entries.iter_mut().for_each(|entry| *entry *= affine::to_lps(row));
        }
        let has_qform = affine::is_orthonormal(direction);
        let (quaternion, qfac) = if has_qform { affine::to_quaternion(direction) } else { ([0.0; 3], 1.0) };
        let [z, y, x] = geometry.spacing;
        Self {
            is_plane,
            units: MILLIMETERS,
            pixdim: [qfac, x, y, z],
            qform_code: if has_qform { SCANNER } else { 0 },
            sform_code: SCANNER,
            quaternion,
            offset: if has_qform { [0, 1, 2].map(|row: usize| sform[row][3]) } else { [0.0; 3] },
            sform,
        }
    }

    /// Geometry of an image with these extents `(x, y, z)`: that of the sform, else of the qform, else of the voxel
    /// sizes, as nibabel does. A form that is singular or not finite is skipped, with a remark.
    ///
    /// # Errors
    /// Returns a message if no form can be used.
    pub(super) fn geometry(&self, extents: [usize; 3]) -> Result<(Geometry, Option<String>), String> {
        let mut unusable = Vec::new();
        if self.sform_code > 0 {
            match self.usable(self.sform) {
                Ok(geometry) => return Ok((geometry, None)),
                Err(defect) => unusable.push(format!("its sform {defect}")),
            }
        }
        let sizes = self.sizes();
        let had_sform = !unusable.is_empty();
        if self.qform_code > 0 && (sizes.is_ok() || !had_sform) {
            let size = sizes.clone().unwrap_or_else(|_| self.sizes_or_one());
            let qfac = if self.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
            match self.usable(affine::from_quaternion(self.quaternion, self.offset, size, qfac)) {
                Ok(geometry) => {
                    unusable.extend(sizes.err());
                    return Ok((geometry, remark(unusable, "the qform is used")));
                }
                Err(defect) => unusable.push(format!("its qform {defect}")),
            }
        }
        let size = match sizes {
            Ok(size) => size,
            Err(defect) if !unusable.is_empty() => {
                return Err(format!("{}, {defect}: its voxels have no place", unusable.join(", ")));
            }
            Err(defect) => {
                unusable.push(defect);
                self.sizes_or_one()
            }
        };
        let geometry = self.usable(centered(size, extents)).map_err(|defect| format!("its pixdim {defect}"))?;
        Ok((geometry, remark(unusable, "pixdim is used")))
    }

    /// Geometry of an affine in the units of the file.
    fn usable(&self, mut affine: Affine) -> Result<Geometry, String> {
        let scale = self.millimeters();
        affine.iter_mut().flatten().for_each(|entry| *entry *= scale);
        if affine.iter().flatten().any(|entry| !entry.is_finite()) {
            return Err("is not finite".to_owned());
        }
        if self.is_plane {
            set_normal(&mut affine);
        }
        let mut geometry = affine::to_geometry(affine).ok_or("has a column of zeros")?;
        if self.is_plane {
            let [_, y, x] = geometry.spacing;
            geometry.spacing[0] = Geometry::spacing_across_plane([y, x]);
        }
        match geometry.invalid_value() {
            None => Ok(geometry),
            Some(defect) => Err(format!("has {defect}")),
        }
    }

    /// Voxel sizes along x, y and z.
    fn sizes(&self) -> Result<[f64; 3], String> {
        let count = if self.is_plane { 2 } else { 3 };
        match (1..=count).find(|axis| !is_size(self.pixdim[*axis])) {
            Some(axis) => Err(format!("pixdim along {} is {}", AXES[axis - 1], self.pixdim[axis])),
            None => Ok(self.sizes_or_one()),
        }
    }

    /// Voxel sizes, 1 for those that are not stated.
    fn sizes_or_one(&self) -> [f64; 3] {
        std::array::from_fn(|axis| Some(self.pixdim[axis + 1].abs()).filter(|size| is_size(*size)).unwrap_or(1.0))
    }

    /// Millimeters per unit of length of the file.
    fn millimeters(&self) -> f64 {
        match self.units {
            1 => 1000.0,
            3 => 0.001,
            _ => 1.0,
        }
    }

    /// Forms for label maps of the image: without values that no reader can use.
    pub(super) fn repaired(mut self, geometry: &Geometry) -> Self {
        let scale = self.millimeters();
        if self.usable(self.sform).is_err() {
            self.sform_code = 0;
        }
        let qform = affine::from_quaternion(self.quaternion, self.offset, self.sizes_or_one(), 1.0);
        if self.usable(qform).is_err() {
            self.qform_code = 0;
        }
        for axis in 0..3 {
            let size = &mut self.pixdim[axis + 1];
            let is_across = self.is_plane && axis == 2;
            *size = match is_size(*size) {
                true => *size,
                false if is_across => 1.0,
                false => geometry.spacing[2 - axis] / scale,
            };
        }
        let unset = |value: &mut f64| *value = if value.is_finite() { *value } else { 0.0 };
        self.quaternion.iter_mut().chain(&mut self.offset).for_each(unset);
        self.sform.iter_mut().flatten().for_each(unset);
        unset(&mut self.pixdim[0]);
        self
    }

    /// Geometry of the qform, which ITK prefers, if the sform was read.
    pub(crate) fn by_qform(&self) -> Option<Geometry> {
        if self.sform_code <= 0 || self.qform_code <= 0 {
            return None;
        }
        let qfac = if self.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
        self.usable(affine::from_quaternion(self.quaternion, self.offset, self.sizes_or_one(), qfac)).ok()
    }

    /// Whether these forms state this geometry.
    pub(super) fn states(&self, geometry: &Geometry, extents: [usize; 3]) -> bool {
        self.geometry(extents).is_ok_and(|(stated, _)| stated.difference(geometry).is_none())
    }
}

fn is_size(size: f64) -> bool {
    size != 0.0 && size.is_finite()
}

fn remark(unusable: Vec<String>, consequence: &str) -> Option<String> {
    (!unusable.is_empty()).then(|| format!("{}; {consequence}", unusable.join(", ")))
}

/// Affine of an image without orientation. As in nibabel, the origin is the center, and the x axis points to the left.
fn centered(size: [f64; 3], extents: [usize; 3]) -> Affine {
    std::array::from_fn(|row| {
        let size = if row == 0 { -size[row] } else { size[row] };
        let mut entries = [0.0; 4];
        entries[row] = size;
        entries[3] = -size * (extents[row] as f64 - 1.0) / 2.0;
        entries
    })
}

/// Replaces the third column, which files with two axes may leave empty, by the unit normal of the first two.
fn set_normal(affine: &mut Affine) {
    let [a, b] = [0, 1].map(|column: usize| [0, 1, 2].map(|row: usize| affine[row][column]));
    let normal = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
    let length = normal.iter().map(|entry| entry * entry).sum::<f64>().sqrt();
    for row in 0..3 {
        affine[row][2] = if length > 0.0 { normal[row] / length } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of 2 x 3 x 4 mm with an sform and a qform at different places.
    fn forms() -> NiftiForms {
        NiftiForms {
            is_plane: false,
            units: MILLIMETERS,
            pixdim: [1.0, 2.0, 3.0, 4.0],
            qform_code: 1,
            sform_code: 2,
            quaternion: [0.0; 3],
            offset: [10.0, 20.0, 30.0],
            sform: [[2.0, 0.0, 0.0, 1.0], [0.0, 3.0, 0.0, 2.0], [0.0, 0.0, 4.0, 3.0]],
        }
    }

    fn geometry(forms: &NiftiForms) -> (Geometry, Option<String>) {
        forms.geometry([5, 6, 7]).unwrap()
    }

    #[test]
    fn units_scale_every_form() {
        for (units, scale) in [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)] {
            for (sform_code, qform_code, x) in [(2, 1, -1.0), (0, 1, -10.0), (0, 0, 4.0)] {
                let (geometry, remark) = geometry(&NiftiForms { units, sform_code, qform_code, ..forms() });
                assert_eq!(remark, None);
                for (found, expected) in geometry.spacing.into_iter().zip([4.0, 3.0, 2.0]) {
                    assert!((found - expected * scale).abs() < 1e-9, "{units} {sform_code} {qform_code}: {geometry:?}");
                }
                // Without forms, the origin is the center: 2 mm x (5 - 1) / 2 to the left.
                let expected = if sform_code + qform_code == 0 { -4.0 } else { x };
                assert!((geometry.origin[0] - expected * scale).abs() < 1e-9, "{units} {sform_code}: {geometry:?}");
            }
        }
    }

    #[test]
    fn an_unusable_form_gives_way_to_the_next() {
        let zero = NiftiForms { sform: [[0.0; 4]; 3], ..forms() };
        let flat = NiftiForms { sform: [[2.0, 4.0, 0.0, 1.0], [1.0, 2.0, 0.0, 2.0], [0.0, 0.0, 4.0, 3.0]], ..forms() };
        let nan = NiftiForms { sform: [[f64::NAN; 4]; 3], ..forms() };
        for forms in [zero, flat, nan] {
            let (qform, remark) = geometry(&forms);
            assert_eq!((qform.spacing, qform.origin), ([4.0, 3.0, 2.0], [-10.0, -20.0, 30.0]));
            assert!(remark.unwrap().contains("sform"));
            let repaired = forms.clone().repaired(&qform);
            assert_eq!((repaired.sform_code, repaired.qform_code), (0, 1));
            assert!(repaired.states(&qform, [5, 6, 7]));

            let no_qform = NiftiForms { qform_code: 0, ..forms };
            let (pixdim, remark) = geometry(&no_qform);
            assert_eq!((pixdim.spacing, pixdim.origin), ([4.0, 3.0, 2.0], [-4.0, 7.5, -12.0]));
            assert!(remark.unwrap().contains("pixdim is used"));

            let nothing = NiftiForms { pixdim: [1.0, 2.0, 0.0, 4.0], ..no_qform };
            let error = nothing.geometry([5, 6, 7]).unwrap_err();
            assert!(error.contains("sform") && error.contains("pixdim along y is 0"), "{error}");
        }
    }

    #[test]
    fn a_plane_needs_no_third_column() {
        for column in [0.0, 7.0] {
            let mut plane = NiftiForms { is_plane: true, pixdim: [1.0, 2.0, 3.0, 0.0], ..forms() };
            plane.sform[2][2] = column;
            for sform_code in [0, 2] {
                let plane = NiftiForms { sform_code, ..plane.clone() };
                let (geometry, remark) = geometry(&plane);
                assert_eq!((geometry.spacing, remark), ([999.0 * 3.0, 3.0, 2.0], None));
                assert!((geometry.direction[2][2] - 1.0).abs() < 1e-9);
            }
        }
        let plane = Geometry::from_plane(&crate::Plane {
            spacing: [0.5, 0.75],
            origin: [1.0, 2.0],
            direction: [[0.0, 1.0], [1.0, 0.0]],
        });
        let forms = NiftiForms::from_geometry(&plane, true);
        assert_eq!(
            forms
                .geometry([5, 6, 1])
                .unwrap()
                .0
                .difference(&Geometry { direction: [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]], ..plane }),
            None
        );
    }
}
