//! The largest patch, and batch of it, that a GPU's memory allows.

use super::configuration::lift;
use super::{NetworkShape, Topology, feature_map_size};

/// Feature maps of the first stage; doubled at every stage up to a limit.
const BASE_FEATURES: usize = 32;

/// Convolutions per stage of encoder and decoder.
const CONVS: usize = 2;

/// Samples in a batch, at least.
const MIN_BATCH: f64 = 2.0;

/// A batch never holds more than this part of the dataset's voxels.
const MAX_PART_OF_DATASET: f64 = 0.05;

/// What is known to fit into a GPU, and what to start from; one set of numbers for each number of axes
/// (nnU-Net's `default_experiment_planner.py`).
struct Reference {
    /// Elements of the feature maps of one sample.
    feature_maps: f64,
    /// Samples in the batch that fitted.
    batch: f64,
    /// Memory of that GPU in GB.
    gpu_memory_gb: f64,
    max_features: usize,
    /// Voxels of the patch that the search starts from, before it is clipped to the image.
    initial_voxels: f64,
}

const REFERENCE_2D: Reference = Reference {
    feature_maps: 85e6,
    batch: 12.0,
    gpu_memory_gb: 8.0,
    max_features: 512,
    initial_voxels: 2048.0 * 2048.0,
};

const REFERENCE_3D: Reference = Reference {
    feature_maps: 560e6,
    batch: 2.0,
    gpu_memory_gb: 8.0,
    max_features: 320,
    initial_voxels: 256.0 * 256.0 * 256.0,
};

/// What a patch is to be chosen for.
pub(super) struct Demand<'a> {
    /// Target spacing in mm, `(z, y, x)` or `(y, x)`.
    pub spacing: &'a [f64],
    /// Median shape of the resampled images, with as many axes.
    pub median_shape: &'a [f64],
    /// Voxels of the whole resampled dataset.
    pub dataset_voxels: f64,
    pub classes: usize,
    pub gpu_memory_gb: f64,
}

/// A patch, a batch of it and the network for it.
pub(super) struct Fit {
    pub patch_size: Vec<usize>,
    pub batch_size: usize,
    pub shape: NetworkShape,
}

/// GB that the planner takes a training step to need of a GPU, in proportion to what is known to fit into one.
///
/// `patch` is in voxels `(z, y, x)`, with a z extent of 1 for a 2D network; `classes` includes the background.
pub fn assumed_memory_gb(shape: &NetworkShape, patch: [usize; 3], classes: usize, batch_size: usize) -> f64 {
    let reference = if patch[0] == 1 { &REFERENCE_2D } else { &REFERENCE_3D };
    let size = feature_map_size(shape, patch, classes) as f64;
    size / reference.feature_maps * (batch_size as f64 / reference.batch) * reference.gpu_memory_gb
}

impl Demand<'_> {
    /// The largest fitting patch in the proportions of the image; `None` where not even the smallest fits.
    ///
    /// Memory that a patch of the whole image leaves goes into the batch.
    pub(super) fn fit(&self) -> Option<Fit> {
        let reference = if self.spacing.len() == 2 { &REFERENCE_2D } else { &REFERENCE_3D };
        let budget = reference.feature_maps * (self.gpu_memory_gb / reference.gpu_memory_gb);
        let mut topology = Topology::new(self.spacing, &self.initial_patch(reference.initial_voxels));
        let (shape, size) = loop {
            let shape = network(&topology, reference.max_features);
            let size = feature_map_size(&shape, lift(&topology.patch_size, 1), self.classes) as f64;
            if size / reference.batch * MIN_BATCH <= budget {
                break (shape, size);
            }
            topology = self.smaller(&topology)?;
        };
        let patch_voxels: f64 = topology.patch_size.iter().map(|&extent| extent as f64).product();
        let fitting = (budget / size * reference.batch).round_ties_even();
        let cap = (self.dataset_voxels * MAX_PART_OF_DATASET / patch_voxels).round_ties_even();
        let batch_size = fitting.min(cap).max(MIN_BATCH) as usize;
        Some(Fit { patch_size: topology.patch_size, batch_size, shape })
    }

    /// A patch that is isotropic in mm, of `voxels` voxels, clipped to the image.
    fn initial_patch(&self, voxels: f64) -> Vec<f64> {
        let density: Vec<f64> = self.spacing.iter().map(|mm| 1.0 / mm).collect();
        let scale = (voxels / density.iter().product::<f64>()).powf(1.0 / density.len() as f64);
        let extents = density.iter().map(|density| (density * scale).round_ties_even());
        extents.zip(self.median_shape).map(|(extent, &median)| extent.min(median).max(1.0)).collect()
    }

    /// One step shorter along the axis that is longest in proportion to the image.
    fn smaller(&self, topology: &Topology) -> Option<Topology> {
        let part = |axis: usize| topology.patch_size[axis] as f64 / self.median_shape[axis];
        let axis = (0..self.spacing.len()).max_by(|&a, &b| part(a).total_cmp(&part(b)))?;
        let mut patch: Vec<f64> = topology.patch_size.iter().map(|&extent| extent as f64).collect();
        // Taking away a whole multiple could skip sizes that pool less often, so the step is that of the size below.
        let mut below = patch.clone();
        below[axis] -= topology.divisible_by[axis] as f64;
        patch[axis] -= Topology::new(self.spacing, &below).divisible_by[axis] as f64;
        (patch[axis] >= 1.0).then(|| Topology::new(self.spacing, &patch))
    }
}

fn network(topology: &Topology, max_features: usize) -> NetworkShape {
    let stages = topology.strides.len();
    NetworkShape {
        features: (0..stages).map(|stage| (BASE_FEATURES << stage).min(max_features)).collect(),
        kernels: topology.kernels.iter().map(|kernel| lift(kernel, 1)).collect(),
        strides: topology.strides.iter().map(|stride| lift(stride, 1)).collect(),
        convs_encoder: vec![CONVS; stages],
        convs_decoder: vec![CONVS; stages - 1],
        conv_bias: true,
        norm_eps: 1e-5,
    }
}
