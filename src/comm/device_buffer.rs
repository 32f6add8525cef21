//! A tensor's memory as the libraries see it that are handed raw device pointers.

/// The type of a buffer's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// Elements that lie one after the other in the memory of a device.
///
/// It borrows nothing: whoever hands one out keeps the tensor alive until the work on it is ordered before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceBuffer {
    /// Address on the device, `CUdeviceptr`.
    pub pointer: u64,
    /// Number of elements.
    pub len: usize,
    /// Their type.
    pub element: Element,
}
