//! Reorientation of volumes for display.

use ndarray::{ArrayView2, ArrayView3, Axis};

use nnunet_image::Geometry;

/// Reorientation of a volume so that its axes `(z, y, x)` increase toward superior, posterior and left, by the nearest
/// permutation and flips of axes.
pub struct Reorientation {
    /// Source axis, in the order `(x, y, z)`, of x, y and z.
    axes: [usize; 3],
    flipped: [bool; 3],
    /// In mm, `(x, y, z)`, after reorientation.
    spacing: [f64; 3],
}

/// Anatomical plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    Axial,
    Coronal,
    Sagittal,
}

impl Reorientation {
    pub fn from_geometry(geometry: &Geometry) -> Self {
        const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let direction = &geometry.direction;
        let along = |axes: &[usize; 3]| (0..3).map(|row| direction[row][axes[row]].abs()).sum::<f64>();
        let axes =
            ORDERS.into_iter().fold(ORDERS[0], |best, axes| if along(&axes) > along(&best) { axes } else { best });
        Self {
            axes,
            flipped: std::array::from_fn(|row| direction[row][axes[row]] < 0.0),
            spacing: axes.map(|axis| geometry.spacing[2 - axis]),
        }
    }

    /// Reoriented view, `(z, y, x)`.
    pub fn view<'a, T>(&self, volume: ArrayView3<'a, T>) -> ArrayView3<'a, T> {
        let [x, y, z] = self.axes.map(|axis| 2 - axis);
        let mut view = volume.permuted_axes([z, y, x]);
        for (row, flipped) in self.flipped.into_iter().enumerate() {
            if flipped {
                view.invert_axis(Axis(2 - row));
            }
        }
        view
    }
}

impl Plane {
    pub const ALL: [Self; 3] = [Self::Axial, Self::Coronal, Self::Sagittal];

    /// Direction labels of the left, right, upper and lower edge.
    pub fn edges(self) -> [&'static str; 4] {
        match self {
            Self::Axial => ["R", "L", "A", "P"],
            Self::Coronal => ["R", "L", "S", "I"],
            Self::Sagittal => ["A", "P", "S", "I"],
        }
    }

    /// Axis of a reoriented view `(z, y, x)` perpendicular to the plane.
    pub fn across(self) -> Axis {
        match self {
            Self::Axial => Axis(0),
            Self::Coronal => Axis(1),
            Self::Sagittal => Axis(2),
        }
    }

    /// A slice of a reoriented view, first row at the top.
    pub fn slice<'a, T>(self, view: &ArrayView3<'a, T>, index: usize) -> ArrayView2<'a, T> {
        let mut slice = view.index_axis_move(self.across(), index);
        if self != Self::Axial {
            slice.invert_axis(Axis(0));
        }
        slice
    }

    /// Pixel size of a slice in mm, `(row, column)`.
    pub fn spacing(self, reorientation: &Reorientation) -> [f64; 2] {
        let [x, y, z] = reorientation.spacing;
        match self {
            Self::Axial => [y, x],
            Self::Coronal => [z, x],
            Self::Sagittal => [z, y],
        }
    }

    /// Index of the slice with the largest labeled area; the middle slice if nothing is labeled.
    pub fn largest_slice(self, labels: Option<&ArrayView3<i16>>, slices: usize) -> usize {
        let area = |slice: ArrayView2<i16>| slice.iter().filter(|label| **label > 0).count();
        let areas = labels.into_iter().flat_map(|labels| labels.axis_iter(self.across()).map(area).enumerate());
        let largest = areas.fold((slices / 2, 0), |best, next| if next.1 > best.1 { next } else { best });
        largest.0
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    #[test]
    fn images_of_any_orientation_look_the_same() {
        // Voxel values encode the position: 100 S + 10 P + L.
        let upright = Array3::from_shape_fn((2, 3, 4), |(z, y, x)| (100 * z + 10 * y + x) as i16);
        let reorientation = Reorientation::from_geometry(&Geometry::default());
        assert_eq!(reorientation.view(upright.view()), upright);

        // x increases to the right, y to superior, z to anterior: `RSA`.
        let direction = [[-1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]];
        let geometry = Geometry { direction, spacing: [3.0, 2.0, 1.0], ..Geometry::default() };
        assert_eq!(geometry.orientation(), "RSA");
        let stored = Array3::from_shape_fn((3, 2, 4), |(z, y, x)| (100 * y + 10 * (2 - z) + (3 - x)) as i16);
        let reorientation = Reorientation::from_geometry(&geometry);
        assert_eq!(reorientation.view(stored.view()), upright);
        assert_eq!(Plane::Axial.spacing(&reorientation), [3.0, 1.0]);
        assert_eq!(Plane::Coronal.spacing(&reorientation), [2.0, 1.0]);
        // Superior is at the top, right at the left.
        let view = reorientation.view(stored.view());
        assert_eq!(Plane::Coronal.slice(&view, 1)[[0, 0]], 110);
        assert_eq!(Plane::Axial.slice(&view, 1)[[0, 3]], 103);
        assert_eq!(Plane::Sagittal.slice(&view, 2)[[1, 2]], 22);
    }
}
