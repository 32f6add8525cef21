//! Plans, up to the shape of the network.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nnunet_dist::plan::Plans;
use nnunet_dist_fuzz::{file, in_little_memory};

fuzz_target!(|bytes: &[u8]| {
    let path = file("plans.json", bytes);
    in_little_memory(|| {
        let Ok(plans) = Plans::load(&path) else { return };
        for name in ["2d", "3d_fullres", "3d_lowres"] {
            let Ok(configuration) = plans.configuration(name) else { continue };
            let _ = configuration.network_shape();
            let _ = (configuration.patch_size3(), configuration.spacing3(), configuration.is_2d());
        }
    });
});
