//! NVIDIA's libraries as mocks: NCCL, cuDNN, NVML and the CUDA driver.

#[path = "../../common/job.rs"]
mod job;
#[path = "../../common/machine.rs"]
mod machine;
#[path = "../../common/skip.rs"]
mod skip;

mod cudnn_mock;
mod nccl_mock;
mod nvml_mock;
