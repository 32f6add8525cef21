//! Windows of an image and the sums of their logits on a device, for [`super::NnOps::device_windows`]. Where a backend has
//! none, `nnunet_infer` cuts and adds up on the host.

use burn::tensor::{
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};

/// Numbers that describe a sample of a call: its window's first voxel `(z, y, x)`, and the axes along which it is mirrored,
/// z's bit lowest.
pub const SAMPLE_NUMBERS: usize = 4;

/// Where a window lies, and how much each of its voxels counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowPlace {
    /// First voxel, `(z, y, x)`.
    pub origin: [usize; 3],
    /// Where the weights along z, y and x begin among all weights.
    pub weights: [usize; 3],
    /// The window's samples within the call: the first, and their number.
    pub samples: [usize; 2],
}

/// What a sliding window does besides the network.
pub struct DeviceWindows<B: Backend> {
    /// Samples `(n, z, y, x, channel)` of an image `(z, y, x, channel)`, as their numbers `(n, SAMPLE_NUMBERS)` describe
    /// them.
    pub cut: Cut<B>,
    /// Adds a window's logits, of all its samples in `logits` `(n, z, y, x, class)`, mirrored back, to `sums`
    /// `(z, y, x, class)` in place: each times the product of its weights along the three axes and `share`.
    pub add: fn(sums: &FloatTensor<B>, logits: &FloatTensor<B>, terms: WindowTerms<B>),
}

/// Of an image, by samples' numbers, windows of an extent.
pub type Cut<B> = fn(&FloatTensor<B>, &IntTensor<B>, [usize; 3]) -> FloatTensor<B>;

/// What [`DeviceWindows::add`] goes by.
pub struct WindowTerms<B: Backend> {
    pub samples: IntTensor<B>,
    /// Of all windows along all axes, one after the other.
    pub weights: FloatTensor<B>,
    pub place: WindowPlace,
    /// Of a sample.
    pub share: f32,
}
