//! Search for the largest patch and batch that fit into GPU memory.

use super::presets::Preset;
use super::to_3d::to_3d;
use super::{NetworkShape, Topology, feature_map_size};

/// Feature maps of the first stage; doubled at every stage up to a limit.
const BASE_FEATURES: usize = 32;

/// Minimum number of samples per batch.
const MIN_BATCH: f64 = 2.0;

/// Reference values shared by all planners, per number of axes (nnU-Net's `default_experiment_planner.py`).
struct ReferenceBatch {
    /// Batch size at which the reference feature maps fill the GPU memory.
    batch: f64,
    max_features: usize,
    /// Number of voxels of the initial patch, before it is clipped to the image.
    initial_voxels: f64,
}

const REFERENCE_2D: ReferenceBatch = ReferenceBatch { batch: 12.0, max_features: 512, initial_voxels: 2048.0 * 2048.0 };

const REFERENCE_3D: ReferenceBatch =
    ReferenceBatch { batch: 2.0, max_features: 320, initial_voxels: 256.0 * 256.0 * 256.0 };

impl ReferenceBatch {
    fn for_axes(axes: usize) -> &'static Self {
        if axes == 2 { &REFERENCE_2D } else { &REFERENCE_3D }
    }
}

/// Input of the patch search.
pub(super) struct PatchRequest<'a> {
    /// Target spacing in mm, `(z, y, x)` or `(y, x)`.
    pub spacing: &'a [f64],
    /// Median shape of the resampled images, with the same number of axes.
    pub median_shape: &'a [f64],
    /// Number of voxels of the whole resampled dataset.
    pub dataset_voxels: f64,
    pub classes: usize,
    pub gpu_memory_gb: f64,
    pub preset: &'static Preset,
}

/// Result of the patch search: patch size, batch size and network.
pub(super) struct PatchPlan {
    pub patch_size: Vec<usize>,
    pub batch_size: usize,
    pub shape: NetworkShape,
}

/// Estimates the GPU memory of a training step in GB like the planner, in proportion to the reference feature maps of
/// the preset.
///
/// `patch` is in voxels `(z, y, x)`, with a z extent of 1 for a 2D network; `classes` includes the background.
pub fn estimate_memory_gb(shape: &NetworkShape, patch: [usize; 3], classes: usize, batch_size: usize) -> f64 {
    let axes = if patch[0] == 1 { 2 } else { 3 };
    let preset = Preset::for_network(shape.network);
    let size = feature_map_size(shape, patch, classes) as f64;
    let samples = batch_size as f64 / ReferenceBatch::for_axes(axes).batch;
    size / preset.feature_maps(axes) * samples * preset.gpu_memory_gb
}

impl PatchRequest<'_> {
    /// Returns the largest patch with the aspect ratio of the image that fits; `None` if not even the smallest patch
    /// fits.
    ///
    /// If a patch of the whole image leaves memory unused, the batch size is increased.
    pub(super) fn fit(&self) -> Option<PatchPlan> {
        let (axes, preset) = (self.spacing.len(), self.preset);
        let reference = ReferenceBatch::for_axes(axes);
        let budget = preset.feature_maps(axes) * (self.gpu_memory_gb / preset.gpu_memory_gb);
        let fitting_batch = if preset.fits_with_smallest_batch { MIN_BATCH } else { reference.batch };
        let mut topology = Topology::new(self.spacing, &self.initial_patch(reference.initial_voxels));
        let (shape, size) = loop {
            let shape = network(&topology, preset, reference.max_features);
            let size = feature_map_size(&shape, to_3d(&topology.patch_size, 1), self.classes) as f64;
            if size / reference.batch * fitting_batch <= budget {
                break (shape, size);
            }
            topology = self.smaller(&topology)?;
        };
        let patch_voxels: f64 = topology.patch_size.iter().map(|&extent| extent as f64).product();
        let fitting = (budget / size * reference.batch).round_ties_even();
        let cap = (self.dataset_voxels * preset.max_dataset_fraction / patch_voxels).round_ties_even();
        let batch_size = fitting.min(cap).max(MIN_BATCH) as usize;
        Some(PatchPlan { patch_size: topology.patch_size, batch_size, shape })
    }

    /// Returns a patch of `voxels` voxels that is isotropic in mm, clipped to the image.
    fn initial_patch(&self, voxels: f64) -> Vec<f64> {
        let density: Vec<f64> = self.spacing.iter().map(|mm| 1.0 / mm).collect();
        let scale = (voxels / density.iter().product::<f64>()).powf(1.0 / density.len() as f64);
        let extents = density.iter().map(|density| (density * scale).round_ties_even());
        extents.zip(self.median_shape).map(|(extent, &median)| extent.min(median).max(1.0)).collect()
    }

    /// Shortens the patch by one step along the axis that is longest relative to the image.
    fn smaller(&self, topology: &Topology) -> Option<Topology> {
        let part = |axis: usize| topology.patch_size[axis] as f64 / self.median_shape[axis];
        let axis = (0..self.spacing.len()).max_by(|&a, &b| part(a).total_cmp(&part(b)))?;
        let mut patch: Vec<f64> = topology.patch_size.iter().map(|&extent| extent as f64).collect();
        // Subtracting a whole multiple could skip sizes with fewer poolings, so the step is that of the next smaller
        // size.
        let mut below = patch.clone();
        below[axis] -= topology.divisible_by[axis] as f64;
        patch[axis] -= Topology::new(self.spacing, &below).divisible_by[axis] as f64;
        (patch[axis] >= 1.0).then(|| Topology::new(self.spacing, &patch))
    }
}

fn network(topology: &Topology, preset: &Preset, max_features: usize) -> NetworkShape {
    let stages = topology.strides.len();
    let blocks = preset.blocks_encoder;
    NetworkShape {
        network: preset.network,
        features: (0..stages).map(|stage| (BASE_FEATURES << stage).min(max_features)).collect(),
        kernels: topology.kernels.iter().map(|kernel| to_3d(kernel, 1)).collect(),
        strides: topology.strides.iter().map(|stride| to_3d(stride, 1)).collect(),
        blocks_encoder: (0..stages).map(|stage| blocks[stage.min(blocks.len() - 1)]).collect(),
        convs_decoder: vec![preset.convs_decoder; stages - 1],
        conv_bias: true,
        norm_eps: 1e-5,
    }
}
