//! What the machine can do at most, measured.

use std::hint::black_box;

use burn::backend::Flex;
use burn::tensor::{Distribution, Tensor};
use rayon::prelude::*;
use serde::Serialize;

use super::timing::measure;

/// Rows and columns of the matrices: large enough to fill every core.
const MATRIX: usize = 1536;
/// Values of the copied array, several times any cache.
const COPY: usize = 64 << 20;
const ROUNDS: usize = 5;

/// Highest rates of the machine, with all threads of the process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Peak {
    /// f32 matrix product, 10^12 floating-point operations per second.
    pub matmul_tflops: f64,
    /// Copy of an array, bytes read plus bytes written, 10^9 per second.
    pub copy_gb_per_s: f64,
}

impl Peak {
    /// Measures; takes about a second.
    pub fn measure() -> Self {
        Self { matmul_tflops: matmul(), copy_gb_per_s: copy() }
    }
}

fn matmul() -> f64 {
    let device = Default::default();
    let matrix = || Tensor::<Flex, 2>::random([MATRIX, MATRIX], Distribution::Default, &device);
    let (a, b) = (matrix(), matrix());
    let timings = measure::<()>(ROUNDS, || {
        black_box(a.clone().matmul(b.clone()).into_data());
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
