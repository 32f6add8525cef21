//! Helpers of commands that run as several processes.

use super::exit;
use nnunet_comm::distributed::Communicator;
#[cfg(feature = "nccl")]
use nnunet_nn::Device;
use nnunet_train::config::RunConfig;

/// Connects the GPUs of the ranks if training uses them; aborts the job on failure.
#[cfg_attr(not(feature = "nccl"), expect(unused_variables, reason = "only NCCL has settings"))]
pub(super) fn connect_gpus(host: Box<dyn Communicator>, config: &RunConfig) -> Box<dyn Communicator> {
    #[cfg(feature = "nccl")]
    if config.device == Device::Cuda && host.world_size() > 1 {
        use nnunet_comm::distributed::{NcclComm, NcclLink, Timeouts};
        let seconds = std::time::Duration::from_secs_f64;
        let timeouts = Timeouts { first: seconds(config.dist.first_timeout_s), later: seconds(config.dist.timeout_s) };
        return match NcclLink::join(&*host, timeouts) {
            Ok(link) => Box::new(NcclComm::new(host, link)),
            Err(error) => {
                let error = anyhow::Error::from(error);
                host.abort(exit::code(&error).into(), &exit::one_line(&error))
            }
        };
    }
    host
}

/// Returns the result, or aborts the job on an error: if one rank just returned, the others would wait for it forever.
pub(super) fn abort_on_error<T>(result: anyhow::Result<T>, comm: &dyn Communicator) -> anyhow::Result<T> {
    match result {
        Err(error) if comm.world_size() > 1 => comm.abort(exit::code(&error).into(), &exit::one_line(&error)),
        result => result,
    }
}
