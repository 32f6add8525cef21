//! Concatenation and split along the channels, in one linear pass each.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::element::ActivationElement;
use super::pool::buffer;
use super::{contiguous, dims, values};

/// Number of voxels per task.
const BLOCK: usize = 4096;

/// Concatenates `(n, z, y, x, ca)` and `(n, z, y, x, cb)` to `(n, z, y, x, ca + cb)`.
pub fn concat<T: ActivationElement>(a: &FlexTensor, b: &FlexTensor) -> FlexTensor {
    let (a, b) = (contiguous(a.clone()), contiguous(b.clone()));
    let [n, z, y, x, ca] = dims(&a);
    let [.., cb] = dims::<5>(&b);
    let mut joined = buffer::<T>(n * z * y * x * (ca + cb));
    joined
        .par_chunks_mut(BLOCK * (ca + cb))
        .zip(values::<T>(&a).par_chunks(BLOCK * ca))
        .zip(values::<T>(&b).par_chunks(BLOCK * cb))
        .for_each(|((joined, a), b)| {
            for ((to, a), b) in joined.chunks_exact_mut(ca + cb).zip(a.chunks_exact(ca)).zip(b.chunks_exact(cb)) {
                to[..ca].copy_from_slice(a);
                to[ca..].copy_from_slice(b);
            }
        });
    joined.into_tensor([n, z, y, x, ca + cb])
}

/// Inverse of [`concat`]; the first part has `ca` channels.
pub fn split<T: ActivationElement>(joined: &FlexTensor, ca: usize) -> (FlexTensor, FlexTensor) {
    let joined = contiguous(joined.clone());
    let [n, z, y, x, c] = dims(&joined);
    let cb = c - ca;
    let voxels = n * z * y * x;
    let (mut a, mut b) = (buffer::<T>(voxels * ca), buffer::<T>(voxels * cb));
    a.par_chunks_mut(BLOCK * ca)
        .zip(b.par_chunks_mut(BLOCK * cb))
        .zip(values::<T>(&joined).par_chunks(BLOCK * c))
        .for_each(|((a, b), joined)| {
            for ((from, a), b) in joined.chunks_exact(c).zip(a.chunks_exact_mut(ca)).zip(b.chunks_exact_mut(cb)) {
                a.copy_from_slice(&from[..ca]);
                b.copy_from_slice(&from[ca..]);
            }
        });
    (a.into_tensor([n, z, y, x, ca]), b.into_tensor([n, z, y, x, cb]))
}
