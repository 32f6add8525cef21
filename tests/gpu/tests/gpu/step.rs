//! Training steps on the GPU, or on Vulkan in software: all device work of a step is queued, and gives the result of
//! the CPU.

use burn::backend::{Autodiff, Flex};
use gpu_tests::{Gpu, formats};
use ndarray::{Array4, Array5};
use nnunet_dist::backend::ComputeBackend;
use nnunet_dist::distributed::Single;
use nnunet_dist::loss::{SegmentationLoss, Target, VoxelLoss};
use nnunet_dist::model::{UNet, UNetSpec};
use nnunet_dist::ops::Precision;
use nnunet_dist::optim::{Adam, Optimizer, Rule, Sgd};
use nnunet_dist::plan::{NetworkShape, PLAIN_CONV_UNET};
use nnunet_dist::train::{StepMetrics, TrainStep, Validation, ValidationResult};

const STEPS: usize = 6;

fn spec() -> UNetSpec {
    let shape = NetworkShape {
        network: &PLAIN_CONV_UNET,
        features: vec![8, 16, 24],
        kernels: vec![[1, 3, 3], [3; 3], [3; 3]],
        strides: vec![[1; 3], [1, 2, 2], [2; 3]],
        blocks_encoder: vec![2; 3],
        convs_decoder: vec![2; 2],
        conv_bias: true,
        norm_eps: 1e-5,
    };
    UNetSpec { channels: 2, classes: 3, shape }
}

fn batch(seed: usize) -> (Array5<f32>, Array4<i16>) {
    let labels = Array4::from_shape_fn((2, 6, 16, 16), |(n, z, y, x)| ((n + seed + z / 2 + y / 5 + x / 6) % 3) as i16);
    let images = Array5::from_shape_fn((2, 2, 6, 16, 16), |(n, c, z, y, x)| {
        let texture = ((seed * 31 + n * 17 + c * 5 + z * 3 + y * 7 + x * 13) as f32 * 0.37).sin();
        texture + f32::from(labels[[n, z, y, x]])
    });
    (images, labels)
}

fn train<B: ComputeBackend>(
    device: B::Device,
    precision: Precision,
    rule: impl Into<Rule>,
    batch_dice: bool,
) -> (Vec<StepMetrics>, Vec<f32>) {
    let network = UNet::<B>::new(spec(), 3, &device).with_precision(precision);
    let optimizer = Optimizer::new(rule, Some(12.0));
    let optimizer = if precision.scales_loss() { optimizer.with_dynamic_scale() } else { optimizer };
    let loss = SegmentationLoss::new(Target::Classes, batch_dice, None);
    let mut step = TrainStep::<B>::new(network, optimizer, loss, vec![0.75, 0.25], device);
    let upload = step.uploader();
    for number in 0..STEPS {
        let (images, labels) = batch(number);
        step.add(upload.batch(images.view(), labels.view()), &Single).unwrap();
        step.update(0.01).unwrap();
    }
    assert_eq!(step.pending(), STEPS);
    let metrics = step.metrics(&Single).unwrap();
    let weights = step.network.state().into_iter().flat_map(|tensor| tensor.values).collect();
    (metrics, weights)
}

fn sgd() -> Sgd {
    Sgd { momentum: 0.9, nesterov: true, weight_decay: 3e-5 }
}

#[track_caller]
fn assert_alike(tolerance: f64, ours: &[StepMetrics], expected: &[StepMetrics]) {
    assert_eq!(ours.len(), expected.len());
    for (ours, expected) in ours.iter().zip(expected) {
        assert!((ours.loss - expected.loss).abs() < tolerance, "{ours:?} and {expected:?}");
        let difference = (ours.gradient_norm - expected.gradient_norm).abs();
        assert!(difference < 5.0 * tolerance * (1.0 + expected.gradient_norm), "{ours:?} and {expected:?}");
    }
}

#[test]
fn steps_are_those_of_the_cpu() {
    let Some(device) = gpu_tests::device() else { return };
    let rules: [(Rule, bool); 3] = [(sgd().into(), true), (sgd().into(), false), (Adam::default().into(), true)];
    for (rule, batch_dice) in rules {
        let (expected, weights) = train::<Autodiff<Flex>>(Default::default(), Precision::Fp32, rule, batch_dice);
        let (ours, our_weights) = train::<Autodiff<Gpu>>(device.clone(), Precision::Fp32, rule, batch_dice);
        assert_alike(2e-4, &ours, &expected);
        // Adam divides small gradients by their size: rounding decides the sign of some updates.
        let far = our_weights.iter().zip(&weights).filter(|(ours, cpus)| (**ours - **cpus).abs() > 2e-3).count();
        assert!(far * 100 < weights.len(), "{far} of {} weights differ", weights.len());
    }
}

#[test]
fn gradient_checkpointing_trains_the_same() {
    let Some(device) = gpu_tests::device() else { return };
    let train = |checkpointing| {
        let network = UNet::<Autodiff<Gpu>>::new(spec(), 3, &device);
        let loss = SegmentationLoss::new(Target::Classes, true, None);
        let optimizer = Optimizer::new(sgd(), Some(12.0));
        let mut step = TrainStep::new(network, optimizer, loss, vec![0.75, 0.25], device.clone())
            .with_checkpointing(checkpointing);
        for number in 0..STEPS {
            let (images, labels) = batch(number);
            step.add(step.uploader().batch(images.view(), labels.view()), &Single).unwrap();
            step.update(0.01).unwrap();
        }
        step.metrics(&Single).unwrap()
    };
    assert_alike(1e-5, &train(true), &train(false));
}

#[test]
fn sixteen_bit_precisions_train_too() {
    let Some(device) = gpu_tests::device() else { return };
    let (expected, _) = train::<Autodiff<Flex>>(Default::default(), Precision::Fp32, sgd(), true);
    let all = [Precision::AmpFp16, Precision::AmpBf16].map(|precision| (precision.activations(), 0.0));
    for (dtype, _) in formats(&device, &all) {
        let precision = if dtype == Precision::AmpFp16.activations() { Precision::AmpFp16 } else { Precision::AmpBf16 };
        let (ours, _) = train::<Autodiff<Gpu>>(device.clone(), precision, sgd(), true);
        let skipped: Vec<_> = ours.iter().filter(|step| !step.gradient_norm.is_finite()).collect();
        println!("{precision:?}: {ours:?}");
        // The first scales may overflow; each time the next one is half of it, and the step is skipped.
        for pair in ours.windows(2) {
            let factor = if pair[0].gradient_norm.is_finite() { 1.0 } else { 0.5 };
            assert_eq!(pair[1].loss_scale, factor * pair[0].loss_scale, "{pair:?}");
        }
        assert_eq!(ours[0].loss_scale, if precision.scales_loss() { 65536.0 } else { 1.0 });
        assert!(ours.iter().all(|step| step.loss.is_finite()));
        if skipped.is_empty() {
            assert_alike(3e-2, &ours, &expected);
        }
    }
}

fn validate<B: ComputeBackend>(device: B::Device, loss: &SegmentationLoss) -> ValidationResult {
    let network = UNet::<B>::new(spec(), 3, &device);
    let step =
        TrainStep::<B>::new(network, Optimizer::new(sgd(), None), loss.clone(), vec![0.75, 0.25], device.clone());
    let (upload, network) = (step.uploader(), step.network.valid());
    let mut validation = Validation::new(&network, loss, &step.head_weights, &device);
    for number in 0..3 {
        let (images, labels) = batch(number);
        validation.add(upload.batch(images.view(), labels.view()), &Single).unwrap();
    }
    validation.finish(&Single).unwrap()
}

#[test]
fn validation_counts_equal_the_cpus() {
    let Some(device) = gpu_tests::device() else { return };
    let regions = Target::Regions(vec![vec![1, 2], vec![2], vec![1]]);
    let classes = SegmentationLoss::new(Target::Classes, true, None);
    for loss in [
        SegmentationLoss { voxels: VoxelLoss::Focal { gamma: 2.0 }, ..classes.clone() },
        SegmentationLoss { class_weights: vec![0.1, 1.0, 3.0], ..classes.clone() },
        classes,
        SegmentationLoss::new(Target::Classes, false, Some(2)),
        SegmentationLoss::new(regions, true, None),
    ] {
        let expected = validate::<Autodiff<Flex>>(Default::default(), &loss);
        let ours = validate::<Autodiff<Gpu>>(device.clone(), &loss);
        assert!((ours.loss - expected.loss).abs() < 1e-4, "{ours:?} and {expected:?}");
        for (ours, expected) in ours.pseudo_dice.iter().zip(&expected.pseudo_dice) {
            let (ours, expected) = (ours.unwrap_or(-1.0), expected.unwrap_or(-1.0));
            assert!((ours - expected).abs() < 1e-3, "{ours} and {expected}");
        }
    }
}
