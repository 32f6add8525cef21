//! Choice of batch size and memory placement for sliding-window inference.

use super::InferError;
use super::options::{AccumulatorDtype, Batching, MemoryOptions};
use super::sliding_window::SlidingWindow;
use nnunet_core::memory;
use nnunet_nn::model::UNetSpec;

/// Live arrays of the network's first stage at the peak: the two concatenated inputs of the last stage and its output.
const LIVE_ARRAYS: usize = 6;

impl Batching {
    /// Chooses the batching for an image `(z, y, x)` within the limits of the options.
    ///
    /// # Errors
    /// Returns an error if the accumulated logits exceed the limit even in half precision.
    pub fn new(
        options: &MemoryOptions,
        sliding: &SlidingWindow,
        network: &UNetSpec,
        image: [usize; 3],
    ) -> Result<Self, InferError> {
        let batch_size =
            options.batch_size.unwrap_or_else(|| batch_size(options.activation_bytes, sliding, network)).max(1);
        let bytes = |accumulator_dtype| sliding.slab_bytes(image, network.classes, accumulator_dtype);
        let accumulator_dtype = match options.limit {
            Some(limit) if bytes(AccumulatorDtype::F16) > limit => {
                return Err(InferError::Memory { needed: bytes(AccumulatorDtype::F16), limit });
            }
            None => {
                memory::check_fits(bytes(options.accumulator_dtype)).map_err(|excess| InferError::TooLarge {
                    what: format!(
                        "the accumulated logits of {} classes for {image:?} voxels (z, y, x) at the target spacing",
                        network.classes
                    ),
                    excess: format!("{excess}; --accumulator-dtype f16 halves them"),
                })?;
                options.accumulator_dtype
            }
            Some(limit) if bytes(options.accumulator_dtype) > limit => AccumulatorDtype::F16,
            _ => options.accumulator_dtype,
        };
        if accumulator_dtype != options.accumulator_dtype {
            let mib = bytes(options.accumulator_dtype) >> 20;
            tracing::info!("accumulating logits in half precision: single precision would need {mib} MiB");
        }
        let on_device = sliding.device_bytes(image, network.channels, network.classes) <= options.activation_bytes;
        Ok(Self { batch_size, accumulator_dtype, on_device })
    }
}

/// Returns the number of windows that fit into `activation_bytes`: a multiple of the number of mirrorings, or a
/// divisor of it.
fn batch_size(activation_bytes: u64, sliding: &SlidingWindow, network: &UNetSpec) -> usize {
    let values = LIVE_ARRAYS * network.shape.features[0] + 2 * network.classes;
    let bytes = 4 * values * sliding.window.iter().product::<usize>();
    let fitting = (activation_bytes / bytes as u64).max(1) as usize;
    let mirrorings = sliding.num_mirrorings();
    match fitting >= mirrorings {
        true => fitting / mirrorings * mirrorings,
        // The number of mirrorings is a power of 2.
        false => 1 << fitting.ilog2(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Blend;
    use nnunet_data::plan::{NetworkShape, PLAIN_CONV_UNET};

    fn spec(features: usize) -> UNetSpec {
        let shape = NetworkShape {
            network: &PLAIN_CONV_UNET,
            features: vec![features],
            strides: vec![[1; 3]],
            kernels: vec![[3; 3]],
            blocks_encoder: vec![2],
            convs_decoder: Vec::new(),
            conv_bias: true,
            norm_eps: 1e-5,
        };
        UNetSpec { channels: 1, classes: 105, shape }
    }

    fn sliding(window: [usize; 3]) -> SlidingWindow {
        SlidingWindow { window, step: 0.5, blend: Blend::Gaussian, mirror_axes: vec![0, 1, 2] }
    }

    #[test]
    fn half_precision_comes_with_a_limit_and_ends_with_it() {
        let (window, image) = (sliding([128; 3]), [1000, 512, 512]);
        let gib = |gib: u64| MemoryOptions { limit: Some(gib << 30), ..MemoryOptions::default() };
        let accumulator_dtype =
            |options| Batching::new(&options, &window, &spec(32), image).map(|found| found.accumulator_dtype);
        assert_eq!(accumulator_dtype(MemoryOptions::default()).unwrap(), AccumulatorDtype::F32);
        assert_eq!(accumulator_dtype(gib(14)).unwrap(), AccumulatorDtype::F32);
        assert_eq!(accumulator_dtype(gib(7)).unwrap(), AccumulatorDtype::F16);
        let error = accumulator_dtype(gib(6)).unwrap_err().to_string();
        assert!(error.contains("6720 MiB") && error.contains("6144 MiB"), "{error}");
    }

    #[test]
    fn batches_hold_whole_sets_of_mirrorings_or_equal_parts_of_one() {
        let batch_size = |window, features| batch_size(64 << 20, &sliding(window), &spec(features));
        assert_eq!(batch_size([16; 3], 4), 16);
        assert_eq!(batch_size([256; 3], 32), 1);
        for edge in 16..128 {
            let found = batch_size([edge; 3], 8);
            assert!(found % 8 == 0 || 8 % found == 0, "{found} windows of {edge}");
        }
    }
}
