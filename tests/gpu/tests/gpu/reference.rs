//! Networks, their gradients and optimization steps agree with PyTorch's (`fixtures/net`, `tests/fixtures`), in every
//! precision that the device supports.

#[path = "../../../common/mod.rs"]
mod common;
#[path = "../../../common/network.rs"]
mod network;
#[path = "../../../common/reference_network.rs"]
mod reference_network;

use std::path::Path;

use burn::backend::Autodiff;
use gpu_tests::{Gpu, formats, skip};
use nnunet_dist::ops::{Precision, allow_tf32};

use self::network::Fixture;

fn agrees(precision: Precision) {
    let Some(device) = gpu_tests::device() else { return };
    if formats(&device, &[(precision.activations(), 0.0)]).is_empty() {
        skip::skip(format_args!("this device has no {precision:?}"));
        return;
    }
    allow_tf32(precision == Precision::Tf32);
    let residual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let residual = ["resenc3d.npz", "resenc2d.npz"].map(|name| residual.join(name));
    for path in common::fixtures("fixtures/net", ".npz").into_iter().chain(residual) {
        let name = path.display().to_string();
        reference_network::agrees::<Autodiff<Gpu>>(Fixture::open(&path), &name, &device, precision);
    }
}

#[test]
fn fp32_agrees() {
    agrees(Precision::Fp32);
}

#[test]
fn tf32_agrees() {
    agrees(Precision::Tf32);
}

#[test]
fn amp_bf16_agrees() {
    agrees(Precision::AmpBf16);
}

#[test]
fn amp_fp16_agrees() {
    agrees(Precision::AmpFp16);
}
