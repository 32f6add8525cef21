//! Networks, their gradients and ten optimisation steps agree with PyTorch's (`fixtures/net`).

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use burn::backend::Flex;
use burn::tensor::ops::FloatTensorOps;
use ndarray::{Array4, Array5, ArrayD, Axis, IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, ReadNpzError};
use nnunet_dist::backend::Cpu;
use nnunet_dist::dist::Single;
use nnunet_dist::loss::{SegmentationLoss, Target};
use nnunet_dist::model::{ParameterSpec, TensorState, UNet, UNetSpec, batch_tensor};
use nnunet_dist::optim::{Optimizer, Sgd};
use nnunet_dist::plan::NetworkShape;
use nnunet_dist::train::{StepMetrics, TrainStep};

type Device = burn::tensor::Device<Cpu>;

#[derive(serde::Deserialize)]
struct Description {
    cin: usize,
    classes: usize,
    features: Vec<usize>,
    kernels: Vec<Vec<usize>>,
    strides: Vec<Vec<usize>>,
    batch_dice: bool,
}

/// A fixture's arrays; 2D ones get a z extent of 1.
struct Fixture {
    npz: NpzReader<File>,
    spec: UNetSpec,
    batch_dice: bool,
}

/// Inserts a z extent before the last two axes of a 2D array.
fn lift(array: ArrayD<f32>, rank: usize) -> ArrayD<f32> {
    if array.ndim() == rank - 1 { array.insert_axis(Axis(rank - 3)) } else { array }
}

fn lift3(values: &[usize], fill: usize) -> [usize; 3] {
    match values {
        [z, y, x] => [*z, *y, *x],
        [y, x] => [fill, *y, *x],
        _ => panic!("two or three axes"),
    }
}

impl Fixture {
    fn open(path: &Path) -> Self {
        let json = File::open(path.with_extension("json")).unwrap();
        let description: Description = serde_json::from_reader(json).unwrap();
        let stages = description.features.len();
        let shape = NetworkShape {
            features: description.features,
            kernels: description.kernels.iter().map(|kernel| lift3(kernel, 1)).collect(),
            strides: description.strides.iter().map(|stride| lift3(stride, 1)).collect(),
            convs_encoder: vec![2; stages],
            convs_decoder: vec![2; stages - 1],
            conv_bias: true,
            norm_eps: 1e-5,
        };
        Self {
            npz: NpzReader::new(File::open(path).unwrap()).unwrap(),
            spec: UNetSpec { channels: description.cin, classes: description.classes, shape },
            batch_dice: description.batch_dice,
        }
    }

    fn floats(&mut self, name: &str) -> Result<ArrayD<f32>, ReadNpzError> {
        self.npz.by_name::<OwnedRepr<f32>, IxDyn>(&format!("{name}.npy"))
    }

    /// `(n, c, z, y, x)`.
    fn volume(&mut self, name: &str) -> Array5<f32> {
        lift(self.floats(name).unwrap(), 5).into_dimensionality().unwrap()
    }

    /// `(n, z, y, x)`.
    fn labels(&mut self, name: &str) -> Array4<i16> {
        let labels: ArrayD<i16> = self.npz.by_name(&format!("{name}.npy")).unwrap();
        let labels = labels.index_axis_move(Axis(1), 0);
        let labels = if labels.ndim() == 3 { labels.insert_axis(Axis(1)) } else { labels };
        labels.into_dimensionality().unwrap()
    }

    /// Weights, or gradients, by the network's parameters; 2D kernels become 3D ones.
    fn state(&mut self, prefix: &str, specs: &[ParameterSpec]) -> HashMap<String, TensorState> {
        let state = specs.iter().filter_map(|spec| {
            let array = self.floats(&format!("{prefix}{}", spec.name)).ok()?;
            let array = if array.ndim() == 4 { lift(array, 5) } else { array };
            assert_eq!(array.shape(), spec.shape, "{}", spec.name);
            let values = array.iter().copied().collect();
            Some((spec.name.clone(), TensorState { spec: spec.clone(), values }))
        });
        state.collect()
    }
}

#[track_caller]
fn assert_close(what: &str, ours: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-6f32, |largest, value| largest.max(value.abs()));
    for (ours, expected) in ours.iter().zip(expected) {
        assert!((ours - expected).abs() <= tolerance * largest, "{what}: {ours} for {expected} (largest {largest})");
    }
}

/// A bias before a norm has no gradient but rounding errors.
fn is_rounding(name: &str) -> bool {
    name.ends_with("conv.bias")
}

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
        let mut metrics = StepMetrics::default();
        let gradients = step.gradients(images.view(), &targets, &Single, &mut metrics).unwrap();
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
