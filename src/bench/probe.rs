//! What the machine can do at most, measured.

use std::hint::black_box;

use burn::backend::Flex;
use burn::tensor::{Distribution, Tensor};
use rayon::prelude::*;
use serde::Serialize;

use super::timing::measure;
use crate::ops::{self, ConvParams, Precision};

/// Rows and columns of the matrices: large enough to fill every core.
const MATRIX: usize = 2048;
/// Values of the copied array, several times any cache.
const COPY: usize = 64 << 20;
const ROUNDS: usize = 5;

/// Highest rates of the machine, with all threads of the process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Peak {
    /// f32 matrix product, 10^12 floating-point operations per second.
    pub matmul_tflops: f64,
    /// Product of bf16 matrices.
    pub matmul_bf16_tflops: f64,
    /// Copy of an array, bytes read plus bytes written, 10^9 per second.
    pub copy_gb_per_s: f64,
}

impl Peak {
    /// Measures; takes about a second.
    pub fn measure() -> Self {
        Self {
            matmul_tflops: matmul(Precision::Fp32),
            matmul_bf16_tflops: matmul(Precision::AmpBf16),
            copy_gb_per_s: copy(),
        }
    }

    /// Of a matrix product in this format.
    pub fn tflops(&self, precision: Precision) -> f64 {
        match precision {
            Precision::Fp32 | Precision::Tf32 => self.matmul_tflops,
            Precision::AmpBf16 | Precision::AmpFp16 => self.matmul_bf16_tflops,
        }
    }
}

/// The product is written as a convolution with a kernel of one voxel, so that the library that runs the network's
/// convolutions runs this too.
fn matmul(precision: Precision) -> f64 {
    let device = Default::default();
    let random = |shape: [usize; 5]| Tensor::<Flex, 5>::random(shape, Distribution::Default, &device);
    let a = random([1, 1, 1, MATRIX, MATRIX]).cast(precision.activations());
    let b = random([MATRIX, MATRIX, 1, 1, 1]);
    let bias = Tensor::zeros([MATRIX], &device);
    let params = ConvParams { stride: [1; 3], padding: [0; 3], bias_cancels: false };
    let timings = measure::<()>(ROUNDS, || {
        black_box(ops::conv(a.clone(), b.clone(), bias.clone(), params));
        Ok(())
    });
    2.0 * (MATRIX as f64).powi(3) / timings.expect("nothing here can fail").min() / 1e12
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
