//! Search for the largest patch and batch that fit into GPU memory, and the topology of the network for a patch.

use super::network::{NetworkShape, feature_map_size, to_3d};
use super::presets::Preset;

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

/// Minimum edge of the feature maps at the lowest resolution, in voxels.
const MIN_EDGE: f64 = 4.0;

/// Axes whose spacings differ by less than this factor are pooled together.
const SIMILAR: f64 = 2.0;

/// Strides and kernels of the stages of a U-Net, with the number of axes of the spacing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Number of poolings along each axis.
    pub pools_per_axis: Vec<usize>,
    /// Stride of each stage, highest resolution first; the first is 1.
    pub strides: Vec<Vec<usize>>,
    /// Kernel of each stage, highest resolution first; the last is 3 along every axis.
    pub kernels: Vec<Vec<usize>>,
    /// The patch size, padded to multiples of [`Topology::divisible_by`].
    pub patch_size: Vec<usize>,
    /// Product of the strides along each axis.
    pub divisible_by: Vec<usize>,
}

impl Topology {
    /// Computes the topology for a patch of `patch_size` voxels (half voxels may result from a median) at `spacing` mm
    /// (`get_pool_and_conv_props` in nnU-Net's `network_topology.py`).
    ///
    /// Every stage halves the axes that are long enough and whose voxel size is within a factor of two of the smallest.
    /// An axis is convolved (kernel 3) as soon as its voxel size is within this factor.
    ///
    /// # Panics
    /// Panics if the two slices differ in length.
    pub fn new(spacing: &[f64], patch_size: &[f64]) -> Self {
        assert_eq!(spacing.len(), patch_size.len(), "one spacing per axis");
        let axes = spacing.len();
        let (mut mm, mut voxels) = (spacing.to_vec(), patch_size.to_vec());
        let mut pools_per_axis = vec![0; axes];
        let mut kernel = vec![1; axes];
        let mut strides = vec![vec![1; axes]];
        let mut kernels = Vec::new();
        while let Some(pooled) = axes_to_pool(&mm, &voxels) {
            let smallest = minimum(&mm);
            for axis in 0..axes {
                if mm[axis] / smallest < SIMILAR {
                    kernel[axis] = 3;
                }
            }
            let mut stride = vec![1; axes];
            for axis in pooled {
                stride[axis] = 2;
                pools_per_axis[axis] += 1;
                mm[axis] *= 2.0;
                voxels[axis] = (voxels[axis] / 2.0).ceil();
            }
            strides.push(stride);
            kernels.push(kernel.clone());
        }
        kernels.push(vec![3; axes]);
        let divisible_by: Vec<usize> = pools_per_axis.iter().map(|&pools| 1 << pools).collect();
        let patch_size = patch_size.iter().zip(&divisible_by).map(|(&extent, &by)| pad(extent, by)).collect();
        Self { pools_per_axis, strides, kernels, patch_size, divisible_by }
    }
}

/// Returns the axes that the next stage halves; `None` if there are no more stages.
fn axes_to_pool(mm: &[f64], voxels: &[f64]) -> Option<Vec<usize>> {
    let long: Vec<usize> = (0..mm.len()).filter(|&axis| voxels[axis] >= 2.0 * MIN_EDGE).collect();
    let smallest = long.iter().map(|&axis| mm[axis]).fold(f64::INFINITY, f64::min);
    let similar: Vec<usize> = long.into_iter().filter(|&axis| mm[axis] / smallest < SIMILAR).collect();
    match similar.as_slice() {
        [] => None,
        // A single axis is pooled only if it is long enough for a further stage.
        [axis] if voxels[*axis] < 3.0 * MIN_EDGE => None,
        _ => Some(similar),
    }
}

/// Rounds up to a multiple of `by`.
fn pad(extent: f64, by: usize) -> usize {
    let by = by as f64;
    let rest = extent % by;
    if rest == 0.0 { extent as usize } else { (extent + by - rest) as usize }
}

fn minimum(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thick_slices_are_pooled_and_convolved_late() {
        let topology = Topology::new(&[5.0, 1.0, 1.0], &[16.0, 64.0, 64.0]);
        assert_eq!(topology.pools_per_axis, [2, 4, 4]);
        assert_eq!(topology.strides[..4], [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]);
        assert_eq!(topology.kernels[..3], [[1, 3, 3], [1, 3, 3], [3, 3, 3]]);
    }

    #[test]
    fn half_voxels_are_padded_to_whole_ones() {
        assert_eq!(Topology::new(&[1.0, 1.0], &[34.5, 50.0]).patch_size, [40, 56]);
    }
}
