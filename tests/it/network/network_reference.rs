//! Networks, their gradients and optimization steps agree with PyTorch's: ten steps of nnU-Net's plain U-Net
//! (`fixtures/net`), one of its residual-encoder U-Net (`tests/fixtures`).

use std::path::Path;

use nnunet_dist::backend::Cpu;
use nnunet_dist::ops::Precision;

use crate::common;
use crate::network::Fixture;
use crate::reference_network;

#[test]
fn outputs_gradients_and_ten_steps_agree_with_pytorchs() {
    for path in common::fixtures("fixtures/net", ".npz") {
        let name = path.display().to_string();
        reference_network::agrees::<Cpu>(Fixture::open(&path), &name, &Default::default(), Precision::Fp32);
    }
}

/// Within the precision of the format.
#[test]
fn bfloat16_agrees_too() {
    for path in common::fixtures("fixtures/net", ".npz") {
        let name = path.display().to_string();
        reference_network::agrees::<Cpu>(Fixture::open(&path), &name, &Default::default(), Precision::AmpBf16);
    }
}

#[test]
fn a_residual_encoder_agrees_with_pytorchs() {
    for (name, precision) in [
        ("resenc3d", Precision::Fp32),
        ("resenc2d", Precision::Fp32),
        ("resenc3d", Precision::AmpBf16),
        ("resenc2d", Precision::AmpBf16),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.npz"));
        reference_network::agrees::<Cpu>(Fixture::open(&path), name, &Default::default(), precision);
    }
}
