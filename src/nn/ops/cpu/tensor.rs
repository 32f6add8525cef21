//! Access to the values of tensors in host memory.

use burn_flex::FlexTensor;

use super::element::ActivationElement;

/// Returns the shape as an array.
pub(super) fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    let shape = tensor.layout().shape();
    std::array::from_fn(|axis| shape[axis])
}

/// Returns the tensor in C order, without a copy if it already is.
pub(super) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    let whole = tensor.layout().contiguous_offsets().is_some();
    if whole { tensor } else { tensor.to_contiguous() }
}

/// Returns the values of a tensor returned by [`contiguous`].
pub(super) fn values<T: ActivationElement>(tensor: &FlexTensor) -> &[T] {
    let (start, end) = tensor.layout().contiguous_offsets().expect("contiguous() was called");
    &tensor.storage()[start..end]
}
