//! Networks, their gradients and ten optimisation steps agree with PyTorch's (`fixtures/net`).

mod common;

#[path = "common/network.rs"]
mod network;

use burn::backend::Flex;
use burn::tensor::ops::FloatTensorOps;
use ndarray::ArrayD;
use nnunet_dist::backend::Cpu;
use nnunet_dist::dist::Single;
use nnunet_dist::loss::{SegmentationLoss, Target};
use nnunet_dist::model::{TensorState, UNet, batch_tensor};
use nnunet_dist::optim::{Optimizer, Sgd};
use nnunet_dist::train::TrainStep;

use self::network::{Fixture, assert_close, is_rounding};

type Device = burn::tensor::Device<Cpu>;

#[test]
fn outputs_gradients_and_ten_steps_agree_with_pytorchs() {
    let device = Device::default();
    for path in common::fixtures("fixtures/net", ".npz") {
        let mut fixture = Fixture::open(&path);
        let what = |detail: &str| format!("{}: {detail}", path.display());
        let specs: Vec<_> =
            UNet::<Cpu>::new(fixture.spec.clone(), 0, &device).parameters().iter().map(|p| p.spec.clone()).collect();
        let weights: Vec<TensorState> = fixture.state("w/", &specs).into_values().collect();
        let network = UNet::<Cpu>::with_state(fixture.spec.clone(), &weights, &device).unwrap();
        let heads = network.heads();
        let images = fixture.volume("x");

        let outputs = network.valid().forward(batch_tensor(images.view(), &device), heads);
        for (head, output) in outputs.into_iter().enumerate() {
            let ours = output.permute([0, 4, 1, 2, 3]).into_data().to_vec::<f32>().unwrap();
            let expected = fixture.volume(&format!("out{head}"));
            assert_close(&what(&format!("out{head}")), &ours, expected.as_slice().unwrap(), 1e-3);
        }

        let head_weights = nnunet_dist::loss::weights(heads);
        let weighted = head_weights.iter().filter(|weight| **weight > 0.0).count();
        let targets: Vec<_> = (0..weighted).map(|head| fixture.labels(&format!("target{head}"))).collect();
        let sgd = Sgd { momentum: 0.99, nesterov: true, weight_decay: 3e-5 };
        let loss = SegmentationLoss::new(Target::Classes, fixture.batch_dice, None);
        let mut step = TrainStep::new(network, Optimizer::new(sgd, Some(12.0)), loss, head_weights, device);
        step.add(step.upload().batch_with(images.view(), targets.to_vec()), &Single).unwrap();
        let gradients = step.gradients().unwrap();
        let expected = fixture.state("g/", &specs);
        for (spec, gradient) in specs.iter().zip(gradients) {
            let Some(expected) = expected.get(&spec.name) else { continue };
            let Some(gradient) = gradient else {
                // The lowest head has weight 0.
                assert!(
                    expected.values.iter().all(|g| *g == 0.0),
                    "{}",
                    what(&format!("no gradient of {}", spec.name))
                );
                continue;
            };
            if !is_rounding(&spec.name) {
                let ours = burn::tensor::read_sync(<Flex as FloatTensorOps<Flex>>::float_into_data(gradient))
                    .unwrap()
                    .to_vec::<f32>()
                    .unwrap();
                assert_close(&what(&format!("gradient of {}", spec.name)), &ours, &expected.values, 1e-3);
            }
        }

        let losses: ArrayD<f64> = fixture.npz.by_name("losses.npy").unwrap();
        for (iteration, expected) in losses.iter().enumerate() {
            let metrics = step.run(images.view(), &targets, 1e-2, &Single).unwrap();
            let error = (metrics.loss - expected).abs();
            assert!(error < 1e-3, "{}", what(&format!("loss {iteration}: {} for {expected}", metrics.loss)));
            if iteration == 0 || iteration == 9 {
                let expected = fixture.state(&format!("w{}/", iteration + 1), &specs);
                for state in step.network.state() {
                    let name = &state.spec.name;
                    let expected = &expected[name];
                    if !is_rounding(name) {
                        assert_close(
                            &what(&format!("step {iteration}: {name}")),
                            &state.values,
                            &expected.values,
                            1e-3,
                        );
                    }
                }
            }
        }
    }
}
