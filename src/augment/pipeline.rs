//! The ordered list of transforms a sample goes through.

use super::cascade::{BitVolume, PreviousStage};
use super::draw::chance;
use super::spatial::{Spatial, in_plane};
use super::voxels::shape;
use super::{
    Contrast, Gamma, GaussianBlur, GaussianNoise, LowResolution, MaskOutside, Mirror, MultiplicativeBrightness,
};
use crate::rng::Stream;
use crate::store::{Patch, Region};

/// A spatial transform followed by named transforms, each with the probability that it is applied to a sample.
pub struct Pipeline {
    spatial: Spatial,
    steps: Vec<Step>,
    previous_stage: Option<PreviousStage>,
}

struct Step {
    name: &'static str,
    probability: f64,
    apply: Box<Apply>,
}

/// A transform with its settings bound.
type Apply = dyn Fn(&mut Patch, &mut Stream) + Send + Sync;

impl Pipeline {
    /// Begins a pipeline; add to it with [`Pipeline::then`].
    pub fn new(spatial: Spatial) -> Self {
        Self { spatial, steps: Vec::new(), previous_stage: None }
    }

    /// No augmentation: for validation, and for measuring the rest. `patch_size` is `(z, y, x)`.
    pub fn none(patch_size: [usize; 3]) -> Self {
        Self::new(Spatial::none(patch_size))
    }

    /// NVIDIA nnU-Net's list (zoom, noise, blur, brightness, contrast, mirror) with nnU-Net v2's ranges.
    ///
    /// `patch_size` is `(z, y, x)`, `mirror_axes` a subset of 0 (z), 1 (y) and 2 (x); `masked_channels` is the plans'
    /// `use_mask_for_norm`.
    pub fn nnunet_basic(patch_size: [usize; 3], mirror_axes: &[usize], masked_channels: &[bool]) -> Self {
        Self::new(Spatial::zoom(patch_size)).then_intensities().then_mirror_and_mask(mirror_axes, masked_channels)
    }

    /// nnU-Net v2's complete list, but for what [`Pipeline::with_previous_stage`] adds in a cascade; arguments as [`Pipeline::nnunet_basic`].
    pub fn nnunet(patch_size: [usize; 3], mirror_axes: &[usize], masked_channels: &[bool]) -> Self {
        let low_resolution = LowResolution { scale: 0.5..1.0, per_channel: 0.5, keep_z: in_plane(patch_size) };
        let gamma_inverted = Gamma { exponent: 0.7..1.5, inverted: true };
        let gamma = Gamma { exponent: 0.7..1.5, inverted: false };
        Self::new(Spatial::nnunet(patch_size))
            .then_intensities()
            .then("low resolution", 0.25, move |patch, rng| low_resolution.apply(patch, rng))
            .then("gamma inverted", 0.1, move |patch, rng| gamma_inverted.apply(patch, rng))
            .then("gamma", 0.3, move |patch, rng| gamma.apply(patch, rng))
            .then_mirror_and_mask(mirror_axes, masked_channels)
    }

    /// Adds a transform that is applied to a sample with this `probability`.
    pub fn then(
        mut self,
        name: &'static str,
        probability: f64,
        apply: impl Fn(&mut Patch, &mut Stream) + Send + Sync + 'static,
    ) -> Self {
        self.steps.push(Step { name, probability, apply: Box::new(apply) });
        self
    }

    /// Adds the last transforms of a cascade, those of the channels that its previous stage's segmentation becomes.
    pub fn with_previous_stage(self, previous_stage: PreviousStage) -> Self {
        Self { previous_stage: Some(previous_stage), ..self }
    }

    fn then_intensities(self) -> Self {
        let noise = GaussianNoise { std: 0.0..0.1 };
        let blur = GaussianBlur { sigma: 0.5..1.0, per_channel: 0.5 };
        let brightness = MultiplicativeBrightness { factor: 0.75..1.25 };
        let contrast = Contrast { factor: 0.75..1.25 };
        self.then("noise", 0.1, move |patch, rng| noise.apply(patch, rng))
            .then("blur", 0.2, move |patch, rng| blur.apply(patch, rng))
            .then("brightness", 0.15, move |patch, rng| brightness.apply(patch, rng))
            .then("contrast", 0.15, move |patch, rng| contrast.apply(patch, rng))
    }

    fn then_mirror_and_mask(self, mirror_axes: &[usize], masked_channels: &[bool]) -> Self {
        let mirror = Mirror { axes: mirror_axes.to_vec() };
        let pipeline = self.then("mirror", 1.0, move |patch, rng| mirror.apply(patch, rng));
        if !masked_channels.contains(&true) {
            return pipeline;
        }
        let mask = MaskOutside { channels: masked_channels.to_vec() };
        pipeline.then("mask outside", 1.0, move |patch, rng| mask.apply(patch, rng))
    }

    /// Extent of the patches that leave, `(z, y, x)`.
    pub fn patch_size(&self) -> [usize; 3] {
        self.spatial.patch_size()
    }

    /// Extent of the patches to read from the store, `(z, y, x)`: larger than [`Pipeline::patch_size`] where rotation
    /// or scaling needs a margin.
    pub fn read_patch_size(&self) -> [usize; 3] {
        self.spatial.read_patch_size()
    }

    /// Name and probability of each transform after the spatial one, in order.
    pub fn steps(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.steps.iter().map(|step| (step.name, step.probability))
    }

    /// The transform that cuts the patch.
    pub fn spatial(&self) -> &Spatial {
        &self.spatial
    }

    /// Applies the transform of this number of [`Pipeline::steps`], whatever its probability: to measure it alone.
    ///
    /// # Panics
    /// If there is no such transform.
    pub fn apply_step(&self, number: usize, patch: &mut Patch, rng: &mut Stream) {
        (self.steps[number].apply)(patch, rng);
    }

    /// In a cascade, what makes channels of the previous stage's segmentation.
    pub fn previous_stage(&self) -> Option<&PreviousStage> {
        self.previous_stage.as_ref()
    }

    /// Makes `patch`, of extent [`Pipeline::patch_size`], out of `read`, of extent [`Pipeline::read_patch_size`].
    /// Labels outside the image stay -1. In a cascade [`Pipeline::one_hot`] comes after it.
    pub fn apply<'a>(&self, read: impl Into<Region<'a>>, patch: &mut Patch, rng: &mut Stream) {
        self.spatial.apply(read, patch, rng);
        for step in &self.steps {
            if chance(step.probability, rng) {
                (step.apply)(patch, rng);
            }
        }
    }

    /// The channels that the network is given behind those of the image: one for each class of the previous stage's
    /// segmentation in a patch that [`Pipeline::apply`] has made; none without a cascade.
    ///
    /// # Panics
    /// If the patch lacks that segmentation.
    pub fn one_hot(&self, patch: &Patch, rng: &mut Stream) -> Vec<BitVolume> {
        let Some(previous_stage) = &self.previous_stage else { return Vec::new() };
        let labels = patch.previous.as_ref().and_then(|labels| labels.as_slice());
        previous_stage.one_hot(labels.expect("a cascade's patches have them, in C order"), shape(patch), rng)
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline")
            .field("spatial", &self.spatial)
            .field("steps", &self.steps().collect::<Vec<_>>())
            .field("previous_stage", &self.previous_stage)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, Array4};

    use super::*;
    use crate::augment::blank_patch;
    use crate::rng::{Purpose, stream};

    /// The previous stage's label map, here that of the labels, goes wherever these go, beyond the image too.
    #[test]
    fn the_previous_stage_is_turned_scaled_and_mirrored_with_the_labels() {
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
            // The image does not see that there is a previous stage.
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
