//! Compares a network, its gradients and ten optimization steps with PyTorch's, on any backend in any precision. The
//! test program must also have `mod network`.

use burn::tensor::ops::FloatTensorOps;
use ndarray::ArrayD;
use nnunet_dist::backend::ComputeBackend;
use nnunet_dist::distributed::Single;
use nnunet_dist::loss::{SegmentationLoss, Target};
use nnunet_dist::model::{TensorState, UNet, batch_tensor};
use nnunet_dist::ops::{INITIAL_SCALE, Precision};
use nnunet_dist::optim::{Optimizer, Sgd};
use nnunet_dist::train::TrainStep;

use super::network::{Fixture, assert_close, is_rounding};

/// Allowed differences from PyTorch's f32, by precision.
struct Tolerance {
    outputs: f32,
    gradients: f32,
    losses: f64,
    /// After ten steps.
    weights: f32,
}

impl Tolerance {
    /// PyTorch's own gradients under autocast have a relative error of 0.26 in bfloat16 and 0.10 in IEEE half
    /// precision, on the smallest of the networks: it is untrained, and instance norms amplify small differences.
    fn of(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self { outputs: 1e-3, gradients: 1e-3, losses: 1e-3, weights: 1e-3 },
            Precision::Tf32 => Self { outputs: 1e-2, gradients: 1.5e-1, losses: 1e-2, weights: 1e-2 },
            Precision::AmpFp16 => Self { outputs: 1e-2, gradients: 1.5e-1, losses: 1e-2, weights: 1e-2 },
            Precision::AmpBf16 => Self { outputs: 5e-2, gradients: 3.5e-1, losses: 3e-2, weights: 5e-2 },
        }
    }
}

/// Compares each value in f32, where only the order of sums differs; in lower precision, where each value is rounded,
/// the norm of the difference.
#[track_caller]
fn agree(what: &str, precision: Precision, ours: &[f32], expected: &[f32], tolerance: f32) {
    if precision == Precision::Fp32 {
        return assert_close(what, ours, expected, tolerance);
    }
    assert_eq!(ours.len(), expected.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    let error = norm(&mut ours.iter().zip(expected).map(|(ours, expected)| ours - expected));
    let size = norm(&mut expected.iter().copied()).max(1e-6);
    assert!(error <= f64::from(tolerance) * size, "{what}: off by {error} of {size}");
}

/// Panics if a fixture's network differs.
pub fn agrees<B: ComputeBackend>(mut fixture: Fixture, name: &str, device: &B::Device, precision: Precision) {
    let tolerance = Tolerance::of(precision);
    let what = |detail: &str| format!("{name}, {precision:?}: {detail}");
    let specs: Vec<_> =
        UNet::<B>::new(fixture.spec.clone(), 0, device).parameters().iter().map(|p| p.spec.clone()).collect();
    let names: Vec<_> = specs.iter().map(|spec| &spec.name).collect();
    assert!(names.iter().eq(&fixture.names.iter().collect::<Vec<_>>()), "{}", what("names of the parameters"));
    let weights: Vec<TensorState> = fixture.state("w/", &specs).into_values().collect();
    let network = UNet::<B>::with_state(fixture.spec.clone(), &weights, device).unwrap().with_precision(precision);
    let initial = network.state();
    let heads = network.heads();
    let images = fixture.volume("x");

    let outputs = network.valid().forward(batch_tensor(images.view(), precision.activations(), device), heads);
    for (head, output) in outputs.into_iter().enumerate() {
        let ours = output.permute([0, 4, 1, 2, 3]).into_data().convert::<f32>().to_vec::<f32>().unwrap();
        let expected = fixture.volume(&format!("out{head}"));
        agree(&what(&format!("out{head}")), precision, &ours, expected.as_slice().unwrap(), tolerance.outputs);
    }

    let head_weights = nnunet_dist::loss::head_weights(heads, true);
    let weighted = head_weights.iter().filter(|weight| **weight > 0.0).count();
    let targets: Vec<_> = (0..weighted).map(|head| fixture.labels(&format!("target{head}"))).collect();
    let sgd = Sgd { momentum: 0.99, nesterov: true, weight_decay: 3e-5 };
    let loss = SegmentationLoss::new(Target::Classes, fixture.batch_dice, None);
    let optimizer = Optimizer::new(sgd, Some(12.0));
    let optimizer = if precision.scales_loss() { optimizer.with_dynamic_scale() } else { optimizer };
    let mut step = TrainStep::<B>::new(network, optimizer, loss, head_weights, device.clone());
    step.add(step.uploader().batch_with(images.view(), targets.to_vec()), &Single).unwrap();
    let gradients = step.gradients().unwrap();
    let expected = fixture.state("g/", &specs);
    let scale = if precision.scales_loss() { INITIAL_SCALE } else { 1.0 };
    // In 16 bits all gradients are compared as one vector: single small parameters have an error of one half in PyTorch
    // too.
    let (mut all_ours, mut all_expected) = (Vec::new(), Vec::new());
    let mut overflows = false;
    for (spec, gradient) in specs.iter().zip(gradients) {
        let Some(expected) = expected.get(&spec.name) else { continue };
        let Some(gradient) = gradient else {
            // The lowest head has weight 0.
            assert!(expected.values.iter().all(|g| *g == 0.0), "{}", what(&format!("no gradient of {}", spec.name)));
            continue;
        };
        if !is_rounding(&spec.name) {
            let data = burn::tensor::read_sync(B::InnerBackend::float_into_data(gradient)).unwrap();
            let mut ours = data.convert::<f32>().to_vec::<f32>().unwrap();
            ours.iter_mut().for_each(|value| *value /= scale);
            if precision.scales_loss() && ours.iter().any(|value| !value.is_finite()) {
                overflows = true;
                continue;
            }
            if precision == Precision::Fp32 {
                assert_close(
                    &what(&format!("gradient of {}", spec.name)),
                    &ours,
                    &expected.values,
                    tolerance.gradients,
                );
            }
            all_ours.extend(ours);
            all_expected.extend_from_slice(&expected.values);
        }
    }
    if precision != Precision::Fp32 {
        agree(&what("gradients"), precision, &all_ours, &all_expected, tolerance.gradients);
    }

    let losses: ArrayD<f64> = fixture.npz.by_name("losses.npy").unwrap();
    let mut iteration = 0;
    while iteration < losses.len() {
        let metrics = step.run(images.view(), &targets, 1e-2, &Single).unwrap();
        if overflows && !metrics.gradient_norm.is_finite() {
            println!("{}", what(&format!("a loss scale of {} is too large", metrics.loss_scale)));
            continue;
        }
        let expected = losses.as_slice().unwrap()[iteration];
        let error = (metrics.loss - expected).abs();
        assert!(error < tolerance.losses, "{}", what(&format!("loss {iteration}: {} for {expected}", metrics.loss)));
        if iteration == 0 || iteration == 9 {
            let expected = fixture.state(&format!("w{}/", iteration + 1), &specs);
            for (state, before) in step.network.state().into_iter().zip(&initial) {
                let name = &state.spec.name;
                if !is_rounding(name) {
                    let what = what(&format!("step {iteration}: {name}"));
                    // A step from an initial value of 0 is a gradient.
                    let is_gradient = iteration == 0 && before.values.iter().all(|value| *value == 0.0);
                    let tolerance = if is_gradient { tolerance.gradients } else { tolerance.weights };
                    agree(&what, precision, &state.values, &expected[name].values, tolerance);
                }
            }
        }
        iteration += 1;
    }
}
