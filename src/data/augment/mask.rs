//! Zeroing the background of masked images.

use super::voxels::shape;
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Resets voxels outside the nonzero mask to 0 in channels that were normalized inside the mask only, because noise,
/// brightness and contrast change them (nnU-Net v2 `MaskImageTransform`; a label of -1 marks the outside).
#[derive(Clone, Debug)]
pub struct MaskOutside {
    /// Per channel: true if it was normalized inside the mask (`use_mask_for_norm` of the plans).
    pub channels: Vec<bool>,
}

impl MaskOutside {
    /// Changes the intensities in place; makes no random draws.
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
