//! Ordered list of the transforms applied to a sample, and the presets of such lists.

use nnunet_core::rng::Stream;
use serde::{Deserialize, Serialize};

use super::axes::equal_axes;
use super::cascade::{BitVolume, PreviousStage};
use super::distributions::chance;
use super::spatial::{Spatial, in_plane};
use super::voxels::shape;
use super::{
    AdditiveBrightness, BlankRectangle, BlurWidths, BrightnessContrast, BrightnessGradient, Contrast, Gamma,
    GaussianBlur, GaussianNoise, LocalGamma, LowResolution, MaskOutside, MedianFilter, Mirror,
    MultiplicativeBrightness, Rot90, Sharpen, TransposeAxes,
};
use crate::store::{Patch, Region};

/// A spatial transform followed by named transforms, each with the probability of being applied to a sample.
pub struct Pipeline {
    spatial: Spatial,
    transforms: Vec<Transform>,
    previous_stage: Option<PreviousStage>,
}

struct Transform {
    name: &'static str,
    probability: f64,
    apply: Box<TransformFn>,
}

/// A transform bound to its settings.
type TransformFn = dyn Fn(&mut Patch, &mut Stream) + Send + Sync;

impl Pipeline {
    /// Creates a pipeline; add transforms with [`Pipeline::then`].
    pub fn new(spatial: Spatial) -> Self {
        Self { spatial, transforms: Vec::new(), previous_stage: None }
    }

    /// Creates the pipeline of a preset. `patch_size` is `(z, y, x)`, `mirror_axes` a subset of 0 (z), 1 (y) and 2 (x);
    /// `masked_channels` is the plans' `use_mask_for_norm`.
    pub fn preset(
        preset: AugmentationPreset,
        patch_size: [usize; 3],
        mirror_axes: &[usize],
        masked_channels: &[bool],
    ) -> Self {
        match preset {
            AugmentationPreset::Nnunet => Self::nnunet(patch_size, mirror_axes, masked_channels),
            AugmentationPreset::Nvidia => Self::nvidia(patch_size, mirror_axes),
            AugmentationPreset::Strong => Self::strong(patch_size, mirror_axes, masked_channels),
            AugmentationPreset::None => Self::none(patch_size),
        }
    }

    /// Creates a pipeline without augmentation, for validation and benchmarks. `patch_size` is `(z, y, x)`.
    pub fn none(patch_size: [usize; 3]) -> Self {
        Self::new(Spatial::none(patch_size))
    }

    /// Creates the transforms of NVIDIA's nnU-Net; arguments as in [`Pipeline::preset`].
    pub fn nvidia(patch_size: [usize; 3], mirror_axes: &[usize]) -> Self {
        let noise = GaussianNoise { std: 0.0..0.3 };
        let blur = GaussianBlur { sigma: 0.5..1.5, per_channel: 1.0, widths: BlurWidths::One };
        let brightness_contrast = BrightnessContrast { brightness: 0.7..1.3, contrast: 0.65..1.5 };
        Self::new(Spatial::nvidia(patch_size))
            .then_mirror(mirror_axes)
            .then("noise", 0.15, move |patch, rng| noise.apply(patch, rng))
            .then("blur", 0.15, move |patch, rng| blur.apply(patch, rng))
            .then("brightness and contrast", 0.15, move |patch, rng| brightness_contrast.apply(patch, rng))
    }

    /// Creates the full list of nnU-Net v2's `nnUNetTrainer`, except the cascade transforms, which
    /// [`Pipeline::with_previous_stage`] adds; arguments as in [`Pipeline::preset`].
    pub fn nnunet(patch_size: [usize; 3], mirror_axes: &[usize], masked_channels: &[bool]) -> Self {
        let noise = GaussianNoise { std: 0.0..0.1 };
        let blur = GaussianBlur { sigma: 0.5..1.0, per_channel: 0.5, widths: BlurWidths::PerAxis };
        let brightness = MultiplicativeBrightness { factor: 0.75..1.25 };
        let contrast = Contrast { factor: 0.75..1.25, per_channel: 1.0, keep_range: true };
        let low_resolution = LowResolution { scale: 0.5..1.0, per_channel: 0.5, keep_z: in_plane(patch_size) };
        let gamma_inverted = Gamma { exponent: 0.7..1.5, inverted: true };
        let gamma = Gamma { exponent: 0.7..1.5, inverted: false };
        Self::new(Spatial::nnunet(patch_size))
            .then("noise", 0.1, move |patch, rng| noise.apply(patch, rng))
            .then("blur", 0.2, move |patch, rng| blur.apply(patch, rng))
            .then("brightness", 0.15, move |patch, rng| brightness.apply(patch, rng))
            .then("contrast", 0.15, move |patch, rng| contrast.apply(patch, rng))
            .then("low resolution", 0.25, move |patch, rng| low_resolution.apply(patch, rng))
            .then("gamma inverted", 0.1, move |patch, rng| gamma_inverted.apply(patch, rng))
            .then("gamma", 0.3, move |patch, rng| gamma.apply(patch, rng))
            .then_mirror(mirror_axes)
            .then_mask(masked_channels)
    }

    /// Creates the transforms of nnU-Net v2's `nnUNetTrainerDA5`, without a cascade; arguments as in
    /// [`Pipeline::preset`].
    pub fn strong(patch_size: [usize; 3], mirror_axes: &[usize], masked_channels: &[bool]) -> Self {
        let median = MedianFilter { size: 2..8, per_channel: 0.5 };
        let blur = GaussianBlur { sigma: 0.3..1.5, per_channel: 0.5, widths: BlurWidths::PerChannel };
        let noise = GaussianNoise { std: 0.0..0.1 };
        let brightness = AdditiveBrightness { std: 0.5, per_channel: 0.5 };
        let contrasts = [true, false].map(|keep_range| Contrast { factor: 0.5..2.0, per_channel: 0.5, keep_range });
        let low_resolution = LowResolution { scale: 0.25..1.0, per_channel: 0.5, keep_z: in_plane(patch_size) };
        let gammas = ["gamma inverted", "gamma inverted again"];
        let rectangle = BlankRectangle::for_patch(patch_size);
        let gradient = BrightnessGradient { height: 1.0..5.0, per_channel: 0.5 };
        let local_gamma = LocalGamma { exponents: [0.01..0.8, 1.5..4.0], per_channel: 0.5 };
        let sharpen = Sharpen { strength: 0.1..1.0, per_channel: 0.5 };
        let mut pipeline = Self::new(Spatial::strong(patch_size));
        let axes = equal_axes(patch_size);
        if !axes.is_empty() {
            let (turn, exchange) = (Rot90 { axes: axes.clone() }, TransposeAxes { axes });
            pipeline = pipeline.then("quarter turn", 0.5, move |patch, rng| turn.apply(patch, rng)).then(
                "exchanged axes",
                0.5,
                move |patch, rng| exchange.apply(patch, rng),
            );
        }
        // The reference picks one of two transforms, then applies it with its probability, which is the same for both.
        pipeline = pipeline
            .then("median filter or blur", 0.2, move |patch, rng| match chance(0.5, rng) {
                true => median.apply(patch, rng),
                false => blur.apply(patch, rng),
            })
            .then("noise", 0.1, move |patch, rng| noise.apply(patch, rng))
            .then("brightness", 0.1, move |patch, rng| brightness.apply(patch, rng))
            .then("contrast", 0.2, move |patch, rng| contrasts[usize::from(chance(0.5, rng))].apply(patch, rng))
            .then("low resolution", 0.15, move |patch, rng| low_resolution.apply(patch, rng));
        for name in gammas {
            let gamma = Gamma { exponent: 0.7..1.5, inverted: true };
            pipeline = pipeline.then(name, 0.1, move |patch, rng| gamma.apply(patch, rng));
        }
        pipeline
            .then_mirror(mirror_axes)
            .then("blank rectangles", 0.4, move |patch, rng| rectangle.apply(patch, rng))
            .then("brightness gradient", 0.3, move |patch, rng| gradient.apply(patch, rng))
            .then("local gamma", 0.3, move |patch, rng| local_gamma.apply(patch, rng))
            .then("sharpening", 0.2, move |patch, rng| sharpen.apply(patch, rng))
            .then_mask(masked_channels)
    }

    /// Adds a transform that is applied to a sample with this `probability`.
    pub fn then(
        mut self,
        name: &'static str,
        probability: f64,
        apply: impl Fn(&mut Patch, &mut Stream) + Send + Sync + 'static,
    ) -> Self {
        self.transforms.push(Transform { name, probability, apply: Box::new(apply) });
        self
    }

    /// Adds the last transforms of a cascade: those on the channels made from the previous stage's segmentation.
    pub fn with_previous_stage(self, previous_stage: PreviousStage) -> Self {
        Self { previous_stage: Some(previous_stage), ..self }
    }

    fn then_mirror(self, axes: &[usize]) -> Self {
        let mirror = Mirror { axes: axes.to_vec() };
        self.then("mirror", 1.0, move |patch, rng| mirror.apply(patch, rng))
    }

    fn then_mask(self, masked_channels: &[bool]) -> Self {
        if !masked_channels.contains(&true) {
            return self;
        }
        let mask = MaskOutside { channels: masked_channels.to_vec() };
        self.then("mask outside", 1.0, move |patch, rng| mask.apply(patch, rng))
    }

    /// Returns the extent of the output patches, `(z, y, x)`.
    pub fn patch_size(&self) -> [usize; 3] {
        self.spatial.patch_size()
    }

    /// Returns the extent of the patches to read from the store, `(z, y, x)`; larger than [`Pipeline::patch_size`] if
    /// rotation or scaling needs a margin.
    pub fn read_patch_size(&self) -> [usize; 3] {
        self.spatial.read_patch_size()
    }

    /// Returns the name and probability of each transform after the spatial one, in order.
    pub fn transforms(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.transforms.iter().map(|transform| (transform.name, transform.probability))
    }

    /// Returns the spatial transform, which crops the patch.
    pub fn spatial(&self) -> &Spatial {
        &self.spatial
    }

    /// Applies transform `number` of [`Pipeline::transforms`] regardless of its probability, to benchmark it alone.
    ///
    /// # Panics
    /// Panics if there is no such transform.
    pub fn apply_transform(&self, number: usize, patch: &mut Patch, rng: &mut Stream) {
        (self.transforms[number].apply)(patch, rng);
    }

    /// Returns the transform that makes channels of the previous stage's segmentation, in a cascade.
    pub fn previous_stage(&self) -> Option<&PreviousStage> {
        self.previous_stage.as_ref()
    }

    /// Writes `patch`, of extent [`Pipeline::patch_size`], from `read`, of extent [`Pipeline::read_patch_size`]. Labels
    /// outside the image stay -1. In a cascade, call [`Pipeline::one_hot`] afterwards.
    pub fn apply<'a>(&self, read: impl Into<Region<'a>>, patch: &mut Patch, rng: &mut Stream) {
        self.spatial.apply(read, patch, rng);
        for transform in &self.transforms {
            if chance(transform.probability, rng) {
                (transform.apply)(patch, rng);
            }
        }
    }

    /// Returns the input channels that follow those of the image: one per class of the previous stage's segmentation,
    /// from a patch produced by [`Pipeline::apply`]; empty without a cascade.
    ///
    /// # Panics
    /// Panics if the patch lacks this segmentation.
    pub fn one_hot(&self, patch: &Patch, rng: &mut Stream) -> Vec<BitVolume> {
        let Some(previous_stage) = &self.previous_stage else { return Vec::new() };
        let labels = patch.previous.as_ref().and_then(|labels| labels.as_slice());
        previous_stage.one_hot(labels.expect("cascade patches have previous labels in C order"), shape(patch), rng)
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline")
            .field("spatial", &self.spatial)
            .field("transforms", &self.transforms().collect::<Vec<_>>())
            .field("previous_stage", &self.previous_stage)
            .finish()
    }
}

/// Augmentation transforms of training patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum AugmentationPreset {
    /// Complete list of nnU-Net v2.
    Nnunet,
    /// Shorter list of NVIDIA's nnU-Net: zoom, mirroring, noise, blur, brightness and contrast.
    #[serde(alias = "basic")]
    #[cfg_attr(feature = "clap", value(alias = "basic"))]
    Nvidia,
    /// Longest list of nnU-Net v2 (`nnUNetTrainerDA5`).
    Strong,
    /// No augmentation.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::blank_patch;
    use ndarray::{Array3, Array4};
    use nnunet_core::rng::{Purpose, stream};

    /// The previous stage's label map, here equal to the labels, is transformed like the labels, also outside the
    /// image.
    #[test]
    fn the_previous_stage_is_transformed_together_with_the_labels() {
        let pipeline = Pipeline::nnunet([12, 14, 16], &[0, 1, 2], &[true]);
        let pipeline = pipeline.with_previous_stage(PreviousStage::new(vec![1, 2]));
        let labels = Array3::from_shape_fn((20, 18, 22), |(z, y, x)| ((z / 5 + y / 6 + x / 4) % 4) as i16 - 1);
        let data = Array4::from_shape_fn((1, 20, 18, 22), |(_, z, y, x)| (z * y + x) as f32);
        let case = Patch { data, previous: Some(labels.clone()), labels };
        let region = Region { lo: [-4, -3, -5], size: pipeline.read_patch_size(), ..Region::from(&case) };
        let mut plain = blank_patch(1, [12, 14, 16]);
        let mut patch = Patch { previous: Some(Array3::zeros((12, 14, 16))), ..plain.clone() };
        for index in 0..100 {
            let rng = || stream(2, Purpose::Augment, 0, index);
            pipeline.apply(region, &mut patch, &mut rng());
            assert_eq!(patch.previous.as_ref(), Some(&patch.labels));
            // The previous stage does not affect the image.
            pipeline.apply(region, &mut plain, &mut rng());
            assert!(plain.data == patch.data && plain.labels == patch.labels);

            let one_hot = pipeline.one_hot(&patch, &mut rng());
            let is_class = |(class, label): (&BitVolume, i16)| {
                patch.labels.indexed_iter().all(|((z, y, x), other)| class.contains([z, y, x]) == (*other == label))
            };
            assert!(one_hot.iter().zip([1, 2]).all(is_class));
        }
        assert!(Pipeline::none([4; 3]).one_hot(&plain, &mut stream(2, Purpose::Augment, 0, 0)).is_empty());
    }
}
