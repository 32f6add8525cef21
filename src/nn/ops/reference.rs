//! Reference implementation of every operation of [`NnOps`](super::NnOps) with Burn's own operations. Kernels are tested
//! against it, and backends without kernels use it.

use burn::tensor::{
    FloatDType, Shape, Tensor,
    backend::Backend,
    ops::{ConvOptions, ConvTransposeOptions, FloatTensor},
};

use super::types::{ConvParams, HeadGradients, NormGradients, NormParams, WeightGradients, float, host, primitive};
use super::update::{AdamStep, DecisionParams, GradScaler, SgdStep, UpdateDecision};

/// Permutes `(n, z, y, x, c)` to `(n, c, z, y, x)`.
fn channels_first<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    primitive(float::<B, 5>(x).permute([0, 4, 1, 2, 3]))
}

/// Permutes `(n, c, z, y, x)` to `(n, z, y, x, c)`.
fn channels_last<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    primitive(float::<B, 5>(x).permute([0, 2, 3, 4, 1]))
}

fn options(params: ConvParams) -> ConvOptions<3> {
    ConvOptions::new(params.stride, params.padding, [1; 3], 1)
}

/// Options of a transposed convolution whose stride equals its kernel.
fn transpose_options<B: Backend>(weight: &FloatTensor<B>) -> ConvTransposeOptions<3> {
    let [_, _, z, y, x] = float::<B, 5>(weight.clone()).dims();
    ConvTransposeOptions::new([z, y, x], [0; 3], [0; 3], [1; 3], 1)
}

fn dtype<B: Backend>(x: &FloatTensor<B>) -> FloatDType {
    use burn::tensor::TensorMetadata;
    x.dtype().into()
}

/// Casts an f32 parameter to the type of the activations.
fn like<B: Backend>(parameter: FloatTensor<B>, x: &FloatTensor<B>) -> FloatTensor<B> {
    cast::<B>(parameter, dtype::<B>(x))
}

fn cast<B: Backend>(x: FloatTensor<B>, to: FloatDType) -> FloatTensor<B> {
    if dtype::<B>(&x) == to { x } else { B::float_cast(x, to) }
}

fn f32<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    cast::<B>(x, FloatDType::F32)
}

/// Sums over all axes but the channels, in f32.
pub fn bias_gradient<B: Backend>(grad: FloatTensor<B>) -> FloatTensor<B> {
    let grad = float::<B, 5>(f32::<B>(grad));
    let channels = grad.dims()[4];
    primitive(grad.reshape([-1, channels as i64]).sum_dim(0).reshape([channels]))
}

pub fn conv<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    params: ConvParams,
) -> FloatTensor<B> {
    let (weight, bias) = (like::<B>(weight, &x), like::<B>(bias, &x));
    channels_last::<B>(B::conv3d(channels_first::<B>(x), weight, Some(bias), options(params)))
}

pub fn conv_backward_input<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    params: ConvParams,
) -> FloatTensor<B> {
    let weight = like::<B>(weight, &grad);
    let (x, grad) = (channels_first::<B>(x), channels_first::<B>(grad));
    channels_last::<B>(B::conv3d_x_backward(x, weight, grad, options(params)))
}

pub fn conv_backward_weights<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    params: ConvParams,
) -> WeightGradients<B> {
    let bias = bias_gradient::<B>(grad.clone());
    let weight = like::<B>(weight, &grad);
    let (x, grad) = (channels_first::<B>(x), channels_first::<B>(grad));
    WeightGradients { weight: f32::<B>(B::conv3d_weight_backward(x, weight, grad, options(params))), bias }
}

pub fn conv_transpose<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let options = transpose_options::<B>(&weight);
    let (weight, bias) = (like::<B>(weight, &x), like::<B>(bias, &x));
    channels_last::<B>(B::conv_transpose3d(channels_first::<B>(x), weight, Some(bias), options))
}

pub fn conv_transpose_backward_input<B: Backend>(weight: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let options = transpose_options::<B>(&weight);
    let weight = like::<B>(weight, &grad);
    channels_last::<B>(B::conv_transpose3d_x_backward(weight, channels_first::<B>(grad), options))
}

pub fn conv_transpose_backward_weights<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> WeightGradients<B> {
    let options = transpose_options::<B>(&weight);
    let bias = bias_gradient::<B>(grad.clone());
    let weight = like::<B>(weight, &grad);
    let (x, grad) = (channels_first::<B>(x), channels_first::<B>(grad));
    WeightGradients { weight: f32::<B>(B::conv_transpose3d_weight_backward(x, weight, grad, options)), bias }
}

/// Reshapes `(n, z, y, x, c)` to `(n, voxels, c)`.
fn flatten<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 3> {
    let x = float::<B, 5>(x);
    let [n, z, y, width, c] = x.dims();
    x.reshape([n, z * y * width, c])
}

fn per_channel<B: Backend>(parameter: FloatTensor<B>) -> Tensor<B, 3> {
    float::<B, 1>(parameter).unsqueeze()
}

pub fn norm_act<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    params: NormParams,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (shape, dtype) = (float::<B, 5>(x.clone()).shape(), dtype::<B>(&x));
    let x = flatten::<B>(f32::<B>(x));
    let mean = x.clone().mean_dim(1);
    let centered = x - mean.clone();
    let rstd = centered.clone().square().mean_dim(1).add_scalar(params.eps).sqrt().recip();
    let y = centered * rstd.clone() * per_channel::<B>(gamma) + per_channel::<B>(beta);
    let y = burn::tensor::activation::leaky_relu(y, params.negative_slope as f64);
    let statistics = Tensor::cat(vec![mean.swap_dims(0, 1), rstd.swap_dims(0, 1)], 0);
    (cast::<B>(primitive::<B, 5>(y.reshape(shape)), dtype), primitive(statistics))
}

pub fn norm_act_backward<B: Backend>(
    x: FloatTensor<B>,
    statistics: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    grad: FloatTensor<B>,
    params: NormParams,
) -> NormGradients<B> {
    let (shape, dtype) = (float::<B, 5>(x.clone()).shape(), dtype::<B>(&x));
    let (x, grad) = (f32::<B>(x), f32::<B>(grad));
    let statistics = float::<B, 3>(statistics);
    let mean = statistics.clone().narrow(0, 0, 1).swap_dims(0, 1);
    let rstd = statistics.narrow(0, 1, 1).swap_dims(0, 1);
    let (gamma, beta) = (per_channel::<B>(gamma), per_channel::<B>(beta));

    let normalized = (flatten::<B>(x) - mean) * rstd.clone();
    let negative = (normalized.clone() * gamma.clone() + beta).lower_elem(0.0);
    let grad = flatten::<B>(grad);
    // Gradient before the leaky ReLU.
    let grad = grad.clone().mask_where(negative, grad.mul_scalar(params.negative_slope));

    let projected = grad.clone() * normalized.clone();
    let channels = gamma.dims()[2];
    let over_samples_and_voxels = |t: Tensor<B, 3>| primitive(t.sum_dim(1).sum_dim(0).reshape([channels]));
    let d_gamma = over_samples_and_voxels(projected.clone());
    let d_beta = over_samples_and_voxels(grad.clone());

    let d_x = (grad.clone() - grad.mean_dim(1) - normalized * projected.mean_dim(1)) * (gamma * rstd);
    NormGradients { input: cast::<B>(primitive::<B, 5>(d_x.reshape(shape)), dtype), gamma: d_gamma, beta: d_beta }
}

const POINTWISE: ConvParams = ConvParams { stride: [1; 3], padding: [0; 3], bias_cancels: false };

pub fn head<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    conv::<B>(f32::<B>(x), weight, bias, POINTWISE)
}

pub fn head_backward<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, grad: FloatTensor<B>) -> HeadGradients<B> {
    let dtype = dtype::<B>(&x);
    let x = f32::<B>(x);
    let input = conv_backward_input::<B>(x.clone(), weight.clone(), grad.clone(), POINTWISE);
    let WeightGradients { weight, bias } = conv_backward_weights::<B>(x, weight, grad, POINTWISE);
    HeadGradients { input: cast::<B>(input, dtype), weight, bias }
}

pub fn concat<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B> {
    B::float_cat(vec![a, b], 4)
}

pub fn split<B: Backend>(x: FloatTensor<B>, channels: usize) -> (FloatTensor<B>, FloatTensor<B>) {
    let x = float::<B, 5>(x);
    let rest = x.dims()[4] - channels;
    (primitive(x.clone().narrow(4, 0, channels)), primitive(x.narrow(4, channels, rest)))
}

pub fn add_leaky_relu<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>, negative_slope: f32) -> FloatTensor<B> {
    let dtype = dtype::<B>(&a);
    let sum = float::<B, 5>(f32::<B>(a)) + float(f32::<B>(b));
    cast::<B>(primitive(burn::tensor::activation::leaky_relu(sum, f64::from(negative_slope))), dtype)
}

pub fn add_leaky_relu_backward<B: Backend>(
    y: FloatTensor<B>,
    grad: FloatTensor<B>,
    negative_slope: f32,
) -> FloatTensor<B> {
    let grad = float::<B, 5>(grad);
    let negative = float::<B, 5>(y).lower_elem(0.0);
    primitive(grad.clone().mask_where(negative, grad.mul_scalar(negative_slope)))
}

pub fn avg_pool<B: Backend>(x: FloatTensor<B>, size: [usize; 3]) -> FloatTensor<B> {
    let dtype = dtype::<B>(&x);
    let mut x = float::<B, 5>(f32::<B>(x));
    for (axis, size) in size.into_iter().enumerate() {
        let mut shape = x.dims();
        let (before, after) = rows_around(shape, axis);
        shape[axis + 1] /= size;
        x = x.reshape([before * shape[axis + 1], size, after]).mean_dim(1).reshape(shape);
    }
    cast::<B>(primitive(x), dtype)
}

pub fn avg_pool_backward<B: Backend>(grad: FloatTensor<B>, size: [usize; 3]) -> FloatTensor<B> {
    let mut grad = float::<B, 5>(grad) / size.iter().product::<usize>() as f32;
    for (axis, size) in size.into_iter().enumerate() {
        let mut shape = grad.dims();
        let (before, after) = rows_around(shape, axis);
        let rows = before * shape[axis + 1];
        shape[axis + 1] *= size;
        grad = grad.reshape([rows, 1, after]).repeat_dim(1, size).reshape(shape);
    }
    primitive(grad)
}

/// Returns the products of the extents before and after a spatial axis of `(n, z, y, x, c)`.
fn rows_around(shape: [usize; 5], axis: usize) -> (usize, usize) {
    (shape[..=axis].iter().product(), shape[axis + 2..].iter().product())
}

pub fn update_decision<B: Backend>(
    gradients: Vec<FloatTensor<B>>,
    scaler: FloatTensor<B>,
    params: DecisionParams,
) -> [FloatTensor<B>; 2] {
    let square = |gradient| host::<B>(primitive(flat::<B>(gradient).square().sum()))[0];
    let sum = gradients.into_iter().map(|gradient| f64::from(square(gradient))).sum();
    advance::<B>(sum, scaler, params)
}

/// [`GradScaler::advance`] on tensors.
pub fn advance<B: Backend>(sum_of_squares: f64, scaler: FloatTensor<B>, params: DecisionParams) -> [FloatTensor<B>; 2] {
    let device = B::float_device(&scaler);
    let (decision, after) = GradScaler::from_values(&host::<B>(scaler)).advance(sum_of_squares, params);
    [&decision.values()[..], &after.values()[..]].map(|values| B::float_from_data(values.into(), &device))
}

pub fn sgd<B: Backend>(
    value: FloatTensor<B>,
    gradient: FloatTensor<B>,
    velocity: Option<FloatTensor<B>>,
    decision: FloatTensor<B>,
    step: SgdStep,
) -> [FloatTensor<B>; 2] {
    let shape = shape::<B>(&value);
    let decision = UpdateDecision::from_values(&host::<B>(decision));
    let value = flat::<B>(value);
    let [value, velocity] = if decision.apply == 0.0 {
        let velocity = velocity.map_or_else(|| value.zeros_like(), flat::<B>);
        [value, velocity]
    } else {
        let gradient = flat::<B>(gradient) * decision.factor + value.clone() * step.weight_decay;
        let velocity = match velocity {
            Some(velocity) => flat::<B>(velocity) * step.momentum + gradient.clone(),
            None => gradient.clone(),
        };
        let direction = if step.nesterov { gradient + velocity.clone() * step.momentum } else { velocity.clone() };
        [value - direction * step.learning_rate, velocity]
    };
    [value, velocity].map(|tensor| B::float_reshape(primitive(tensor), shape.clone()))
}

pub fn adam<B: Backend>(
    value: FloatTensor<B>,
    gradient: FloatTensor<B>,
    moments: Option<[FloatTensor<B>; 2]>,
    decision: FloatTensor<B>,
    step: AdamStep,
) -> [FloatTensor<B>; 3] {
    let shape = shape::<B>(&value);
    let decision = UpdateDecision::from_values(&host::<B>(decision));
    let value = flat::<B>(value);
    let [first, second] = match moments {
        Some(moments) => moments.map(flat::<B>),
        None => [value.zeros_like(), value.zeros_like()],
    };
    let updated = if decision.apply == 0.0 {
        [value, first, second]
    } else {
        let gradient = flat::<B>(gradient) * decision.factor;
        let (value, gradient) = match step.decoupled {
            true => (value * (1.0 - step.learning_rate * step.weight_decay), gradient),
            false => (value.clone(), gradient + value * step.weight_decay),
        };
        let [beta1, beta2] = step.betas;
        let first = first * beta1 + gradient.clone() * (1.0 - beta1);
        let second = second * beta2 + gradient.square() * (1.0 - beta2);
        let rate = step.learning_rate / decision.corrections[0];
        let direction = match step.rectified {
            true if decision.rectification > 0.0 => {
                let rate = rate * decision.rectification * decision.corrections[1].sqrt();
                first.clone() / (second.clone().sqrt() + step.eps) * rate
            }
            true => first.clone() * rate,
            false => first.clone() / ((second.clone() / decision.corrections[1]).sqrt() + step.eps) * rate,
        };
        [value - direction, first, second]
    };
    updated.map(|tensor| B::float_reshape(primitive(tensor), shape.clone()))
}

fn shape<B: Backend>(tensor: &FloatTensor<B>) -> Shape {
    use burn::tensor::TensorMetadata;
    tensor.shape()
}

/// Flattens the tensor to one dimension.
fn flat<B: Backend>(tensor: FloatTensor<B>) -> Tensor<B, 1> {
    let len = shape::<B>(&tensor).num_elements();
    float(B::float_reshape(tensor, [len].into()))
}
