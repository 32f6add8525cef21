//! Smooth random fields.

use rand::Rng;
use rand_distr::StandardNormal;

/// Value noise: normal values on a lattice, interpolated smoothly between its points (Perlin's fade polynomial `3t^2 -
/// 2t^3`).
///
/// The lattice covers the box from the origin to `extent`; points outside take the value at its surface.
pub(super) struct SmoothNoise {
    values: Vec<f32>,
    /// Number of lattice points along `(z, y, x)`.
    points: [usize; 3],
    /// Lattice spacing in mm.
    wavelength: f32,
}

impl SmoothNoise {
    /// Draws a random field over a box of `extent` mm that varies over `wavelength` mm.
    pub(super) fn new(extent: [f32; 3], wavelength: f32, rng: &mut impl Rng) -> Self {
        let points = extent.map(|extent| (extent / wavelength).ceil() as usize + 2);
        let values = (0..points.iter().product()).map(|_| rng.sample(StandardNormal)).collect();
        Self { values, points, wavelength }
    }

    /// Returns the field at a point in mm, `(z, y, x)`.
    pub(super) fn at(&self, point: [f32; 3]) -> f32 {
        let mut corner = [0; 3];
        let mut weight = [0.0; 3];
        for axis in 0..3 {
            let last = (self.points[axis] - 2) as f32;
            let position = (point[axis] / self.wavelength).clamp(0.0, last + 0.999);
            corner[axis] = position as usize;
            let t = position - position.floor();
            weight[axis] = t * t * (3.0 - 2.0 * t);
        }
        let [_, rows, columns] = self.points;
        let along_x = |z: usize, y: usize| {
            let start = ((corner[0] + z) * rows + corner[1] + y) * columns + corner[2];
            mix(self.values[start], self.values[start + 1], weight[2])
        };
        let along_y = |z: usize| mix(along_x(z, 0), along_x(z, 1), weight[1]);
        mix(along_y(0), along_y(1), weight[0])
    }
}

fn mix(a: f32, b: f32, weight: f32) -> f32 {
    a + (b - a) * weight
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_core::rng::{Purpose, stream};

    #[test]
    fn the_field_is_continuous_and_takes_the_lattice_values() {
        let noise = SmoothNoise::new([10.0, 12.0, 14.0], 4.0, &mut stream(1, Purpose::Phantom, 0, 0));
        assert_eq!(noise.points, [5, 5, 6]);
        assert_eq!(noise.at([4.0, 8.0, 12.0]), noise.values[(5 + 2) * 6 + 3]);
        let line: Vec<f32> = (0..1400).map(|step| noise.at([3.0, 5.0, step as f32 * 0.01])).collect();
        let largest_step = line.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(0.0, f32::max);
        let range = line.iter().fold(f32::MIN, |a, &b| a.max(b)) - line.iter().fold(f32::MAX, |a, &b| a.min(b));
        assert!(range > 0.1 && largest_step < 0.03, "range {range}, step {largest_step}");
    }

    #[test]
    fn points_outside_take_the_value_at_the_surface() {
        let noise = SmoothNoise::new([4.0; 3], 2.0, &mut stream(2, Purpose::Phantom, 0, 0));
        assert_eq!(noise.at([-5.0, 2.0, 2.0]), noise.at([0.0, 2.0, 2.0]));
        assert!(noise.at([90.0; 3]).is_finite());
    }
}
