//! Pooling and kernel topology of a U-Net for a given patch.

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
    fn thick_slices_are_pooled_late_and_convolved_late() {
        let topology = Topology::new(&[5.0, 1.0, 1.0], &[16.0, 64.0, 64.0]);
        assert_eq!(topology.pools_per_axis, [2, 4, 4]);
        assert_eq!(topology.strides[..4], [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]);
        assert_eq!(topology.kernels[..3], [[1, 3, 3], [1, 3, 3], [3, 3, 3]]);
    }

    #[test]
    fn half_voxels_are_padded_away() {
        assert_eq!(Topology::new(&[1.0, 1.0], &[34.5, 50.0]).patch_size, [40, 56]);
    }
}
