//! Rendering of an anatomy as an image and label map.

use ndarray::{Array3, Axis};
use rand::Rng;
use rand_distr::StandardNormal;

use super::anatomy::{Anatomy, Tissue};
use super::noise::SmoothNoise;
use nnunet_image::{Geometry, LabelMap, Volume};

/// Standard deviation of the noise; the brightness of body and organ differs by [`BRIGHT`] - 1.
const NOISE: f32 = 0.12;
/// Brightness of the organ and its look-alikes; body and core have brightness 1.
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
