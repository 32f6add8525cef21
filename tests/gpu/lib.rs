//! The backend whose kernels are tested: CUDA with the feature `cuda`, otherwise Vulkan, for which Mesa's lavapipe
//! suffices (Debian: `mesa-vulkan-drivers`).

use burn::tensor::{FloatDType, backend::Backend};

#[path = "../common/skip.rs"]
pub mod skip;

#[cfg(feature = "cuda")]
pub type Gpu = burn::backend::Cuda;
#[cfg(not(feature = "cuda"))]
pub type Gpu = burn::backend::Vulkan;

/// The device; `None`, with the reason printed, if there is none.
pub fn device() -> Option<<Gpu as burn::tensor::backend::BackendTypes>::Device> {
    match probe() {
        Ok(()) => Some(Default::default()),
        Err(reason) => {
            skip::skip(&reason);
            // A missing GPU is a failure on machines that must have one.
            assert!(std::env::var_os("NNUNET_TEST_GPU").is_none(), "NNUNET_TEST_GPU is set, but: {reason}");
            None
        }
    }
}

#[cfg(feature = "cuda")]
fn probe() -> Result<(), String> {
    let gpu = nnunet_dist::distributed::own_gpu(&nnunet_dist::distributed::Single);
    gpu.map(|_| ()).map_err(|error| format!("no CUDA device: {error}"))
}

#[cfg(not(feature = "cuda"))]
fn probe() -> Result<(), String> {
    // Mesa prints a warning if it is not set.
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread reads the environment before the first device is created.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
    let drivers = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"];
    let has_driver =
        drivers.iter().any(|folder| std::fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some()));
    if has_driver { Ok(()) } else { Err("no Vulkan driver; apt-get install mesa-vulkan-drivers".into()) }
}

/// The formats that the device supports.
pub fn formats(
    device: &<Gpu as burn::tensor::backend::BackendTypes>::Device,
    all: &[(FloatDType, f32)],
) -> Vec<(FloatDType, f32)> {
    let formats: Vec<_> =
        all.iter().copied().filter(|(dtype, _)| Gpu::supports_dtype(device, (*dtype).into())).collect();
    println!("formats of this device: {formats:?}");
    formats
}
