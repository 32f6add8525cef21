//! On-device sliding-window operations, for [`super::NnOps::device_windows`]. For backends without them, `crate::infer`
//! works on the host.

use burn::tensor::{
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};

/// Number of values that describe a sample: the first voxel of its window `(z, y, x)`, and a bit mask of the axes along
/// which it is mirrored, with z the lowest bit.
pub const SAMPLE_FIELDS: usize = 4;

/// Position of a window and of its voxel weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowPosition {
    /// First voxel, `(z, y, x)`.
    pub origin: [usize; 3],
    /// Start of its weights along z, y and x in the concatenated weights.
    pub weights: [usize; 3],
    /// The window's samples within the call: index of the first, and their number.
    pub samples: [usize; 2],
}

/// Sliding-window operations of a device.
pub struct DeviceWindows<B: Backend> {
    /// Cuts samples `(n, z, y, x, channel)` out of an image `(z, y, x, channel)`, as described by `(n, SAMPLE_FIELDS)`
    /// values.
    pub cut: Cut<B>,
    /// Adds the logits of a window's samples to `sums` `(z, y, x, class)` in position. `logits` `(n, z, y, x, class)` are
    /// mirrored back and multiplied by `sample_weight` and the product of the weights along the three axes.
    pub add: fn(sums: &FloatTensor<B>, logits: &FloatTensor<B>, terms: WindowAccumulateArgs<B>),
}

/// Cuts windows of the given extent out of an image: `(image, samples, extent)`.
pub type Cut<B> = fn(&FloatTensor<B>, &IntTensor<B>, [usize; 3]) -> FloatTensor<B>;

/// Parameters of [`DeviceWindows::add`].
pub struct WindowAccumulateArgs<B: Backend> {
    pub samples: IntTensor<B>,
    /// Weights of all windows along all axes, concatenated.
    pub weights: FloatTensor<B>,
    pub position: WindowPosition,
    /// Factor of each sample's logits.
    pub sample_weight: f32,
}
