//! Transfer of a batch from the host to the device.

use burn::tensor::{
    FloatDType, Int, Tensor, TensorData,
    backend::{AutodiffBackend, Backend},
};
use ndarray::{Array4, ArrayView4, ArrayView5};

use nnunet_nn::backend::ComputeBackend;
use nnunet_nn::loss;
use nnunet_nn::model::{UNetSpec, batch_tensor};
use nnunet_nn::ops::NnOps;

/// A batch on the device, as input of a training step.
#[derive(Clone)]
pub struct DeviceBatch<B: Backend> {
    /// Images `(n, z, y, x, c)`.
    pub images: Tensor<B, 5>,
    pub targets: Targets<B>,
}

/// Labels `(n, z, y, x)` at the resolution of each head with a non-zero weight, highest resolution first.
#[derive(Clone)]
pub enum Targets<B: Backend> {
    /// Used when the host computes the loss.
    Host(Vec<Array4<i16>>),
    /// Used when the device computes the loss.
    Device(Vec<Tensor<B, 4, Int>>),
}

/// Uploads batches to the device.
#[derive(Clone)]
pub struct BatchUploader<B: ComputeBackend> {
    pub(super) spec: UNetSpec,
    pub(super) head_weights: Vec<f64>,
    /// Whether the labels are needed on the device, too.
    pub(super) to_device_loss: bool,
    /// Data type of the images.
    pub(super) dtype: FloatDType,
    pub(super) device: B::Device,
}

impl<B: ComputeBackend> BatchUploader<B> {
    /// Returns whether batches must be copied; on the CPU, a tensor is already in host memory.
    pub fn is_to_another_device(&self) -> bool {
        <B::InnerBackend as NnOps>::device_loss().is_some()
    }

    /// Uploads images `(n, c, z, y, x)` and labels `(n, z, y, x)`.
    pub fn batch(&self, images: ArrayView5<f32>, labels: ArrayView4<i16>) -> DeviceBatch<B::InnerBackend> {
        self.batch_with(images, head_targets(&self.spec, &self.head_weights, labels))
    }

    /// Uploads images `(n, c, z, y, x)` with their [`head_targets`].
    pub fn batch_with(&self, images: ArrayView5<f32>, targets: Vec<Array4<i16>>) -> DeviceBatch<B::InnerBackend> {
        let targets = match self.to_device_loss {
            false => Targets::Host(targets),
            true => Targets::Device(targets.into_iter().map(|labels| self.upload(labels)).collect()),
        };
        DeviceBatch { images: batch_tensor(images, self.dtype, &self.device), targets }
    }

    fn upload(&self, labels: Array4<i16>) -> Tensor<B::InnerBackend, 4, Int> {
        let (n, z, y, x) = labels.dim();
        let values: Vec<i32> = labels.iter().map(|label| i32::from(*label)).collect();
        let mut data = TensorData::new(values, [n, z, y, x]);
        // Staging memory lets the device copy while it computes.
        B::InnerBackend::staging(std::iter::once(&mut data), &self.device);
        Tensor::from_data(data, &self.device)
    }
}

/// Inner backend of the training backend.
pub(super) type Inner<B> = <B as AutodiffBackend>::InnerBackend;

/// Downsamples labels `(n, z, y, x)` to the resolution of each head with a non-zero weight, highest resolution first.
pub fn head_targets(spec: &UNetSpec, head_weights: &[f64], labels: ArrayView4<i16>) -> Vec<Array4<i16>> {
    let (_, z, y, x) = labels.dim();
    let weighted = spec.head_extents([z, y, x]).into_iter().zip(head_weights).filter(|(_, weight)| **weight > 0.0);
    weighted.map(|(extent, _)| loss::downsample_labels(labels, extent)).collect()
}
