//! Shared parts of the NVIDIA libraries: the driver, and the search for the other libraries. All are loaded at run
//! time, so that one binary runs on machines with and without them.

mod driver;
mod search;

pub use driver::{Context, Driver, DriverError, Event, Memory, Stream};
pub use search::open_first;

/// Returns whether the first GPU supports bfloat16 (compute capability 8.0 and above); `true` if there is no GPU to
/// query.
pub fn has_bf16() -> bool {
    Driver::open().ok().and_then(|driver| driver.compute_capability(0).ok()).is_none_or(|major| major >= 8)
}

/// Returns the used memory of a GPU in bytes, over all processes, or `None` if it cannot be queried.
pub fn memory_in_use(gpu: usize) -> Option<u64> {
    let context = Context::primary(Driver::open().ok()?, gpu).ok()?;
    context.memory_in_use().ok().map(|bytes| bytes as u64)
}
