//! Mirroring.

use super::draw::chance;
use super::voxels::{data_mut, labels_mut, shape};
use crate::rng::Stream;
use crate::store::Patch;

/// Mirrors data and labels along each allowed axis with probability 0.5 (batchgeneratorsv2 `MirrorTransform`).
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Axes that may be mirrored: 0 = z, 1 = y, 2 = x.
    pub axes: Vec<usize>,
}

impl Mirror {
    /// Changes data and labels in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let shape = shape(patch);
        for &axis in &self.axes {
            if chance(0.5, rng) {
                flip(data_mut(patch), shape, axis);
                flip(labels_mut(patch), shape, axis);
            }
        }
    }
}

/// Reverses one axis of a stack of volumes of this shape.
fn flip<T>(values: &mut [T], shape: [usize; 3], axis: usize) {
    let extent = shape[axis];
    let inner: usize = shape[axis + 1..].iter().product();
    for block in values.chunks_exact_mut(extent * inner) {
        if inner == 1 {
            block.reverse();
            continue;
        }
        for low in 0..extent / 2 {
            let (head, tail) = block.split_at_mut((extent - 1 - low) * inner);
            head[low * inner..][..inner].swap_with_slice(&mut tail[..inner]);
        }
    }
}
