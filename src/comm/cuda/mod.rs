//! What NVIDIA's libraries share: the driver, and where the others are found. All are opened at run time, so that one
//! program serves machines with and without them.

mod driver;
mod search;

pub use driver::{Context, Driver, DriverError, Event, Memory, Stream};
pub use search::open_first;

/// Whether the first GPU computes in bfloat16 (compute capability 8.0 and above); true where there is none to ask.
pub fn has_bf16() -> bool {
    Driver::open().ok().and_then(|driver| driver.compute_capability(0).ok()).is_none_or(|major| major >= 8)
}

/// Bytes of a GPU that are in use, by whomever; `None` where it cannot be asked.
pub fn memory_in_use(gpu: usize) -> Option<u64> {
    let context = Context::of_device(Driver::open().ok()?, gpu).ok()?;
    context.memory_in_use().ok().map(|bytes| bytes as u64)
}
