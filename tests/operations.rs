//! Every operation's kernel agrees with its reference implementation, forward and backward, on random shapes, for f32 and
//! bf16 activations.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{
    DType, Distribution, FloatDType, Tensor, TensorData, TensorPrimitive, backend::ops::FloatTensorOps,
};
use nnunet_dist::ops::{self, AdamStep, ConvParams, NnOps, NormParams, SgdStep, reference};

type Cpu = Autodiff<Flex>;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::random(shape, Distribution::Normal(0.3, 1.0), &Default::default())
}

fn primitive<const D: usize>(tensor: &Tensor<Flex, D>) -> burn_flex::FlexTensor {
    tensor.clone().into_primitive().tensor()
}

/// Types of activations, with the largest difference allowed, relative to the largest value: bf16 has eight binary digits,
/// and weights are rounded to it too.
const TYPES: [(FloatDType, f32); 2] = [(FloatDType::F32, 2e-5), (FloatDType::BF16, 1.2e-2)];

/// A random activation of a type, and the same values in f32 for the reference.
fn activation<const D: usize>(shape: [usize; D], dtype: FloatDType) -> (burn_flex::FlexTensor, burn_flex::FlexTensor) {
    typed(random(shape), dtype)
}

fn typed<const D: usize>(x: Tensor<Flex, D>, dtype: FloatDType) -> (burn_flex::FlexTensor, burn_flex::FlexTensor) {
    let x = Flex::float_cast(primitive(&x), dtype);
    (x.clone(), Flex::float_cast(x, FloatDType::F32))
}

#[track_caller]
fn assert_type(tensor: &burn_flex::FlexTensor, dtype: FloatDType) {
    assert_eq!(tensor.dtype(), DType::from(dtype));
}

/// Largest difference relative to the largest value, for f32.
#[track_caller]
fn assert_close(what: &str, ours: burn_flex::FlexTensor, reference: burn_flex::FlexTensor) {
    assert_within(TYPES[0].1, what, ours, reference);
}

/// Largest difference relative to the largest value.
#[track_caller]
fn assert_within(tolerance: f32, what: &str, ours: burn_flex::FlexTensor, reference: burn_flex::FlexTensor) {
    assert_eq!(ours.layout().shape(), reference.layout().shape(), "{what}");
    let values = |t: burn_flex::FlexTensor| t.into_data().iter::<f32>().collect::<Vec<f32>>();
    let (ours, reference) = (values(ours), values(reference));
    let scale = reference.iter().fold(1e-3f32, |scale, value| scale.max(value.abs()));
    for (ours, reference) in ours.iter().zip(&reference) {
        assert!((ours - reference).abs() <= tolerance * scale, "{what}: {ours} against {reference} (largest {scale})");
    }
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

/// Each case with each type.
fn all_types<T: Copy, const N: usize>(cases: [T; N]) -> impl Iterator<Item = (T, (FloatDType, f32))> {
    cases.into_iter().flat_map(|case| TYPES.map(|dtype| (case, dtype)))
}

#[test]
fn convolution_agrees_with_burns() {
    for ((n, c_in, c_out, [z, y, x], kernel, stride), (dtype, tolerance)) in all_types(CONVOLUTIONS) {
        let params = ConvParams { stride, padding: kernel.map(|kernel| kernel / 2) };
        let what = format!("{dtype:?} {n} x {c_in}->{c_out} @{z}x{y}x{x} kernel {kernel:?} stride {stride:?}");
        let (input, wide) = activation([n, z, y, x, c_in], dtype);
        let weight = primitive(&random([c_out, c_in, kernel[0], kernel[1], kernel[2]]));
        let bias = primitive(&random([c_out]));

        let output = Flex::conv(input.clone(), weight.clone(), bias.clone(), params);
        assert_type(&output, dtype);
        let shape: [usize; 5] = std::array::from_fn(|axis| output.layout().shape()[axis]);
        let expected = reference::conv::<Flex>(wide.clone(), weight.clone(), bias.clone(), params);
        assert_within(tolerance, &format!("{what}: forward"), output, expected);

        let (grad, wide_grad) = activation(shape, dtype);
        let ours = Flex::conv_backward_input(input.clone(), weight.clone(), grad.clone(), params);
        assert_type(&ours, dtype);
        let expected = reference::conv_backward_input::<Flex>(wide.clone(), weight.clone(), wide_grad.clone(), params);
        assert_within(tolerance, &format!("{what}: input gradient"), ours, expected);
        let ours = Flex::conv_backward_weights(input, weight.clone(), grad, params);
        let expected = reference::conv_backward_weights::<Flex>(wide, weight, wide_grad, params);
        assert_type(&ours.weight, FloatDType::F32);
        assert_within(tolerance, &format!("{what}: weight gradient"), ours.weight, expected.weight);
        assert_within(tolerance, &format!("{what}: bias gradient"), ours.bias, expected.bias);
    }
}

#[test]
fn transposed_convolution_agrees_with_burns() {
    let shapes = [
        (2, 8, 4, [3, 4, 5], [2, 2, 2]),
        (1, 32, 16, [4, 4, 4], [2, 2, 2]),
        (2, 16, 8, [3, 6, 6], [1, 2, 2]),
        (2, 6, 5, [1, 8, 7], [1, 2, 2]),
    ];
    for ((n, c_in, c_out, [z, y, x], [kz, ky, kx]), (dtype, tolerance)) in all_types(shapes) {
        let what = format!("{dtype:?} {n} x {c_in}->{c_out} @{z}x{y}x{x} kernel {kz}x{ky}x{kx}");
        let (input, wide) = activation([n, z, y, x, c_in], dtype);
        let weight = primitive(&random([c_in, c_out, kz, ky, kx]));
        let bias = primitive(&random([c_out]));
        let output = Flex::conv_transpose(input.clone(), weight.clone(), bias.clone());
        assert_type(&output, dtype);
        let expected = reference::conv_transpose::<Flex>(wide.clone(), weight.clone(), bias);
        assert_within(tolerance, &what, output, expected);
        let (grad, wide_grad) = activation([n, z * kz, y * ky, x * kx, c_out], dtype);
        let ours = Flex::conv_transpose_backward_input(weight.clone(), grad.clone());
        assert_type(&ours, dtype);
        let expected = reference::conv_transpose_backward_input::<Flex>(weight.clone(), wide_grad.clone());
        assert_within(tolerance, &format!("{what}: input gradient"), ours, expected);
        let ours = Flex::conv_transpose_backward_weights(input, weight.clone(), grad);
        let expected = reference::conv_transpose_backward_weights::<Flex>(wide, weight, wide_grad);
        assert_within(tolerance, &format!("{what}: weight gradient"), ours.weight, expected.weight);
        assert_within(tolerance, &format!("{what}: bias gradient"), ours.bias, expected.bias);
    }
}

#[test]
fn norm_and_activation_agree_with_the_reference() {
    let params = NormParams { eps: 1e-5, negative_slope: 0.01 };
    let shapes =
        [(2, 3, [4, 5, 6]), (1, 32, [9, 17, 11]), (3, 20, [1, 30, 40]), (2, 1, [3, 3, 3]), (1, 300, [2, 9, 7])];
    for ((n, c, [z, y, x]), (dtype, tolerance)) in all_types(shapes) {
        let what = format!("{dtype:?} {n} x {c} @{z}x{y}x{x}");
        // A mean well above the deviation, as after a bias; the reference itself loses digits beyond that.
        let (input, wide) = typed(random([n, z, y, x, c]).add_scalar(5.0), dtype);
        let (gamma, beta) = (primitive(&random([c])), primitive(&random([c])));
        let (grad, wide_grad) = activation([n, z, y, x, c], dtype);
        let (output, statistics) = Flex::norm_act(input.clone(), gamma.clone(), beta.clone(), params);
        assert_type(&output, dtype);
        let (expected, expected_statistics) =
            reference::norm_act::<Flex>(wide.clone(), gamma.clone(), beta.clone(), params);
        assert_within(tolerance, &what, output, expected);
        assert_close(&format!("{what}: statistics"), statistics.clone(), expected_statistics);

        let reference = reference::norm_act_backward::<Flex>(
            wide,
            statistics.clone(),
            gamma.clone(),
            beta.clone(),
            wide_grad,
            params,
        );
        let shared = grad.clone();
        let ours = Flex::norm_act_backward(input, statistics, gamma, beta, grad, params);
        assert_type(&ours.input, dtype);
        assert_within(tolerance, &format!("{what}: input gradient"), ours.input, reference.input);
        assert_close(&format!("{what}: gamma gradient"), ours.gamma, reference.gamma);
        assert_close(&format!("{what}: beta gradient"), ours.beta, reference.beta);
        drop(shared);
    }
}

#[test]
fn head_agrees_with_the_reference() {
    // Voxels that fill no tile, more classes than a register has lanes.
    let shapes = [(2, 32, 3, [5, 7, 9]), (1, 8, 1, [3, 3, 3]), (2, 20, 37, [1, 13, 17])];
    for ((n, c, k, [z, y, x]), (dtype, tolerance)) in all_types(shapes) {
        let what = format!("{dtype:?} {n} x {c}->{k} @{z}x{y}x{x}");
        let (input, wide) = activation([n, z, y, x, c], dtype);
        let (weight, bias) = (primitive(&random([k, c, 1, 1, 1])), primitive(&random([k])));
        let logits = Flex::head(input.clone(), weight.clone(), bias.clone());
        assert_type(&logits, FloatDType::F32);
        assert_close(&what, logits, reference::head::<Flex>(wide.clone(), weight.clone(), bias));
        let grad = primitive(&random([n, z, y, x, k]));
        let ours = Flex::head_backward(input, weight.clone(), grad.clone());
        let expected = reference::head_backward::<Flex>(wide, weight, grad);
        assert_type(&ours.input, dtype);
        assert_within(tolerance, &format!("{what}: input gradient"), ours.input, expected.input);
        assert_close(&format!("{what}: weight gradient"), ours.weight, expected.weight);
        assert_close(&format!("{what}: bias gradient"), ours.bias, expected.bias);
    }
}

#[test]
fn gradients_of_one_activation_add_up() {
    for (dtype, tolerance) in TYPES {
        let shape = [2, 5, 6, 7, 33];
        let ((a, wide_a), (b, wide_b)) = (activation(shape, dtype), activation(shape, dtype));
        let expected = Flex::float_add(wide_a, wide_b);
        let shared = a.clone();
        assert_within(tolerance, "shared", Flex::accumulate(a, b.clone()), expected.clone());
        assert_within(tolerance, "in place", Flex::accumulate(shared, b), expected);
    }
}

#[test]
fn updates_agree_with_the_reference_over_several_steps() {
    for shape in [[40, 30, 3, 3, 3], [7, 1, 1, 1, 1]] {
        let start = primitive(&random(shape));
        let sgd =
            SgdStep { learning_rate: 0.1, momentum: 0.99, nesterov: true, weight_decay: 3e-5, gradient_scale: 0.7 };
        let (mut ours, mut expected) = ((start.clone(), None), (start.clone(), None));
        for nesterov in [true, false, true] {
            let (gradient, sgd) = (primitive(&random(shape)), SgdStep { nesterov, ..sgd });
            let [value, velocity] = Flex::sgd(ours.0, gradient.clone(), ours.1, sgd);
            ours = (value, Some(velocity));
            let [value, velocity] = reference::sgd::<Flex>(expected.0, gradient, expected.1, sgd);
            expected = (value, Some(velocity));
        }
        assert_close("sgd: value", ours.0, expected.0);
        assert_close("sgd: velocity", ours.1.unwrap(), expected.1.unwrap());

        let (mut ours, mut expected) = ((start.clone(), None), (start.clone(), None));
        for updates in 1..4 {
            let gradient = primitive(&random(shape));
            let adam = AdamStep {
                learning_rate: 0.1,
                betas: [0.9, 0.999],
                eps: 1e-8,
                weight_decay: 0.01,
                gradient_scale: 0.7,
                corrections: [1.0 - 0.9f32.powi(updates), 1.0 - 0.999f32.powi(updates)],
            };
            let [value, first, second] = Flex::adam(ours.0, gradient.clone(), ours.1, adam);
            ours = (value, Some([first, second]));
            let [value, first, second] = reference::adam::<Flex>(expected.0, gradient, expected.1, adam);
            expected = (value, Some([first, second]));
        }
        assert_close("adam: value", ours.0, expected.0);
        for (ours, expected) in ours.1.unwrap().into_iter().zip(expected.1.unwrap()) {
            assert_close("adam: moment", ours, expected);
        }
        let norms = [Flex::squared_norm(start.clone()), reference::squared_norm::<Flex>(start)];
        let [ours, expected] = norms;
        assert_close("squared norm", ours, expected);
    }
}

#[test]
fn concat_and_split_are_inverse() {
    let (a, b) = (random([2, 3, 4, 5, 6]), random([2, 3, 4, 5, 3]));
    let joined = Flex::concat(primitive(&a), primitive(&b));
    assert_close("concat", joined.clone(), reference::concat::<Flex>(primitive(&a), primitive(&b)));
    let (first, second) = Flex::split(joined, 6);
    assert_close("first", first, primitive(&a));
    assert_close("second", second, primitive(&b));
}

/// Differentiating through our backward steps gives what Burn's own autodiff gives through its own operations.
#[test]
fn autodiff_of_a_small_network_agrees_with_burns_own() {
    let device = Default::default();
    let data = |t: &Tensor<Flex, 5>| t.to_data();
    let (x, w1) = (random([2, 4, 6, 6, 3]), random([8, 3, 3, 3, 3]));
    let (w2, w3) = (random([8, 4, 2, 2, 2]), random([2, 12, 1, 1, 1]));
    let params = ConvParams { stride: [2; 3], padding: [1; 3] };
    let one = ConvParams { stride: [1; 3], padding: [0; 3] };
    let norm = NormParams { eps: 1e-5, negative_slope: 0.01 };
    let leaf = |data: TensorData| Tensor::<Cpu, 5>::from_data(data, &device).require_grad();
    let vector = |len: usize, value: f32| Tensor::<Cpu, 1>::full([len], value, &device).require_grad();

    let run = |ours: bool| {
        let (x, w1, w2, w3) = (leaf(data(&x)), leaf(data(&w1)), leaf(data(&w2)), leaf(data(&w3)));
        let (b1, b2, b3) = (vector(8, 0.1), vector(4, 0.2), vector(2, 0.3));
        let (gamma, beta) = (vector(8, 1.5), vector(8, 0.2));
        let wrap = |p| Tensor::<Cpu, 5>::from_primitive(TensorPrimitive::Float(p));
        let (h, up, skip, out);
        if ours {
            h = ops::norm_act(ops::conv(x.clone(), w1.clone(), b1.clone(), params), gamma.clone(), beta.clone(), norm);
            up = ops::conv_transpose(h, w2.clone(), b2.clone());
            skip = x.clone().repeat_dim(4, 3).narrow(4, 0, 8);
            out = ops::conv(ops::concat(up, skip), w3.clone(), b3.clone(), one);
        } else {
            let p5 = |t: &Tensor<Cpu, 5>| t.clone().into_primitive().tensor();
            let p1 = |t: &Tensor<Cpu, 1>| t.clone().into_primitive().tensor();
            let c1 = reference::conv::<Cpu>(p5(&x), p5(&w1), p1(&b1), params);
            let n1 = reference::norm_act::<Cpu>(c1, p1(&gamma), p1(&beta), norm).0;
            let up = reference::conv_transpose::<Cpu>(n1, p5(&w2), p1(&b2));
            skip = x.clone().repeat_dim(4, 3).narrow(4, 0, 8);
            let joined = reference::concat::<Cpu>(up, p5(&skip));
            out = wrap(reference::conv::<Cpu>(joined, p5(&w3), p1(&b3), one));
        }
        let grads = out.clone().powf_scalar(2.0).sum().backward();
        let mut gradients = vec![out.inner().into_primitive().tensor()];
        gradients.extend([&x, &w1, &w2, &w3].map(|t| t.grad(&grads).expect("used").into_primitive().tensor()));
        // Not b1: a bias before a norm has no gradient but rounding errors.
        let vectors = [&b2, &b3, &gamma, &beta];
        gradients.extend(vectors.map(|t| t.grad(&grads).expect("used").into_primitive().tensor()));
        gradients
    };
    for (index, (ours, reference)) in run(true).into_iter().zip(run(false)).enumerate() {
        assert_close(&format!("value {index}"), ours, reference);
    }
}
