//! Benchmark of the convolutions of a network, by layer and pass.

use std::hint::black_box;

use burn::tensor::{Distribution, Tensor, TensorPrimitive, ops::FloatTensor};

use super::{Row, StepBench, Work, measure};
use nnunet_data::plan::{Block, ConvNorm, Head, Upwards};
use nnunet_nn::ops::{ConvParams, NnOps, Pass, Precision, reference};

/// One convolution. A transposed convolution is listed as the convolution whose input gradient it is: from the finer to
/// the coarser grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvLayer {
    pub n: usize,
    /// Shape of the input, `(z, y, x)`.
    pub input: [usize; 3],
    pub c_in: usize,
    pub c_out: usize,
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
}

/// Timing of one pass of a layer.
#[derive(Clone, Debug)]
pub struct ConvTiming {
    pub layer: ConvLayer,
    pub pass: Pass,
    /// Timing of the kernel used in training.
    pub ours: Row,
    /// Timing of Burn's kernel.
    pub burns: Option<Row>,
}

impl ConvTiming {
    /// Records the time of Burn's kernel on this GPU; where it is faster than cuDNN's, it is used from now on.
    #[cfg(feature = "cuda")]
    pub fn note(&self, gpu: usize) {
        use nnunet_nn::ops::{BufferDtype, cudnn::Problem, note_burns, tf32};

        let Some(burns) = &self.burns else { return };
        let element = match self.ours.work.precision {
            Precision::Fp32 | Precision::Tf32 => BufferDtype::F32,
            Precision::AmpBf16 => BufferDtype::Bf16,
            Precision::AmpFp16 => BufferDtype::F16,
        };
        let ConvLayer { n, input, c_in, c_out, kernel, stride } = self.layer;
        let (padding, tf32) = (self.layer.padding(), tf32::allowed());
        // Weight gradients are f32 where cuDNN supports that.
        for weight_element in [BufferDtype::F32, element] {
            let pass = self.pass;
            let problem =
                Problem { pass, n, input, c_in, c_out, kernel, stride, padding, element, weight_element, tf32 };
            note_burns(gpu, &problem, burns.seconds.median());
        }
    }
}

impl ConvLayer {
    /// Half the kernel size, but none if the kernel size equals the stride.
    pub fn padding(&self) -> [usize; 3] {
        if self.is_transposed() { [0; 3] } else { self.kernel.map(|extent| extent / 2) }
    }

    fn is_transposed(&self) -> bool {
        self.kernel == self.stride && self.kernel != [1; 3]
    }

    fn output(&self) -> [usize; 3] {
        let padding = self.padding();
        std::array::from_fn(|axis| (self.input[axis] + 2 * padding[axis] - self.kernel[axis]) / self.stride[axis] + 1)
    }

    /// Floating-point operations (multiplications and additions) of each of the passes.
    pub fn flops(&self) -> f64 {
        let volume = |extent: [usize; 3]| extent.iter().product::<usize>() as f64;
        2.0 * self.n as f64 * volume(self.output()) * volume(self.kernel) * (self.c_in * self.c_out) as f64
    }

    fn name(&self) -> String {
        let of = |[z, y, x]: [usize; 3]| format!("{z}x{y}x{x}");
        let Self { n, input, c_in, c_out, kernel, stride } = self;
        let kind = if self.is_transposed() { "transposed " } else { "" };
        format!("{kind}{n}x{c_in}->{c_out} @{} k{} s{}", of(*input), of(*kernel), of(*stride))
    }
}

impl StepBench {
    /// Layers of the network, including the segmentation heads, with their number of occurrences.
    pub fn layers(&self) -> Vec<(ConvLayer, usize)> {
        let (mut layers, heads) = self.convolutions_and_heads();
        layers.extend(heads);
        counted(layers)
    }

    /// All convolutions including transposed ones, and the segmentation heads.
    fn convolutions_and_heads(&self) -> (Vec<ConvLayer>, Vec<ConvLayer>) {
        let Self { network, patch, batch_size: n, .. } = self;
        let (description, n) = (network.shape.layers(network.channels, network.classes), *n);
        let divided = |extent: [usize; 3], by: [usize; 3]| std::array::from_fn(|axis| extent[axis].div_ceil(by[axis]));
        let (mut layers, mut heads) = (Vec::new(), Vec::new());
        let mut add = |block: &Block, extent: [usize; 3]| {
            layers.extend(block.convolutions().into_iter().map(|(conv, step)| {
                let ConvNorm { from: c_in, to: c_out, kernel, stride, .. } = *conv;
                ConvLayer { n, input: divided(extent, step), c_in, c_out, kernel, stride }
            }));
            divided(extent, block.stride())
        };
        let mut extent = *patch;
        let mut extents = Vec::new();
        for blocks in &description.encoder {
            extent = blocks.iter().fold(extent, |extent, block| add(block, extent));
            extents.push(extent);
        }
        for (stage, &input) in description.decoder.iter().zip(extents.iter().rev().skip(1)) {
            stage.blocks.iter().fold(input, |extent, block| add(block, extent));
        }
        for (stage, &input) in description.decoder.iter().zip(extents.iter().rev().skip(1)) {
            let Upwards { from, to, stride, .. } = stage.up;
            layers.push(ConvLayer { n, input, c_in: to, c_out: from, kernel: stride, stride });
            let Head { from: c_in, classes: c_out, .. } = stage.head;
            heads.push(ConvLayer { n, input, c_in, c_out, kernel: [1; 3], stride: [1; 3] });
        }
        (layers, heads)
    }

    /// Times all passes of all layers except the heads, which use other kernels.
    pub fn convolutions<B: NnOps>(&self, device: &B::Device, rounds: usize, with_burns: bool) -> Vec<ConvTiming> {
        let layers = counted(self.convolutions_and_heads().0).into_iter();
        let passes = [Pass::Forward, Pass::BackwardInput, Pass::BackwardWeights];
        layers
            .flat_map(|(layer, _)| passes.map(|pass| self.time::<B>(layer, pass, device, rounds, with_burns)))
            .collect()
    }

    fn time<B: NnOps>(
        &self,
        layer: ConvLayer,
        pass: Pass,
        device: &B::Device,
        rounds: usize,
        with_burns: bool,
    ) -> ConvTiming {
        let ConvLayer { n, input: [z, y, x], c_in, c_out, kernel: [kz, ky, kx], stride } = layer;
        let [oz, oy, ox] = layer.output();
        let activations = |shape: [usize; 5]| random::<B>(shape, self.precision, device);
        let (x, grad) = (activations([n, z, y, x, c_in]), activations([n, oz, oy, ox, c_out]));
        let weight = random::<B>([c_out, c_in, kz, ky, kx], Precision::Fp32, device);
        let bias = Tensor::<B, 1>::zeros([c_out], device).into_primitive().tensor();
        // cuDNN does not compute bias gradients.
        let params = ConvParams { stride, padding: layer.padding(), bias_cancels: true };
        let timed = |kernels: &str, run: &dyn Fn() -> FloatTensor<B>| {
            let timings = measure::<()>(rounds, || {
                black_box(run());
                // Wait for queued work; a device error is reported by the next read.
                let _ = B::sync(device);
                Ok(())
            });
            let work = Work { items: 1.0, flops: layer.flops(), precision: self.precision, ..Work::default() };
            let name = format!("{pass:?} {}, {kernels}", layer.name());
            Row { name, unit: "runs", work, seconds: timings.expect("nothing here can fail") }
        };
        let ours = timed("ours", &|| {
            let (x, weight, grad) = (x.clone(), weight.clone(), grad.clone());
            match pass {
                Pass::Forward => B::conv(x, weight, bias.clone(), params),
                Pass::BackwardInput => B::conv_backward_input(x, weight, grad, params),
                Pass::BackwardWeights => B::conv_backward_weights(x, weight, grad, params).weight,
            }
        });
        let burns = with_burns.then(|| {
            timed("Burn's", &|| {
                let (x, weight, grad) = (x.clone(), weight.clone(), grad.clone());
                match pass {
                    Pass::Forward => reference::conv::<B>(x, weight, bias.clone(), params),
                    Pass::BackwardInput => reference::conv_backward_input::<B>(x, weight, grad, params),
                    Pass::BackwardWeights => reference::conv_backward_weights::<B>(x, weight, grad, params).weight,
                }
            })
        });
        ConvTiming { layer, pass, ours, burns }
    }
}

/// Counts equal layers.
fn counted(all: Vec<ConvLayer>) -> Vec<(ConvLayer, usize)> {
    let mut counted: Vec<(ConvLayer, usize)> = Vec::new();
    for layer in all {
        match counted.iter_mut().find(|(known, _)| *known == layer) {
            Some((_, count)) => *count += 1,
            None => counted.push((layer, 1)),
        }
    }
    counted
}

fn random<B: NnOps>(shape: [usize; 5], precision: Precision, device: &B::Device) -> FloatTensor<B> {
    let values = Tensor::<B, 5>::random(shape, Distribution::Uniform(-1.0, 1.0), device);
    match values.cast(precision.activations()).into_primitive() {
        TensorPrimitive::Float(values) => values,
        quantised => quantised.tensor(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plain_network;
    use super::*;

    #[test]
    fn layers_are_those_of_the_network() {
        let patch = [16; 3];
        let network = plain_network(patch, 1, 3, &[4, 8]);
        let step =
            StepBench { network, patch, batch_size: 2, precision: Precision::Fp32, gradient_checkpointing: false };
        let layers = step.layers();
        let find = |c_in, c_out, stride: usize| {
            let same = |(layer, _): &&(ConvLayer, usize)| {
                (layer.c_in, layer.c_out, layer.stride) == (c_in, c_out, [stride; 3])
            };
            layers
                .iter()
                .filter(same)
                .map(|(layer, count)| (layer.kernel[0], layer.input[0], *count))
                .collect::<Vec<_>>()
        };
        assert_eq!(find(1, 4, 1), [(3, 16, 1)]);
        // Once in the encoder and once in the decoder.
        assert_eq!(find(4, 4, 1), [(3, 16, 2)]);
        assert_eq!(find(4, 8, 2), [(3, 16, 1), (2, 16, 1)]);
        assert_eq!(find(8, 4, 1), [(3, 16, 1)]);
        assert_eq!(find(4, 3, 1), [(1, 16, 1)]);
        let flops: f64 = layers.iter().map(|(layer, count)| *count as f64 * layer.flops()).sum();
        let voxels = 2.0 * 4096.0;
        let encoder = voxels * 27.0 * (4.0 + 16.0) + voxels / 8.0 * 27.0 * (32.0 + 64.0);
        let decoder = voxels / 8.0 * 8.0 * 32.0 + voxels * (27.0 * (32.0 + 16.0) + 12.0);
        assert_eq!(flops, 2.0 * (encoder + decoder));
    }

    #[test]
    fn all_passes_are_timed() {
        let patch = [1, 8, 8];
        let step = StepBench {
            network: plain_network(patch, 1, 2, &[4, 8]),
            patch,
            batch_size: 1,
            precision: Precision::Fp32,
            gradient_checkpointing: false,
        };
        let timings = step.convolutions::<burn::backend::Flex>(&Default::default(), 1, true);
        assert_eq!(timings.len(), 3 * (step.layers().len() - 1));
        assert!(timings.iter().all(|timing| timing.burns.is_some()));
        assert!(timings[0].ours.name.starts_with("Forward 1x1->4 @1x8x8 k1x3x3 s1x1x1"), "{}", timings[0].ours.name);
    }
}
