//! Measured peak performance of the machine.

use std::hint::black_box;

use burn::backend::Flex;
use burn::tensor::{Distribution, Tensor};
use rayon::prelude::*;
use serde::Serialize;

use super::measure::measure;
use nnunet_nn::Device;
use nnunet_nn::ops::{self, ConvParams, NnOps, Precision};

/// Matrix size: large enough to use every core.
const MATRIX: usize = 2048;
/// Matrix size for a GPU.
const MATRIX_OF_GPU: usize = 8192;
/// Values of the copied array, several times the size of any cache.
const COPY: usize = 64 << 20;
const ROUNDS: usize = 5;

/// Peak rates of the machine, with all threads of the process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Peak {
    /// f32 matrix product, 10^12 floating-point operations per second.
    pub matmul_tflops: f64,
    /// bf16 matrix product, 10^12 floating-point operations per second.
    pub matmul_bf16_tflops: f64,
    /// Copy of an array, bytes read plus bytes written, 10^9 per second.
    pub copy_gb_per_s: f64,
}

impl Peak {
    /// Measures the peak rates of the CPU; takes about a second.
    pub fn measure() -> Self {
        let device = Default::default();
        Self {
            matmul_tflops: matmul::<Flex>(Precision::Fp32, MATRIX, &device),
            matmul_bf16_tflops: matmul::<Flex>(Precision::AmpBf16, MATRIX, &device),
            copy_gb_per_s: copy(),
        }
    }

    /// Measures the peak rates of a GPU; fp16 is assumed to equal bf16.
    pub fn measure_gpu<B: NnOps>(device: &B::Device) -> Self {
        Self {
            matmul_tflops: matmul::<B>(Precision::Fp32, MATRIX_OF_GPU, device),
            matmul_bf16_tflops: matmul::<B>(nnunet_nn::backend::mixed_precision(Device::Cuda), MATRIX_OF_GPU, device),
            copy_gb_per_s: copy_on::<B>(device),
        }
    }

    /// Peak rate of a matrix product in this format, 10^12 floating-point operations per second.
    pub fn tflops(&self, precision: Precision) -> f64 {
        match precision {
            Precision::Fp32 | Precision::Tf32 => self.matmul_tflops,
            Precision::AmpBf16 | Precision::AmpFp16 => self.matmul_bf16_tflops,
        }
    }
}

/// The product is expressed as a convolution with a 1x1x1 kernel, so that it uses the same library as the network's
/// convolutions.
fn matmul<B: NnOps>(precision: Precision, size: usize, device: &B::Device) -> f64 {
    let random = |shape: [usize; 5]| Tensor::<B, 5>::random(shape, Distribution::Default, device);
    let a = random([1, 1, 1, size, size]).cast(precision.activations());
    let b = random([size, size, 1, 1, 1]);
    let bias = Tensor::zeros([size], device);
    let params = ConvParams { stride: [1; 3], padding: [0; 3], bias_cancels: true };
    let timings = measure::<()>(ROUNDS, || {
        black_box(ops::conv(a.clone(), b.clone(), bias.clone(), params));
        let _ = B::sync(device);
        Ok(())
    });
    2.0 * (size as f64).powi(3) / timings.expect("nothing here can fail").min() / 1e12
}

fn copy_on<B: NnOps>(device: &B::Device) -> f64 {
    let from = Tensor::<B, 1>::ones([4 * COPY], device);
    let timings = measure::<()>(ROUNDS, || {
        black_box(from.clone().neg());
        let _ = B::sync(device);
        Ok(())
    });
    2.0 * 4.0 * 4.0 * COPY as f64 / timings.expect("nothing here can fail").min() / 1e9
}

fn copy() -> f64 {
    let from = vec![1.0f32; COPY];
    let mut to = vec![0.0f32; COPY];
    let timings = measure::<()>(ROUNDS, || {
        let part = COPY.div_ceil(rayon::current_num_threads());
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&mut to);
        Ok(())
    });
    2.0 * 4.0 * COPY as f64 / timings.expect("nothing here can fail").min() / 1e9
}
