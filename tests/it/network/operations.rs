//! Compares every operation's kernel on the CPU with its reference implementation, forward and backward, on random
//! shapes, for f32 and bf16 activations.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{Distribution, Tensor, TensorData, TensorPrimitive};
use nnunet_dist::ops::{self, ConvParams, NormParams, reference};

use crate::operation_checks::{BF16, F32, Subject};

type Cpu = Autodiff<Flex>;

const CPU: fn() -> Subject<Flex> = || Subject { device: Default::default(), formats: vec![F32, BF16] };

#[test]
fn convolution_agrees_with_burn() {
    CPU().convolution_agrees();
}

#[test]
fn transposed_convolution_agrees_with_burn() {
    CPU().transposed_convolution_agrees();
}

#[test]
fn norm_and_activation_agree_with_the_reference() {
    CPU().norm_and_activation_agree();
}

#[test]
fn average_pool_agrees_with_the_reference() {
    CPU().average_pool_agrees();
}

#[test]
fn sum_and_activation_agree_with_the_reference() {
    CPU().sum_and_activation_agree();
}

#[test]
fn head_agrees_with_the_reference() {
    CPU().head_agrees();
}

#[test]
fn gradients_of_one_activation_add_up() {
    CPU().gradients_of_one_activation_add_up();
}

#[test]
fn updates_agree_with_the_reference_over_several_steps() {
    CPU().updates_agree_over_several_steps();
}

#[test]
fn concat_and_split_are_inverse() {
    CPU().concat_and_split_are_inverse();
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::random(shape, Distribution::Normal(0.3, 1.0), &Default::default())
}

/// Asserts the largest difference relative to the largest value.
#[track_caller]
fn assert_close(what: &str, ours: burn_flex::FlexTensor, reference: burn_flex::FlexTensor) {
    let values = |t: burn_flex::FlexTensor| t.into_data().iter::<f32>().collect::<Vec<f32>>();
    let (ours, reference) = (values(ours), values(reference));
    let scale = reference.iter().fold(1e-3f32, |scale, value| scale.max(value.abs()));
    assert_eq!(ours.len(), reference.len(), "{what}");
    for (ours, reference) in ours.iter().zip(&reference) {
        assert!((ours - reference).abs() <= F32.1 * scale, "{what}: {ours} against {reference} (largest {scale})");
    }
}

/// Differentiating through this backend's backward functions gives the result of Burn's autodiff through its own
/// operations.
#[test]
fn autodiff_of_a_small_network_agrees_with_burns_own() {
    let device = Default::default();
    let data = |t: &Tensor<Flex, 5>| t.to_data();
    let (x, w1) = (random([2, 4, 6, 6, 3]), random([8, 3, 3, 3, 3]));
    let (w2, w3) = (random([8, 4, 2, 2, 2]), random([2, 12, 1, 1, 1]));
    let params = ConvParams { stride: [2; 3], padding: [1; 3], bias_cancels: false };
    let one = ConvParams { stride: [1; 3], padding: [0; 3], bias_cancels: false };
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
        // Not b1: the gradient of a bias before a norm is only rounding error.
        let vectors = [&b2, &b3, &gamma, &beta];
        gradients.extend(vectors.map(|t| t.grad(&grads).expect("used").into_primitive().tensor()));
        gradients
    };
    for (index, (ours, reference)) in run(true).into_iter().zip(run(false)).enumerate() {
        assert_close(&format!("value {index}"), ours, reference);
    }
}
