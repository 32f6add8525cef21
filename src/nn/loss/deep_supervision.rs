//! Deep supervision: loss weights and downsampled targets of the decoder's lower resolutions.

use ndarray::{Array4, ArrayView4};

/// Returns the weights of `heads` losses, highest resolution first. With deep supervision: `0.5^i`, the last one 0,
/// normalized to sum to 1 (nnU-Net's `_build_loss`). Without it, only the first head has a weight.
///
/// nnU-Net gives the last head 1e-6 in distributed training because PyTorch's DDP requires a gradient for every
/// parameter. This implementation does not, so the loss is the same for any number of ranks.
pub fn head_weights(heads: usize, deep_supervision: bool) -> Vec<f64> {
    if heads == 1 || !deep_supervision {
        return (0..heads).map(|head| if head == 0 { 1.0 } else { 0.0 }).collect();
    }
    let mut weights: Vec<f64> = (0..heads).map(|head| 0.5f64.powi(head as i32)).collect();
    weights[heads - 1] = 0.0;
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// Downsamples labels `(n, z, y, x)` to `extent` by nearest neighbor (PyTorch's `nearest-exact`).
pub fn downsample_labels(labels: ArrayView4<i16>, extent: [usize; 3]) -> Array4<i16> {
    let (n, z, y, x) = labels.dim();
    let nearest = |from: usize, to: usize| -> Vec<usize> {
        (0..to).map(|index| (((index as f64 + 0.5) * from as f64 / to as f64) as usize).min(from - 1)).collect()
    };
    let (zs, ys, xs) = (nearest(z, extent[0]), nearest(y, extent[1]), nearest(x, extent[2]));
    Array4::from_shape_fn((n, extent[0], extent[1], extent[2]), |(n, k, j, i)| labels[[n, zs[k], ys[j], xs[i]]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_taken_at_the_nearest_centre() {
        let labels = Array4::from_shape_fn((1, 1, 2, 8), |(_, _, y, x)| (10 * y + x) as i16);
        let half = downsample_labels(labels.view(), [1, 1, 4]);
        assert_eq!(half.as_slice().unwrap(), [11, 13, 15, 17]);
    }

    #[test]
    fn a_single_head_has_all_the_weight() {
        assert_eq!(head_weights(1, true), [1.0]);
        assert_eq!(head_weights(3, true), [2.0 / 3.0, 1.0 / 3.0, 0.0]);
        assert_eq!(head_weights(3, false), [1.0, 0.0, 0.0]);
    }
}
