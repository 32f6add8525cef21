//! Networks, their gradients and ten optimisation steps agree with PyTorch's (`fixtures/net`).

mod common;

#[path = "common/network.rs"]
mod network;
#[path = "common/reference_network.rs"]
mod reference_network;

use nnunet_dist::backend::Cpu;
use nnunet_dist::ops::Precision;

use self::network::Fixture;

#[test]
fn outputs_gradients_and_ten_steps_agree_with_pytorchs() {
    for path in common::fixtures("fixtures/net", ".npz") {
        let name = path.display().to_string();
        reference_network::agrees::<Cpu>(Fixture::open(&path), &name, &Default::default(), Precision::Fp32);
    }
}

/// Within what its digits allow.
#[test]
fn bfloat16_agrees_too() {
    for path in common::fixtures("fixtures/net", ".npz") {
        let name = path.display().to_string();
        reference_network::agrees::<Cpu>(Fixture::open(&path), &name, &Default::default(), Precision::AmpBf16);
    }
}
