//! Fixtures of networks with weights, inputs and results: nnU-Net's plain U-Net with one array per parameter, and the
//! networks of `tests/fixtures` with one array for all parameters.
#![allow(dead_code)]

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use ndarray::{Array4, Array5, ArrayD, Axis, IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, ReadNpzError};
use nnunet_dist::model::{ParameterSpec, TensorState, UNetSpec};
use nnunet_dist::plan::{NetworkShape, PLAIN_CONV_UNET, RESIDUAL_ENCODER_UNET};

#[derive(serde::Deserialize)]
struct Description {
    cin: usize,
    classes: usize,
    features: Vec<usize>,
    kernels: Vec<Vec<usize>>,
    strides: Vec<Vec<usize>>,
    batch_dice: bool,
    /// Residual blocks per stage of a residual encoder.
    blocks: Option<Vec<usize>>,
    param_names: Vec<String>,
}

/// The arrays of a fixture; 2D ones get a z extent of 1.
pub struct Fixture {
    pub npz: NpzReader<File>,
    pub spec: UNetSpec,
    pub batch_dice: bool,
    /// PyTorch's parameter names, in its order.
    pub names: Vec<String>,
}

/// Inserts a z extent of 1 before the last two axes of a 2D array.
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
    pub fn open(path: &Path) -> Self {
        let json = File::open(path.with_extension("json")).unwrap();
        let description: Description = serde_json::from_reader(json).unwrap();
        let stages = description.features.len();
        let (network, convs_decoder): (_, usize) = match description.blocks {
            Some(_) => (&RESIDUAL_ENCODER_UNET, 1),
            None => (&PLAIN_CONV_UNET, 2),
        };
        let shape = NetworkShape {
            network,
            features: description.features,
            kernels: description.kernels.iter().map(|kernel| lift3(kernel, 1)).collect(),
            strides: description.strides.iter().map(|stride| lift3(stride, 1)).collect(),
            blocks_encoder: description.blocks.unwrap_or(vec![2; stages]),
            convs_decoder: vec![convs_decoder; stages - 1],
            conv_bias: true,
            norm_eps: 1e-5,
        };
        Self {
            npz: NpzReader::new(File::open(path).unwrap()).unwrap(),
            spec: UNetSpec { channels: description.cin, classes: description.classes, shape },
            batch_dice: description.batch_dice,
            names: description.param_names,
        }
    }

    pub fn floats(&mut self, name: &str) -> Result<ArrayD<f32>, ReadNpzError> {
        self.npz.by_name::<OwnedRepr<f32>, IxDyn>(&format!("{name}.npy"))
    }

    /// An array `(n, c, z, y, x)`.
    pub fn volume(&mut self, name: &str) -> Array5<f32> {
        lift(self.floats(name).unwrap(), 5).into_dimensionality().unwrap()
    }

    /// An array `(n, z, y, x)`.
    pub fn labels(&mut self, name: &str) -> Array4<i16> {
        let labels: ArrayD<i16> = self.npz.by_name(&format!("{name}.npy")).unwrap();
        let labels = labels.index_axis_move(Axis(1), 0);
        let labels = if labels.ndim() == 3 { labels.insert_axis(Axis(1)) } else { labels };
        labels.into_dimensionality().unwrap()
    }

    /// Weights or gradients by parameter of the network; 2D kernels become 3D ones.
    pub fn state(&mut self, prefix: &str, specs: &[ParameterSpec]) -> HashMap<String, TensorState> {
        if let Ok(all) = self.floats(prefix.trim_end_matches('/')) {
            let mut values = all.into_iter();
            let state = specs.iter().map(|spec| {
                let values = values.by_ref().take(spec.len()).collect();
                (spec.name.clone(), TensorState { spec: spec.clone(), values })
            });
            return state.collect();
        }
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
pub fn assert_close(what: &str, ours: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-6f32, |largest, value| largest.max(value.abs()));
    for (ours, expected) in ours.iter().zip(expected) {
        assert!((ours - expected).abs() <= tolerance * largest, "{what}: {ours} for {expected} (largest {largest})");
    }
}

/// The gradient of a bias before a norm is only rounding error.
pub fn is_rounding(name: &str) -> bool {
    name.ends_with("conv.bias")
}
