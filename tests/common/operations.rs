//! Compares every operation of a backend with its reference implementation on the CPU in f32, forward and backward, on
//! random shapes, for each activation type of the backend. Used for CPUs and GPUs.
// The tests of a backend use a part of this module.
#![allow(dead_code)]

use burn::backend::Flex;
use burn::tensor::{
    DType, Distribution, FloatDType, Int, Tensor, TensorData, TensorMetadata, TensorPrimitive, backend::Backend,
    ops::FloatTensor,
};
use nnunet_dist::loss::{GlobalSums, SegmentationLoss, Target, VoxelLoss};
use nnunet_dist::ops::{
    AdamStep, ConvParams, DecisionParams, GradScaler, LossGradientInput, LossParams, LossTarget, NnOps, NormParams,
    SgdStep, UpdateDecision, reference,
};

/// An activation type and the largest allowed difference, relative to the largest value.
type Format = (FloatDType, f32);
pub const F32: Format = (FloatDType::F32, 2e-5);
/// bfloat16 has eight binary digits; weights are rounded to it too.
pub const BF16: Format = (FloatDType::BF16, 1.2e-2);
/// IEEE half precision has eleven binary digits.
pub const F16: Format = (FloatDType::F16, 2e-3);

/// Input and output type of the reference.
type Reference<const D: usize> = Tensor<Flex, D>;

/// A backend under test.
pub struct Subject<B: Backend> {
    pub device: B::Device,
    pub formats: Vec<Format>,
}

/// `(n, c_in, c_out, extent, kernel, stride)`; padding is kernel / 2 as in the U-Net.
type Convolution = (usize, usize, usize, [usize; 3], [usize; 3], [usize; 3]);
const CONVOLUTIONS: [Convolution; 9] = [
    (1, 1, 8, [7, 9, 6], [3, 3, 3], [1, 1, 1]),
    (2, 3, 5, [6, 8, 10], [3, 3, 3], [1, 1, 1]),
    (2, 16, 32, [8, 8, 8], [3, 3, 3], [2, 2, 2]),
    (2, 4, 6, [7, 9, 5], [3, 3, 3], [2, 2, 2]),
    (1, 16, 16, [5, 12, 12], [1, 3, 3], [1, 2, 2]),
    (1, 16, 32, [5, 12, 12], [3, 3, 3], [1, 2, 2]),
    (3, 2, 16, [1, 16, 14], [1, 3, 3], [1, 1, 1]),
    (2, 8, 8, [1, 15, 16], [1, 3, 3], [1, 2, 2]),
    (2, 16, 3, [4, 4, 4], [1, 1, 1], [1, 1, 1]),
];

/// Seeds the random numbers. With other seeds, one in a million inputs of an activation is so close to 0 that rounding
/// decides its sign, and so its gradient.
fn draw_the_same_each_time() {
    Flex::seed(&Default::default(), 1);
}

fn random<const D: usize>(shape: [usize; D]) -> Reference<D> {
    Tensor::random(shape, Distribution::Normal(0.3, 1.0), &Default::default())
}

fn primitive<const D: usize>(tensor: &Reference<D>) -> FloatTensor<Flex> {
    tensor.clone().into_primitive().tensor()
}

impl<B: NnOps> Subject<B> {
    /// Copies a tensor to the backend, in this type.
    fn give<const D: usize>(&self, tensor: &Reference<D>, dtype: FloatDType) -> FloatTensor<B> {
        let given = B::float_from_data(tensor.to_data(), &self.device);
        if dtype == FloatDType::F32 { given } else { B::float_cast(given, dtype) }
    }

    /// A random activation on the backend, and the same values in f32 for the reference.
    fn activation<const D: usize>(&self, shape: [usize; D], dtype: FloatDType) -> (FloatTensor<B>, FloatTensor<Flex>) {
        self.typed(&random(shape), dtype)
    }

    fn typed<const D: usize>(&self, x: &Reference<D>, dtype: FloatDType) -> (FloatTensor<B>, FloatTensor<Flex>) {
        let rounded: Reference<D> = x.clone().cast(dtype).cast(FloatDType::F32);
        (self.give(&rounded, dtype), primitive(&rounded))
    }

    /// A random parameter, on the backend and for the reference.
    fn parameter<const D: usize>(&self, shape: [usize; D]) -> (FloatTensor<B>, FloatTensor<Flex>) {
        self.activation(shape, FloatDType::F32)
    }

    fn scaler(&self, scaler: GradScaler) -> (FloatTensor<B>, FloatTensor<Flex>) {
        let values = Tensor::from_data(scaler.values(), &Default::default());
        (self.give::<1>(&values, FloatDType::F32), primitive(&values))
    }

    /// Each case with each format.
    fn all<T: Copy>(&self, cases: &[T]) -> Vec<(T, Format)> {
        draw_the_same_each_time();
        cases.iter().flat_map(|case| self.formats.iter().map(|format| (*case, *format))).collect()
    }

    pub fn convolution_agrees(&self) {
        for ((n, c_in, c_out, [z, y, x], kernel, stride), (dtype, tolerance)) in self.all(&CONVOLUTIONS) {
            let params = ConvParams { stride, padding: kernel.map(|kernel| kernel / 2), bias_cancels: false };
            let what = format!("{dtype:?} {n} x {c_in}->{c_out} @{z}x{y}x{x} kernel {kernel:?} stride {stride:?}");
            let (input, wide) = self.activation([n, z, y, x, c_in], dtype);
            let (weight, wide_weight) = self.parameter([c_out, c_in, kernel[0], kernel[1], kernel[2]]);
            let (bias, wide_bias) = self.parameter([c_out]);

            let output = B::conv(input.clone(), weight.clone(), bias, params);
            assert_type::<B>(&output, dtype);
            let shape: [usize; 5] = output.shape().dims();
            let expected = reference::conv::<Flex>(wide.clone(), wide_weight.clone(), wide_bias, params);
            within::<B>(tolerance, &format!("{what}: forward"), output, expected);

            let (grad, wide_grad) = self.activation(shape, dtype);
            let ours = B::conv_backward_input(input.clone(), weight.clone(), grad.clone(), params);
            assert_type::<B>(&ours, dtype);
            let expected =
                reference::conv_backward_input::<Flex>(wide.clone(), wide_weight.clone(), wide_grad.clone(), params);
            within::<B>(tolerance, &format!("{what}: input gradient"), ours, expected);
            let ours = B::conv_backward_weights(input.clone(), weight.clone(), grad.clone(), params);
            let expected = reference::conv_backward_weights::<Flex>(wide, wide_weight, wide_grad, params);
            assert_type::<B>(&ours.weight, FloatDType::F32);
            within::<B>(tolerance, &format!("{what}: weight gradient"), ours.weight.clone(), expected.weight);
            within::<B>(tolerance, &format!("{what}: bias gradient"), ours.bias, expected.bias);
            // Before a norm the results are the same, except that the gradient of the bias may be omitted.
            let normed = ConvParams { bias_cancels: true, ..params };
            let d = B::conv_backward_weights(input, weight, grad, normed);
            assert_eq!(values::<B>(d.weight), values::<B>(ours.weight), "{what}: before a norm");
            assert_eq!(d.bias.shape().dims(), [c_out], "{what}: before a norm");
        }
    }

    pub fn transposed_convolution_agrees(&self) {
        let shapes = [
            (2, 8, 4, [3, 4, 5], [2, 2, 2]),
            (1, 32, 16, [4, 4, 4], [2, 2, 2]),
            (2, 16, 8, [3, 6, 6], [1, 2, 2]),
            (2, 6, 5, [1, 8, 7], [1, 2, 2]),
        ];
        for ((n, c_in, c_out, [z, y, x], [kz, ky, kx]), (dtype, tolerance)) in self.all(&shapes) {
            let what = format!("{dtype:?} {n} x {c_in}->{c_out} @{z}x{y}x{x} kernel {kz}x{ky}x{kx}");
            let (input, wide) = self.activation([n, z, y, x, c_in], dtype);
            let (weight, wide_weight) = self.parameter([c_in, c_out, kz, ky, kx]);
            let (bias, wide_bias) = self.parameter([c_out]);
            let output = B::conv_transpose(input.clone(), weight.clone(), bias);
            assert_type::<B>(&output, dtype);
            let expected = reference::conv_transpose::<Flex>(wide.clone(), wide_weight.clone(), wide_bias);
            within::<B>(tolerance, &what, output, expected);
            let (grad, wide_grad) = self.activation([n, z * kz, y * ky, x * kx, c_out], dtype);
            let ours = B::conv_transpose_backward_input(weight.clone(), grad.clone());
            assert_type::<B>(&ours, dtype);
            let expected = reference::conv_transpose_backward_input::<Flex>(wide_weight.clone(), wide_grad.clone());
            within::<B>(tolerance, &format!("{what}: input gradient"), ours, expected);
            let ours = B::conv_transpose_backward_weights(input, weight, grad);
            let expected = reference::conv_transpose_backward_weights::<Flex>(wide, wide_weight, wide_grad);
            within::<B>(tolerance, &format!("{what}: weight gradient"), ours.weight, expected.weight);
            within::<B>(tolerance, &format!("{what}: bias gradient"), ours.bias, expected.bias);
        }
    }

    pub fn norm_and_activation_agree(&self) {
        let params = NormParams { eps: 1e-5, negative_slope: 0.01 };
        // The last shape has more channels than a GPU kernel's cube has units.
        let shapes = [
            (2, 3, [4, 5, 6]),
            (1, 32, [9, 17, 11]),
            (3, 20, [1, 30, 40]),
            (2, 1, [3, 3, 3]),
            (1, 300, [2, 9, 7]),
            (1, 1040, [2, 2, 3]),
        ];
        for ((n, c, [z, y, x]), (dtype, tolerance)) in self.all(&shapes) {
            let what = format!("{dtype:?} {n} x {c} @{z}x{y}x{x}");
            // A mean well above the deviation, as after a bias; beyond this the reference itself loses precision.
            let (input, wide) = self.typed(&random([n, z, y, x, c]).add_scalar(5.0), dtype);
            let ((gamma, wide_gamma), (beta, wide_beta)) = (self.parameter([c]), self.parameter([c]));
            let (grad, wide_grad) = self.activation([n, z, y, x, c], dtype);
            let (output, statistics) = B::norm_act(input.clone(), gamma.clone(), beta.clone(), params);
            assert_type::<B>(&output, dtype);
            let (expected, expected_statistics) =
                reference::norm_act::<Flex>(wide.clone(), wide_gamma.clone(), wide_beta.clone(), params);
            within::<B>(tolerance, &what, output, expected);
            close::<B>(&format!("{what}: statistics"), statistics.clone(), expected_statistics.clone());

            let reference = reference::norm_act_backward::<Flex>(
                wide,
                expected_statistics,
                wide_gamma,
                wide_beta,
                wide_grad,
                params,
            );
            let shared = grad.clone();
            let ours = B::norm_act_backward(input, statistics, gamma, beta, grad, params);
            assert_type::<B>(&ours.input, dtype);
            within::<B>(tolerance, &format!("{what}: input gradient"), ours.input, reference.input);
            within::<B>(5e-5, &format!("{what}: gamma gradient"), ours.gamma, reference.gamma);
            within::<B>(5e-5, &format!("{what}: beta gradient"), ours.beta, reference.beta);
            drop(shared);
        }
    }

    pub fn average_pool_agrees(&self) {
        let shapes = [
            (2, 3, [4, 6, 8], [2, 2, 2]),
            (1, 32, [5, 8, 12], [1, 2, 2]),
            (3, 5, [1, 9, 6], [1, 3, 2]),
            (1, 8, [6, 3, 5], [3, 1, 1]),
        ];
        for ((n, c, [z, y, x], size), (dtype, tolerance)) in self.all(&shapes) {
            let what = format!("{dtype:?} {n} x {c} @{z}x{y}x{x} by {size:?}");
            let (input, wide) = self.activation([n, z, y, x, c], dtype);
            let output = B::avg_pool(input, size);
            assert_type::<B>(&output, dtype);
            within::<B>(tolerance, &what, output, reference::avg_pool::<Flex>(wide, size));
            let (grad, wide_grad) = self.activation([n, z / size[0], y / size[1], x / size[2], c], dtype);
            let ours = B::avg_pool_backward(grad, size);
            assert_type::<B>(&ours, dtype);
            let expected = reference::avg_pool_backward::<Flex>(wide_grad, size);
            within::<B>(tolerance, &format!("{what}: gradient"), ours, expected);
        }
    }

    pub fn sum_and_activation_agree(&self) {
        for (shape, (dtype, tolerance)) in self.all(&[[2, 5, 6, 7, 33], [1, 4, 40, 50, 16]]) {
            let ((a, wide_a), (b, wide_b)) = (self.activation(shape, dtype), self.activation(shape, dtype));
            let expected = reference::add_leaky_relu::<Flex>(wide_a, wide_b, 0.01);
            let shared = a.clone();
            within::<B>(tolerance, "shared", B::add_leaky_relu(a, b.clone(), 0.01), expected.clone());
            let output = B::add_leaky_relu(shared, b, 0.01);
            assert_type::<B>(&output, dtype);
            within::<B>(tolerance, "in place", output, expected);

            let ((y, wide_y), (grad, wide_grad)) = (self.activation(shape, dtype), self.activation(shape, dtype));
            let expected = reference::add_leaky_relu_backward::<Flex>(wide_y, wide_grad, 0.01);
            let shared = grad.clone();
            within::<B>(tolerance, "gradient", B::add_leaky_relu_backward(y.clone(), grad, 0.01), expected.clone());
            let ours = B::add_leaky_relu_backward(y, shared, 0.01);
            assert_type::<B>(&ours, dtype);
            within::<B>(tolerance, "gradient in place", ours, expected);
        }
    }

    pub fn head_agrees(&self) {
        // Voxel counts that fill no whole tile, and more classes than a register has lanes.
        let shapes = [(2, 32, 3, [5, 7, 9]), (1, 8, 1, [3, 3, 3]), (2, 20, 37, [1, 13, 17]), (1, 32, 4, [9, 30, 31])];
        for ((n, c, k, [z, y, x]), (dtype, tolerance)) in self.all(&shapes) {
            let what = format!("{dtype:?} {n} x {c}->{k} @{z}x{y}x{x}");
            let (input, wide) = self.activation([n, z, y, x, c], dtype);
            let ((weight, wide_weight), (bias, wide_bias)) = (self.parameter([k, c, 1, 1, 1]), self.parameter([k]));
            let logits = B::head(input.clone(), weight.clone(), bias);
            assert_type::<B>(&logits, FloatDType::F32);
            close::<B>(&what, logits, reference::head::<Flex>(wide.clone(), wide_weight.clone(), wide_bias));
            let (grad, wide_grad) = self.parameter([n, z, y, x, k]);
            let ours = B::head_backward(input, weight, grad);
            let expected = reference::head_backward::<Flex>(wide, wide_weight, wide_grad);
            assert_type::<B>(&ours.input, dtype);
            within::<B>(tolerance, &format!("{what}: input gradient"), ours.input, expected.input);
            within::<B>(5e-5, &format!("{what}: weight gradient"), ours.weight, expected.weight);
            within::<B>(5e-5, &format!("{what}: bias gradient"), ours.bias, expected.bias);
        }
    }

    pub fn gradients_of_one_activation_add_up(&self) {
        draw_the_same_each_time();
        for (dtype, tolerance) in self.formats.clone() {
            let shape = [2, 5, 6, 7, 33];
            let ((a, wide_a), (b, wide_b)) = (self.activation(shape, dtype), self.activation(shape, dtype));
            let expected = Tensor::<Flex, 5>::from_primitive(TensorPrimitive::Float(wide_a))
                + Tensor::from_primitive(TensorPrimitive::Float(wide_b));
            let shared = a.clone();
            within::<B>(tolerance, "shared", B::accumulate(a, b.clone()), primitive(&expected));
            within::<B>(tolerance, "in place", B::accumulate(shared, b), primitive(&expected));
        }
    }

    pub fn concat_and_split_are_inverse(&self) {
        for (channels, (dtype, tolerance)) in self.all(&[[6, 3], [32, 32], [1, 1], [8, 12]]) {
            let (a, wide_a) = self.activation([2, 3, 4, 5, channels[0]], dtype);
            let (b, wide_b) = self.activation([2, 3, 4, 5, channels[1]], dtype);
            let joined = B::concat(a, b);
            assert_type::<B>(&joined, dtype);
            let expected = reference::concat::<Flex>(wide_a.clone(), wide_b.clone());
            within::<B>(tolerance, "concat", joined.clone(), expected);
            let (first, second) = B::split(joined, channels[0]);
            within::<B>(tolerance, "first", first, wide_a);
            within::<B>(tolerance, "second", second, wide_b);
        }
    }

    pub fn updates_agree_over_several_steps(&self) {
        draw_the_same_each_time();
        let decision_params = DecisionParams { max_grad_norm: Some(12.0), dynamic_scale: true, betas: [0.9, 0.999] };
        for shape in [[40, 30, 3, 3, 3], [7, 1, 1, 1, 1]] {
            let (start, wide_start) = self.parameter(shape);
            let sgd = SgdStep { learning_rate: 0.1, momentum: 0.99, nesterov: true, weight_decay: 3e-5 };
            let adam = AdamStep {
                learning_rate: 0.1,
                betas: [0.9, 0.999],
                eps: 1e-8,
                weight_decay: 0.01,
                decoupled: false,
                rectified: false,
            };
            let kin = [
                ("adam", adam),
                ("adamw", AdamStep { decoupled: true, ..adam }),
                ("radam", AdamStep { rectified: true, ..adam }),
            ];
            let (mut ours, mut expected) = ((start.clone(), None), (wide_start.clone(), None));
            let mut our_adams = kin.map(|_| (start.clone(), None));
            let mut expected_adams = kin.map(|_| (wide_start.clone(), None));
            // A step before the scale doubles.
            let initial = GradScaler { good_steps: 1998.0, ..GradScaler::new(128.0) };
            let (mut scaler, mut wide_scaler) = self.scaler(initial);
            // The third step overflows; the sixth applied step is the first that RAdam rectifies.
            for number in 0..8 {
                let (nesterov, infinite) = (number != 1, number == 2);
                let gradient = random(shape).mul_scalar(if infinite { f32::INFINITY } else { 100.0 });
                let (gradient, wide_gradient) = (self.give(&gradient, FloatDType::F32), primitive(&gradient));
                let [decision, after] =
                    B::update_decision(vec![gradient.clone(), gradient.clone()], scaler, decision_params);
                let gradients = vec![wide_gradient.clone(), wide_gradient.clone()];
                let [wide_decision, wide_after] =
                    reference::update_decision::<Flex>(gradients, wide_scaler, decision_params);
                for (ours, expected) in
                    values::<B>(decision.clone()).into_iter().zip(values::<Flex>(wide_decision.clone()))
                {
                    let both_overflow = !ours.is_finite() && !expected.is_finite();
                    assert!(both_overflow || (ours - expected).abs() <= 1e-5 * expected.abs(), "{ours} and {expected}");
                }
                assert_eq!(UpdateDecision::from_values(&values::<B>(decision.clone())).apply == 0.0, infinite);
                close::<B>("scaler", after.clone(), wide_after.clone());
                (scaler, wide_scaler) = (after, wide_after);

                let step = SgdStep { nesterov, ..sgd };
                let [value, velocity] = B::sgd(ours.0, gradient.clone(), ours.1, decision.clone(), step);
                ours = (value, Some(velocity));
                let [value, velocity] =
                    reference::sgd::<Flex>(expected.0, wide_gradient.clone(), expected.1, wide_decision.clone(), step);
                expected = (value, Some(velocity));
                for ((ours, expected), (_, step)) in our_adams.iter_mut().zip(&mut expected_adams).zip(kin) {
                    let (value, moments) = ours.clone();
                    let [value, first, second] = B::adam(value, gradient.clone(), moments, decision.clone(), step);
                    *ours = (value, Some([first, second]));
                    let ((value, moments), decision) = (expected.clone(), wide_decision.clone());
                    let [value, first, second] =
                        reference::adam::<Flex>(value, wide_gradient.clone(), moments, decision, step);
                    *expected = (value, Some([first, second]));
                }
            }
            close::<B>("sgd: value", ours.0, expected.0);
            close::<B>("sgd: velocity", ours.1.unwrap(), expected.1.unwrap());
            for ((ours, expected), (name, _)) in our_adams.into_iter().zip(expected_adams).zip(kin) {
                close::<B>(&format!("{name}: value"), ours.0, expected.0);
                for (ours, expected) in ours.1.unwrap().into_iter().zip(expected.1.unwrap()) {
                    close::<B>(&format!("{name}: moment"), ours, expected);
                }
            }
        }
    }

    /// Compares the loss on the device with the loss on the host, for one rank and for two. If the backend leaves the
    /// loss to the host, there is nothing to compare.
    pub fn loss_agrees(&self) {
        draw_the_same_each_time();
        let regions = Target::Regions(vec![vec![1, 2], vec![2], vec![0, 3]]);
        for target in [Target::Classes, regions] {
            for (batch_dice, ignore_label) in [(true, None), (false, None), (true, Some(2)), (false, Some(1))] {
                for world_size in [1, 2] {
                    let loss = SegmentationLoss::new(target.clone(), batch_dice, ignore_label);
                    self.loss_agrees_with(&loss, [2, 9, 21, 30], 3, world_size);
                }
            }
        }
        let classes = SegmentationLoss::new(Target::Classes, true, None);
        self.loss_agrees_with(&classes, [1, 4, 5, 6], 105, 1);
        let dice = SegmentationLoss { voxels: VoxelLoss::None, ..classes.clone() };
        self.loss_agrees_with(&dice, [2, 9, 21, 30], 3, 2);
        self.loss_agrees_with(&SegmentationLoss { dice: false, ..classes.clone() }, [2, 9, 21, 30], 3, 1);
        self.loss_agrees_with(&SegmentationLoss { include_background: true, ..classes.clone() }, [2, 9, 21, 30], 3, 2);
        let weighted = SegmentationLoss { class_weights: vec![0.25, 2.0, 1.5], ..classes };
        self.loss_agrees_with(&weighted, [2, 9, 21, 30], 3, 2);
        self.loss_agrees_with(&SegmentationLoss { ignore_label: Some(2), ..weighted }, [2, 9, 21, 30], 3, 1);
    }

    /// As [`Self::loss_agrees`], for focal losses.
    pub fn focal_loss_agrees(&self) {
        draw_the_same_each_time();
        for target in [Target::Classes, Target::Regions(vec![vec![1, 2], vec![2], vec![0, 3]])] {
            for (batch_dice, ignore_label, gamma) in [(true, None, 2.0), (false, Some(1), 0.0), (true, Some(2), 1.5)] {
                let loss = SegmentationLoss::new(target.clone(), batch_dice, ignore_label);
                let loss = SegmentationLoss { voxels: VoxelLoss::Focal { gamma }, ..loss };
                self.loss_agrees_with(&loss, [2, 9, 21, 30], 3, 1 + usize::from(batch_dice));
            }
        }
    }

    fn loss_agrees_with(&self, loss: &SegmentationLoss, shape: [usize; 4], channels: usize, world_size: usize) {
        let Some(ours) = B::device_loss() else { return };
        let what = format!("{loss:?}, {world_size} ranks");
        let [n, z, y, x] = shape;
        // Includes large values, which would overflow in a naive implementation.
        let logits = random([n, z, y, x, channels]).powf_scalar(3.0).mul_scalar(4.0);
        let labels: Vec<i16> = (0..n * z * y * x).map(|i| ((i / 7 + i % 3) % channels) as i16).collect();

        let mut values: Vec<f32> = logits.to_data().into_vec().unwrap();
        let values_of_logits = values.clone();
        let sums = loss.sums(&mut values, &labels, n);
        let activations = values.clone();
        let double = |sums: &nnunet_dist::loss::LossSums| {
            let factor = world_size as f64;
            let dice = sums.dice.iter().map(|sums| sums.map(|sum| sum * factor)).collect();
            nnunet_dist::loss::LossSums {
                dice,
                cross_entropy: sums.cross_entropy * factor,
                count: sums.count * factor,
                topk: None,
            }
        };
        let global = double(&sums);
        let both = GlobalSums { local: sums.clone(), global, world_size };
        loss.gradient(&mut values, &labels, n, &both, 0.25 * 64.0);

        let (regions, softmax) = match &loss.target {
            Target::Classes => ((0..channels as i16).map(|class| vec![class]).collect(), true),
            Target::Regions(regions) => (regions.clone(), false),
        };
        let rows = channels + 1;
        let mut membership = vec![0i32; rows * channels];
        for (channel, region) in regions.iter().enumerate() {
            region.iter().for_each(|label| membership[*label as usize * channels + channel] = 1);
        }
        let mut weights = loss.class_weights.clone();
        weights.resize(channels, 1.0);
        let int = |data: TensorData| Tensor::<B, 1, Int>::from_data(data, &self.device);
        let target = LossTarget {
            labels: int(labels.iter().map(|label| i32::from(*label)).collect::<Vec<_>>().as_slice().into())
                .into_primitive(),
            membership: int(membership.as_slice().into()).into_primitive(),
            weights: Tensor::<B, 1>::from_data(weights.as_slice(), &self.device).into_primitive().tensor(),
            params: LossParams {
                softmax,
                dice: loss.dice,
                voxel_loss: loss.voxels,
                weighted: !loss.class_weights.is_empty(),
                include_background: loss.include_background,
                ignore_label: loss.ignore_label.map(i32::from),
                batch_dice: loss.batch_dice,
                smooth: loss.smooth as f32,
            },
        };
        let parts = (ours.parts)(self.give(&logits, FloatDType::F32), &target);
        let local = parts.sums.clone();
        let shaped = |values: Vec<f32>| {
            primitive(&Tensor::<Flex, 5>::from_data(
                TensorData::new(values, [n, z, y, x, channels]),
                &Default::default(),
            ))
        };
        let mut expected: Vec<f32> = Vec::new();
        let mut our_sums = values_of_dice::<B>(local.clone(), channels, loss.first_channel());
        expected.extend(sums.dice.iter().flatten().map(|sum| *sum as f32));
        expected.extend([sums.cross_entropy as f32, sums.count as f32]);
        if loss.voxels == VoxelLoss::None {
            // The host does not sum terms that are not part of the loss.
            expected.truncate(expected.len() - 2);
            our_sums.truncate(expected.len());
        }
        within_each(2e-5, &format!("{what}: sums"), &our_sums, &expected);
        // The host keeps the logits for a focal loss.
        if !matches!(loss.voxels, VoxelLoss::Focal { .. }) {
            close::<B>(&format!("{what}: activations"), parts.activations.clone(), shaped(activations));
        }

        let counts =
            values_of_dice::<B>((ours.counts)(parts.activations.clone(), &target), channels, usize::from(softmax));
        let expected = counted(loss, &values_of_logits, &labels);
        // Logits that differ by less than the precision of a probability are decided by rounding.
        within_each(5e-3, &format!("{what}: counts"), &counts[..expected.len()], &expected);

        let global = B::float_mul_scalar(local.clone(), (world_size as f32).into());
        let scaler = self.scaler(GradScaler::new(64.0)).0;
        let input = LossGradientInput { parts, global, scaler, weight: 0.25, world_size };
        close::<B>(&format!("{what}: gradient"), (ours.gradient)(input, &target), shaped(values));
    }
}

/// True positives, positives and truths per channel, without a background.
fn counted(loss: &SegmentationLoss, logits: &[f32], labels: &[i16]) -> Vec<f32> {
    let channels = logits.len() / labels.len();
    let mut counts = vec![[0.0f32; 3]; channels];
    for (logits, label) in logits.chunks_exact(channels).zip(labels) {
        if loss.ignore_label == Some(*label) {
            continue;
        }
        let largest = (1..channels).fold(0, |best, c| if logits[c] > logits[best] { c } else { best });
        for (channel, counts) in counts.iter_mut().enumerate() {
            let (positive, truth) = match &loss.target {
                Target::Classes => (channel == largest, channel == *label as usize),
                Target::Regions(regions) => (logits[channel] > 0.0, regions[channel].contains(label)),
            };
            counts[0] += f32::from(u8::from(positive && truth));
            counts[1] += f32::from(u8::from(positive));
            counts[2] += f32::from(u8::from(truth));
        }
    }
    counts[usize::from(loss.target == Target::Classes)..].concat()
}

/// The sums in a device tensor, for the channels from `first` on.
fn values_of_dice<B: Backend>(sums: FloatTensor<B>, channels: usize, first: usize) -> Vec<f32> {
    let values = values::<B>(sums);
    let (dice, rest) = values.split_at(values.len() - 2);
    let dice = dice.chunks_exact(3 * channels).flat_map(|group| group[3 * first..].to_vec());
    dice.chain(rest.iter().copied()).collect()
}

fn values<B: Backend>(tensor: FloatTensor<B>) -> Vec<f32> {
    burn::tensor::read_sync(B::float_into_data(tensor)).unwrap().convert::<f32>().into_vec().unwrap()
}

#[track_caller]
fn assert_type<B: Backend>(tensor: &FloatTensor<B>, dtype: FloatDType) {
    assert_eq!(tensor.dtype(), DType::from(dtype));
}

/// Asserts the largest difference relative to the largest value, for f32.
#[track_caller]
fn close<B: Backend>(what: &str, ours: FloatTensor<B>, reference: FloatTensor<Flex>) {
    within::<B>(F32.1, what, ours, reference);
}

/// Asserts the largest difference relative to the largest value.
#[track_caller]
fn within<B: Backend>(tolerance: f32, what: &str, ours: FloatTensor<B>, reference: FloatTensor<Flex>) {
    assert_eq!(ours.shape(), reference.shape(), "{what}");
    let (ours, reference) = (values::<B>(ours), values::<Flex>(reference));
    let scale = reference.iter().fold(1e-3f32, |scale, value| scale.max(value.abs()));
    for (ours, reference) in ours.iter().zip(&reference) {
        assert!((ours - reference).abs() <= tolerance * scale, "{what}: {ours} against {reference} (largest {scale})");
    }
}

/// Asserts the difference of each value relative to its size (at least 1).
#[track_caller]
fn within_each(tolerance: f32, what: &str, ours: &[f32], reference: &[f32]) {
    assert_eq!(ours.len(), reference.len(), "{what}");
    for (ours, reference) in ours.iter().zip(reference) {
        assert!((ours - reference).abs() <= tolerance * reference.abs().max(1.0), "{what}: {ours} against {reference}");
    }
}
