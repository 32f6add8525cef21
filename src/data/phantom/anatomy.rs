//! Random anatomy of a phantom, and its rendering as an image and label map.

use ndarray::{Array3, Axis};
use nnunet_image::{Geometry, LabelMap, Volume};
use rand::Rng;
use rand_distr::StandardNormal;

/// Tissue type at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tissue {
    Air,
    Body,
    /// Class 1.
    Organ,
    /// Class 2: the inner part of the organ, with the brightness of the body.
    Core,
    /// Distractor with the brightness of the organ: solid blobs and tubes.
    Distractor,
}

/// Shapes of one phantom, in mm along `(z, y, x)` from the corner of the volume, deformed by a smooth field.
pub(super) struct Anatomy {
    bend: [SmoothNoise; 3],
    bend_mm: f32,
    /// Width of the gap between organ and distractors, relative to the organ's size.
    gap: f32,
    body: Ellipsoid,
    organ: Ellipsoid,
    core: Ellipsoid,
    blobs: Vec<Ellipsoid>,
    tubes: Vec<Tube>,
}

/// Numbers of distractors; their total volume exceeds that of the organ.
const BLOBS: usize = 6;
const TUBES: usize = 3;
/// Extent in mm for which the sizes below are given; other volumes scale them.
const REFERENCE_EXTENT: f32 = 40.0;
/// Maximum number of retries for drawing a position outside the organ.
const MAX_TRIES: usize = 100;

struct Ellipsoid {
    centre: [f32; 3],
    semi_axes: [f32; 3],
}

/// An infinitely long cylinder.
struct Tube {
    point: [f32; 3],
    /// Unit vector.
    direction: [f32; 3],
    radius: f32,
}

impl Anatomy {
    /// Draws a random anatomy for a volume of `extent` mm.
    pub(super) fn new(extent: [f32; 3], rng: &mut impl Rng) -> Self {
        let unit = extent.into_iter().fold(f32::MAX, f32::min) / REFERENCE_EXTENT;
        let middle = extent.map(|extent| extent / 2.0);
        let body = Ellipsoid { centre: middle, semi_axes: extent.map(|extent| 0.55 * extent) };
        let organ = Ellipsoid {
            centre: std::array::from_fn(|axis| middle[axis] + extent[axis] * rng.random_range(-0.12..0.12)),
            semi_axes: std::array::from_fn(|_| unit * rng.random_range(9.5..12.5)),
        };
        let core = Ellipsoid {
            centre: std::array::from_fn(|axis| {
                organ.centre[axis] + organ.semi_axes[axis] * rng.random_range(-0.12..0.12)
            }),
            semi_axes: organ.semi_axes.map(|semi_axis| semi_axis * rng.random_range(0.62..0.72)),
        };
        let blobs = (0..BLOBS).map(|_| {
            let semi_axes = std::array::from_fn(|_| unit * rng.random_range(5.0..7.0));
            Ellipsoid { centre: draw_point_outside(&organ, extent, rng), semi_axes }
        });
        let blobs = blobs.collect();
        let tubes = (0..TUBES).map(|_| Tube {
            point: draw_point_outside(&organ, extent, rng),
            direction: unit_vector([1.0, rng.random_range(-0.7..0.7), rng.random_range(-0.7..0.7)]),
            radius: unit * rng.random_range(2.5..3.5),
        });
        let tubes = tubes.collect();
        let bend = std::array::from_fn(|_| SmoothNoise::new(extent, 12.0 * unit, rng));
        Self { bend, bend_mm: 2.0 * unit, gap: 0.2, body, organ, core, blobs, tubes }
    }

    /// Returns the tissue at a point in mm, `(z, y, x)`.
    pub(super) fn at(&self, point: [f32; 3]) -> Tissue {
        let point = std::array::from_fn(|axis| point[axis] + self.bend_mm * self.bend[axis].at(point));
        let from_organ = self.organ.level(point);
        if from_organ < 1.0 {
            return if self.core.level(point) < 1.0 { Tissue::Core } else { Tissue::Organ };
        }
        if self.body.level(point) > 1.0 {
            return Tissue::Air;
        }
        let is_distractor =
            self.blobs.iter().any(|blob| blob.level(point) < 1.0) || self.tubes.iter().any(|tube| tube.contains(point));
        if is_distractor && from_organ > 1.0 + self.gap { Tissue::Distractor } else { Tissue::Body }
    }
}

impl Ellipsoid {
    /// Returns the distance from the center relative to the surface: 0 at the center, 1 on the surface.
    fn level(&self, point: [f32; 3]) -> f32 {
        let squares = (0..3).map(|axis| ((point[axis] - self.centre[axis]) / self.semi_axes[axis]).powi(2));
        squares.sum::<f32>().sqrt()
    }
}

impl Tube {
    fn contains(&self, point: [f32; 3]) -> bool {
        let offset: [f32; 3] = std::array::from_fn(|axis| point[axis] - self.point[axis]);
        let along: f32 = (0..3).map(|axis| offset[axis] * self.direction[axis]).sum();
        let squared: f32 = offset.iter().map(|part| part * part).sum();
        squared - along * along < self.radius * self.radius
    }
}

/// Draws a point inside the volume and well outside the organ; returns the corner of the volume if none is found.
fn draw_point_outside(organ: &Ellipsoid, extent: [f32; 3], rng: &mut impl Rng) -> [f32; 3] {
    let place = || extent.map(|extent| extent * rng.random_range(0.1..0.9));
    std::iter::repeat_with(place).take(MAX_TRIES).find(|&point| organ.level(point) > 1.5).unwrap_or([0.0; 3])
}

fn unit_vector(vector: [f32; 3]) -> [f32; 3] {
    let length = vector.iter().map(|part| part * part).sum::<f32>().sqrt();
    vector.map(|part| part / length)
}

/// Standard deviation of the noise; the brightness of body and organ differs by [`BRIGHT`] - 1.
const NOISE: f32 = 0.12;
/// Brightness of the organ and its distractors; body and core have brightness 1.
const BRIGHT: f32 = 1.6;
/// Strength of the bias field: the standard deviation of its logarithm at lattice points.
const BIAS: f32 = 0.25;

/// A phantom image with its reference label map.
pub(super) struct Rendered {
    pub(super) image: Volume,
    pub(super) labels: LabelMap,
}

/// Brightness of the tissues before bias field, noise and scaling.
struct Texture {
    coarse: SmoothNoise,
    fine: SmoothNoise,
}

/// Renders a random phantom of about `shape` voxels `(z, y, x)` with a voxel size of about 1 mm.
pub(super) fn render(shape: [usize; 3], rng: &mut impl Rng) -> Rendered {
    let shape = shape.map(|extent| extent - extent / 12 + rng.random_range(0..=extent / 6));
    let spacing = [(); 3].map(|()| f64::from(rng.random_range(90..=110_u8)) / 100.0);
    let extent: [f32; 3] = std::array::from_fn(|axis| shape[axis] as f32 * spacing[axis] as f32);
    let anatomy = Anatomy::new(extent, rng);
    let texture = Texture { coarse: SmoothNoise::new(extent, 5.0, rng), fine: SmoothNoise::new(extent, 1.7, rng) };
    let bias = SmoothNoise::new(extent, extent[0] / 1.5, rng);
    // Every scanner has its own intensity scale.
    let scale = 100.0 * rng.random_range(-1.0..1.0_f32).exp2();

    let mut labels = Array3::zeros(shape);
    let image = Array3::from_shape_fn(shape, |(z, y, x)| {
        let point = std::array::from_fn(|axis| ([z, y, x][axis] as f32 + 0.5) * spacing[axis] as f32);
        let tissue = anatomy.at(point);
        labels[[z, y, x]] = label(tissue);
        let noise: f32 = rng.sample(StandardNormal);
        scale * (texture.brightness(tissue, point) * (BIAS * bias.at(point)).exp() + NOISE * noise)
    });
    let geometry = Geometry { spacing, ..Geometry::default() };
    Rendered {
        image: Volume { data: image.insert_axis(Axis(0)), geometry: geometry.clone() },
        labels: LabelMap { data: labels, geometry },
    }
}

impl Texture {
    fn brightness(&self, tissue: Tissue, point: [f32; 3]) -> f32 {
        match tissue {
            Tissue::Air => 0.1,
            Tissue::Body | Tissue::Core => 1.0 + 0.15 * self.coarse.at(point),
            Tissue::Organ => BRIGHT + 0.05 * self.coarse.at(point),
            Tissue::Distractor => BRIGHT + 0.35 * self.fine.at(point),
        }
    }
}

fn label(tissue: Tissue) -> i16 {
    match tissue {
        Tissue::Air | Tissue::Body | Tissue::Distractor => 0,
        Tissue::Organ => 1,
        Tissue::Core => 2,
    }
}

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

    fn volume_of(anatomy: &Anatomy, extent: [f32; 3], tissue: Tissue) -> usize {
        let mut count = 0;
        for z in 0..extent[0] as usize {
            for y in 0..extent[1] as usize {
                for x in 0..extent[2] as usize {
                    count += usize::from(anatomy.at([z, y, x].map(|index| index as f32 + 0.5)) == tissue);
                }
            }
        }
        count
    }

    #[test]
    fn distractors_outweigh_the_organ_which_contains_the_core() {
        let extent = [40.0, 48.0, 40.0];
        let (mut organs, mut distractors) = (0, 0);
        for index in 0..8 {
            let anatomy = Anatomy::new(extent, &mut stream(3, Purpose::Phantom, 0, index));
            let volume = |tissue| volume_of(&anatomy, extent, tissue);
            let (core, organ) = (volume(Tissue::Core), volume(Tissue::Organ));
            assert!(core > 400 && core < organ, "core {core}, organ {organ}");
            organs += organ;
            distractors += volume(Tissue::Distractor);
        }
        assert!(distractors as f64 > 1.2 * organs as f64, "distractors {distractors}, organs {organs}");
    }

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
