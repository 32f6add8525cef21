//! End of a residual block: leaky ReLU of a sum.

use burn_flex::FlexTensor;
use multiversion::multiversion;
use rayon::prelude::*;

use super::element::ActivationElement;
use super::pool::buffer;
use super::{contiguous, dims, values};

/// Number of values per task.
const BLOCK: usize = 64 * 1024;

/// Computes `leaky_relu(a + b)`, in place in `a` if its memory is not shared.
pub fn forward<T: ActivationElement>(a: FlexTensor, b: &FlexTensor, slope: f32) -> FlexTensor {
    overwrite::<T>(a, b, |a, b| sum_activate(a, b, slope))
}

/// Computes the gradient of either operand, in place in `grad` if its memory is not shared.
pub fn backward<T: ActivationElement>(y: &FlexTensor, grad: FlexTensor, slope: f32) -> FlexTensor {
    overwrite::<T>(grad, y, |grad, y| scale_negative(grad, y, slope))
}

/// Applies `kernel` to blocks of both tensors and stores the result in the first one, or in a copy if its memory is
/// shared.
fn overwrite<T: ActivationElement>(
    first: FlexTensor,
    second: &FlexTensor,
    kernel: impl Fn(&mut [T], &[T]) + Sync,
) -> FlexTensor {
    let (mut first, second) = (contiguous(first), contiguous(second.clone()));
    let second = values::<T>(&second);
    if first.is_unique() && first.storage::<T>().len() == second.len() {
        let run: &mut [T] = first.storage_mut();
        run.par_chunks_mut(BLOCK).zip(second.par_chunks(BLOCK)).for_each(|(first, second)| kernel(first, second));
        return first;
    }
    let mut result = buffer::<T>(second.len());
    let parts = result.par_chunks_mut(BLOCK).zip(values::<T>(&first).par_chunks(BLOCK)).zip(second.par_chunks(BLOCK));
    parts.for_each(|((result, first), second)| {
        result.copy_from_slice(first);
        kernel(result, second);
    });
    result.into_tensor(dims::<5>(&first))
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn sum_activate<T: ActivationElement>(a: &mut [T], b: &[T], slope: f32) {
    for (a, b) in a.iter_mut().zip(b) {
        let sum = a.widen() + b.widen();
        *a = T::narrow(if sum < 0.0 { sum * slope } else { sum });
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn scale_negative<T: ActivationElement>(grad: &mut [T], y: &[T], slope: f32) {
    for (grad, y) in grad.iter_mut().zip(y) {
        let value = grad.widen();
        *grad = T::narrow(if y.widen() < 0.0 { value * slope } else { value });
    }
}
