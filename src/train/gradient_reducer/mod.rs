//! Averaging of gradients over the ranks.
//!
//! The backward pass passes each gradient to the reducer as soon as it is ready
//! ([`GradHook`](nnunet_nn::ops::GradHook)). The reducer copies it to its position in a bucket
//! ([`BucketLayout`]), and starts the reduction of a full bucket while the backward pass continues. The end of the step
//! waits for the reductions in flight. With gradient accumulation, the batches of a step are summed in the buckets, and
//! only the last batch sends them.

mod bucket_schedule;
mod device;
mod host;
mod reducer;

use std::sync::Arc;

pub use device::DeviceGradientReducer;
pub use host::HostGradientReducer;
pub use reducer::{GradientReducer, GradientReducerOptions};

use nnunet_comm::distributed::{BucketLayout, CommError, Communicator, check_consistency};
use nnunet_nn::ops::NnOps;

/// Creates the reducer for parameters with these shapes.
///
/// # Errors
/// Returns an error if the layout differs between ranks, or a rank is lost.
pub fn build_reducer<B: NnOps>(
    layout: BucketLayout,
    shapes: Vec<Vec<usize>>,
    options: GradientReducerOptions,
    comm: &dyn Communicator,
    device: &B::Device,
) -> Result<Arc<dyn GradientReducer<B>>, CommError> {
    let agreed = format!("{options:?}\n{}", layout.fingerprint());
    check_consistency(comm, "layout of the gradient buckets", agreed.as_bytes())?;
    if let Some(collectives) = comm.device_collectives() {
        return Ok(Arc::new(DeviceGradientReducer::new(comm.rank(), layout, shapes, options, collectives)));
    }
    Ok(Arc::new(HostGradientReducer::new(layout, shapes, options, comm.reducer(), device.clone())))
}
