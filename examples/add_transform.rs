//! Add an augmentation transform to a pipeline and apply it to a patch.
//!
//! `cargo run --example add_transform`
//!
//! A transform takes all random numbers from the stream it is given, so that samples are reproducible.
//! `docs/how-to/add-a-transform.md` describes how to make it part of a preset of `nnunet-dist train`.

use std::ops::Range;

use ndarray::{Array3, Array4, Axis};
use nnunet_dist::augment::{Pipeline, Spatial};
use nnunet_dist::rng::{Purpose, Stream, stream};
use nnunet_dist::store::Patch;
use rand::Rng;

/// Adds a random constant to each channel.
#[derive(Clone, Debug)]
pub struct Shift {
    /// Range of the constant, in units of the normalized intensity.
    pub amount: Range<f32>,
}

impl Shift {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        for mut channel in patch.data.axis_iter_mut(Axis(0)) {
            let amount = rng.random_range(self.amount.clone());
            channel += amount;
        }
    }
}

fn main() {
    let size = [16, 20, 20];
    let shift = Shift { amount: -0.5..0.5 };
    // The transform changes every sample; in a preset, its probability is typically 0.1 to 0.3.
    let pipeline = Pipeline::new(Spatial::none(size)).then("shift", 1.0, move |patch, rng| shift.apply(patch, rng));
    let read = patch(size);
    for sample in 0..3 {
        println!("sample {sample}: mean intensity {:+.3}", mean_after(&pipeline, &read, sample));
    }
}

/// Mean intensity of a patch after augmentation. Equal sample numbers give equal results.
pub fn mean_after(pipeline: &Pipeline, read: &Patch, sample: u64) -> f32 {
    let mut augmented = patch(pipeline.patch_size());
    pipeline.apply(read, &mut augmented, &mut stream(0, Purpose::Augment, 0, sample));
    assert_eq!(augmented.labels, read.labels, "an intensity transform does not change the labels");
    augmented.data.mean().unwrap_or_default()
}

/// A patch with two channels that contain a cube of label 1, which is brighter than its surroundings.
pub fn patch([z, y, x]: [usize; 3]) -> Patch {
    let is_inside = |z: usize, y: usize, x: usize| (4..12).contains(&z) && (6..14).contains(&y) && (6..14).contains(&x);
    Patch {
        data: Array4::from_shape_fn((2, z, y, x), |(_, z, y, x)| if is_inside(z, y, x) { 1.0 } else { -0.1 }),
        labels: Array3::from_shape_fn((z, y, x), |(z, y, x)| i16::from(is_inside(z, y, x))),
        previous: None,
    }
}
