//! What commands that run as several processes have in common.

use super::exit;
use nnunet_comm::distributed::Communicator;
#[cfg(feature = "nccl")]
use nnunet_nn::Device;
use nnunet_train::config::RunConfig;

/// Joins the GPUs of the ranks where training uses them, and ends the job where that fails.
#[cfg_attr(not(feature = "nccl"), expect(unused_variables, reason = "only NCCL has settings"))]
pub(super) fn join_gpus(host: Box<dyn Communicator>, config: &RunConfig) -> Box<dyn Communicator> {
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

/// The result, or the end of the job: the other ranks would wait for ever for one that just returns.
pub(super) fn or_abort<T>(result: anyhow::Result<T>, comm: &dyn Communicator) -> anyhow::Result<T> {
    match result {
        Err(error) if comm.world_size() > 1 => comm.abort(exit::code(&error).into(), &exit::one_line(&error)),
        result => result,
    }
}
