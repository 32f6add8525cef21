//! Weight initialization.

use rand_distr::{Distribution, Normal};

use super::{ParameterSpec, TensorState};
use nnunet_core::rng::{Purpose, stream};

/// Slope of the leaky ReLU in He's formula, as in nnU-Net's `InitWeights_He(1e-2)`.
const NEGATIVE_SLOPE: f64 = 1e-2;

/// Initializes a parameter: convolutions by He initialization (He et al. 2015, fan-in mode), biases and shifts to 0,
/// norm scales to 1. The scale of the last norm in a residual block is 0, so that the block starts as its skip
/// connection (nnU-Net's `init_last_bn_before_add_to_0`).
///
/// `index` is the parameter's index in the network and keys its random stream.
pub fn he(spec: ParameterSpec, seed: u64, index: usize) -> TensorState {
    let values = if spec.shape.len() > 1 {
        // PyTorch computes the fan-in from the second axis, also for transposed convolutions.
        let fan_in: usize = spec.shape[1..].iter().product();
        let deviation = (2.0 / ((1.0 + NEGATIVE_SLOPE * NEGATIVE_SLOPE) * fan_in as f64)).sqrt();
        let normal = Normal::new(0.0, deviation).expect("the fan-in is positive");
        let mut stream = stream(seed, Purpose::Weights, 0, index as u64);
        (0..spec.len()).map(|_| normal.sample(&mut stream) as f32).collect()
    } else {
        let is_scale = spec.name.ends_with("norm.weight") && !spec.name.ends_with("conv2.norm.weight");
        vec![if is_scale { 1.0 } else { 0.0 }; spec.len()]
    };
    TensorState { spec, values }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_hes_deviation_and_the_rest_is_constant() {
        let spec = |name: &str, shape: &[usize]| ParameterSpec { name: name.into(), shape: shape.into() };
        let weights = he(spec("a.conv.weight", &[64, 32, 3, 3, 3]), 7, 3).values;
        let variance = weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / weights.len() as f64;
        let expected = 2.0 / (1.0001 * 32.0 * 27.0);
        assert!((variance / expected - 1.0).abs() < 0.02, "{variance} against {expected}");
        assert!(he(spec("a.norm.weight", &[5]), 7, 0).values.iter().all(|v| *v == 1.0));
        assert!(he(spec("a.conv2.norm.weight", &[5]), 7, 0).values.iter().all(|v| *v == 0.0));
        assert!(he(spec("a.conv.bias", &[5]), 7, 0).values.iter().all(|v| *v == 0.0));
        assert_ne!(weights[..8], he(spec("a.conv.weight", &[64, 32, 3, 3, 3]), 7, 4).values[..8]);
    }
}
