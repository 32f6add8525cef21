//! Restoring the blank surroundings of masked images.

use super::voxels::shape;
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Sets channels that were normalised inside the nonzero mask only back to 0 outside of it, where noise, brightness
/// and contrast have put other values (nnU-Net v2 `MaskImageTransform`; outside is where the label is -1).
#[derive(Clone, Debug)]
pub struct MaskOutside {
    /// For each channel, whether it was normalised inside the mask (`use_mask_for_norm` of the plans).
    pub channels: Vec<bool>,
}

impl MaskOutside {
    /// Changes the intensities in place; draws nothing.
    pub fn apply(&self, patch: &mut Patch, _: &mut Stream) {
        debug_assert_eq!(patch.data.shape()[1..], shape(patch));
        let Patch { data, labels, .. } = patch;
        for (mut channel, _) in data.outer_iter_mut().zip(&self.channels).filter(|(_, masked)| **masked) {
            channel.zip_mut_with(labels, |value, &label| {
                if label < 0 {
                    *value = 0.0;
                }
            });
        }
    }
}
