//! Addition of two gradients of the same activation.

use burn_flex::FlexTensor;
use multiversion::multiversion;
use rayon::prelude::*;

use super::element::ActivationElement;
use super::pool::buffer;
use super::{contiguous, dims, values};

/// Number of values per task.
const BLOCK: usize = 64 * 1024;

/// Computes `a + b`, in place in `a` if its memory is not shared.
pub fn add<T: ActivationElement>(a: FlexTensor, b: &FlexTensor) -> FlexTensor {
    let (mut a, b) = (contiguous(a), contiguous(b.clone()));
    let b = values::<T>(&b);
    if a.is_unique() && a.storage::<T>().len() == b.len() {
        let sums: &mut [T] = a.storage_mut();
        sums.par_chunks_mut(BLOCK).zip(b.par_chunks(BLOCK)).for_each(|(sums, b)| {
            add_to(sums, b);
        });
        return a;
    }
    let mut sums = buffer::<T>(b.len());
    let parts = sums.par_chunks_mut(BLOCK).zip(values::<T>(&a).par_chunks(BLOCK)).zip(b.par_chunks(BLOCK));
    parts.for_each(|((sums, a), b)| {
        sums.copy_from_slice(a);
        add_to(sums, b);
    });
    sums.into_tensor(dims::<5>(&a))
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add_to<T: ActivationElement>(sums: &mut [T], b: &[T]) {
    for (sum, b) in sums.iter_mut().zip(b) {
        *sum = T::narrow(sum.widen() + b.widen());
    }
}
