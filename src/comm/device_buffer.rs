//! Device memory of a tensor, for libraries that take raw device pointers.

/// Element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferDtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// Contiguous elements in device memory.
///
/// Does not borrow the tensor: its creator must keep the tensor alive until all work on the buffer is ordered before
/// the tensor's release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceBuffer {
    /// Device address, `CUdeviceptr`.
    pub pointer: u64,
    /// Number of elements.
    pub len: usize,
    /// Type of the elements.
    pub element: BufferDtype,
}
