//! Gradient norm, update decision and optimizer step, computed on the device without synchronizing with the host.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::runtime::{UNITS, allocate, contiguous, elementwise, reuse, vector_size};
use crate::ops::update::{
    AdamStep, CLIP_EPS, DecisionParams, GROWTH_INTERVAL, GradScaler, RECTIFIED_FROM, SgdStep, UpdateDecision,
};

/// Places in the tensor of an [`UpdateDecision`].
const FACTOR: usize = 0;
const APPLY: usize = 1;
const NORM: usize = 2;
const SCALE: usize = 3;
const CORRECTION1: usize = 4;
const CORRECTION2: usize = 5;
const RECTIFICATION: usize = 6;

/// Number of gradients per cube in the sum of squares.
const PART: usize = 64 * UNITS;

/// Sums a value over all units of a cube; unit 0 has the result.
#[cube]
fn sum_of_units(value: f32) -> f32 {
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS));
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..8u32 {
        let half = comptime!(UNITS >> (level as usize + 1));
        if unit < half {
            shared[unit] = shared[unit] + shared[unit + half];
        }
        sync_cube();
    }
    shared[0]
}

/// Sums the squares of each part of a gradient, one cube per part; results start at `sums[place]`.
#[cube(launch)]
fn squares<N: Size>(gradient: &Array<Vector<f32, N>>, sums: &mut Array<f32>, place: usize, part: usize) {
    let begin = CUBE_POS_X as usize * part;
    let end = min(begin + part, gradient.len());
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut index = begin + UNIT_POS as usize;
    while index < end {
        let value = gradient[index];
        sum += value * value;
        index += comptime!(UNITS);
    }
    let mut total = 0.0f32;
    #[unroll]
    for lane in 0..N::value() {
        total += sum[lane];
    }
    let total = sum_of_units(total);
    if UNIT_POS == 0 {
        sums[place + CUBE_POS_X as usize] = total;
    }
}

/// Parameters of the update decision, with an infinite gradient norm for no clipping.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct DecisionConstants {
    max_grad_norm: f32,
    beta1: f32,
    beta2: f32,
    /// `1 - beta1`, rounded from f64.
    one_minus_beta1: f32,
    /// `1 - beta2`, rounded from f64.
    one_minus_beta2: f32,
    /// Maximum length of RAdam's second moment.
    longest: f32,
}

/// Returns the term of RAdam's step factor that depends on a length. The factor is the square root of the ratio of two.
#[cube]
fn rectification_term(length: f32) -> f32 {
    (length - 4.0f32) / length * (length - 2.0f32)
}

/// `GradScaler::advance` in one cube.
// One condition is evaluated at compile time, the other in the kernel.
#[allow(clippy::collapsible_if)]
#[cube(launch)]
fn update_decision_kernel(
    sums: &Array<f32>,
    scaler: &Array<f32>,
    decision: &mut Array<f32>,
    after: &mut Array<f32>,
    params: DecisionConstants,
    #[comptime] dynamic_scale: bool,
) {
    let mut sum = 0.0f32;
    let mut index = UNIT_POS as usize;
    while index < sums.len() {
        sum += sums[index];
        index += comptime!(UNITS);
    }
    let sum = sum_of_units(sum);
    if UNIT_POS == 0 {
        let scale = scaler[0];
        let norm = f32::sqrt(sum) / scale;
        // False for NaN and infinity.
        let finite = norm <= f32::max_value();
        let mut next_scale = scale;
        let mut good_steps = 0.0f32;
        let mut correction1 = scaler[2];
        let mut correction2 = scaler[3];
        let mut age = scaler[4];
        let mut factor = 0.0f32;
        let mut apply = 0.0f32;
        let mut rectification = 0.0f32;
        if finite {
            factor = min(params.max_grad_norm / (norm + comptime!(CLIP_EPS)), 1.0f32) / scale;
            apply = 1.0f32;
            correction1 = correction1 * params.beta1 + params.one_minus_beta1;
            correction2 = correction2 * params.beta2 + params.one_minus_beta2;
            age = age * params.beta2 + correction2;
            let length = 2.0f32 * age / correction2 - 1.0f32;
            if length > comptime!(RECTIFIED_FROM) {
                rectification = f32::sqrt(rectification_term(length) / rectification_term(params.longest));
            }
            good_steps = scaler[1] + 1.0f32;
            if comptime!(dynamic_scale) {
                if good_steps >= comptime!(GROWTH_INTERVAL) {
                    next_scale = 2.0f32 * scale;
                    good_steps = 0.0f32;
                }
            }
        } else if comptime!(dynamic_scale) {
            next_scale = 0.5f32 * scale;
        }
        decision[comptime!(FACTOR)] = factor;
        decision[comptime!(APPLY)] = apply;
        decision[comptime!(NORM)] = norm;
        decision[comptime!(SCALE)] = scale;
        decision[comptime!(CORRECTION1)] = correction1;
        decision[comptime!(CORRECTION2)] = correction2;
        decision[comptime!(RECTIFICATION)] = rectification;
        after[0] = next_scale;
        after[1] = good_steps;
        after[2] = correction1;
        after[3] = correction2;
        after[4] = age;
    }
}

/// [`SgdStep`] in a kernel.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct SgdConstants {
    learning_rate: f32,
    momentum: f32,
    weight_decay: f32,
}

/// One unit per vector of weights.
#[cube(launch)]
fn sgd_step<N: Size>(
    value: &Array<Vector<f32, N>>,
    gradient: &Array<Vector<f32, N>>,
    velocity: &Array<Vector<f32, N>>,
    decision: &Array<f32>,
    new_value: &mut Array<Vector<f32, N>>,
    new_velocity: &mut Array<Vector<f32, N>>,
    step: SgdConstants,
    #[comptime] nesterov: bool,
    #[comptime] is_first: bool,
) {
    let place = ABSOLUTE_POS;
    if place >= value.len() {
        terminate!();
    }
    let old = value[place];
    let old_velocity = if comptime!(is_first) { Vector::<f32, N>::new(0.0) } else { velocity[place] };
    let mut new = old;
    let mut moved = old_velocity;
    if decision[comptime!(APPLY)] > 0.5 {
        let decay = Vector::<f32, N>::new(step.weight_decay);
        let gradient = gradient[place] * Vector::<f32, N>::new(decision[comptime!(FACTOR)]) + old * decay;
        moved = old_velocity * Vector::<f32, N>::new(step.momentum) + gradient;
        let mut direction = moved;
        if comptime!(nesterov) {
            direction = gradient + moved * Vector::<f32, N>::new(step.momentum);
        }
        new = old - direction * Vector::<f32, N>::new(step.learning_rate);
    }
    new_value[place] = new;
    new_velocity[place] = moved;
}

/// [`AdamStep`] in a kernel.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct AdamConstants {
    learning_rate: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
}

/// One unit per vector of weights.
#[cube(launch)]
fn adam_step<N: Size>(
    value: &Array<Vector<f32, N>>,
    gradient: &Array<Vector<f32, N>>,
    first: &Array<Vector<f32, N>>,
    second: &Array<Vector<f32, N>>,
    decision: &Array<f32>,
    new_value: &mut Array<Vector<f32, N>>,
    new_first: &mut Array<Vector<f32, N>>,
    new_second: &mut Array<Vector<f32, N>>,
    step: AdamConstants,
    #[comptime] decoupled: bool,
    #[comptime] rectified: bool,
    #[comptime] is_first: bool,
) {
    let place = ABSOLUTE_POS;
    if place >= value.len() {
        terminate!();
    }
    let old = value[place];
    let mut moment1 = Vector::<f32, N>::new(0.0);
    let mut moment2 = Vector::<f32, N>::new(0.0);
    if comptime!(!is_first) {
        moment1 = first[place];
        moment2 = second[place];
    }
    let mut new = old;
    if decision[comptime!(APPLY)] > 0.5 {
        let mut gradient = gradient[place] * Vector::<f32, N>::new(decision[comptime!(FACTOR)]);
        let mut kept = old;
        if comptime!(decoupled) {
            kept = old - old * Vector::<f32, N>::new(step.learning_rate * step.weight_decay);
        } else {
            gradient += old * Vector::<f32, N>::new(step.weight_decay);
        }
        moment1 = moment1 * Vector::<f32, N>::new(step.beta1) + gradient * Vector::<f32, N>::new(1.0 - step.beta1);
        moment2 =
            moment2 * Vector::<f32, N>::new(step.beta2) + gradient * gradient * Vector::<f32, N>::new(1.0 - step.beta2);
        let rate = step.learning_rate / decision[comptime!(CORRECTION1)];
        if comptime!(rectified) {
            new = kept - moment1 * Vector::<f32, N>::new(rate);
            if decision[comptime!(RECTIFICATION)] > 0.0 {
                let rate = rate * decision[comptime!(RECTIFICATION)] * f32::sqrt(decision[comptime!(CORRECTION2)]);
                new = kept
                    - moment1 / (Vector::sqrt(moment2) + Vector::<f32, N>::new(step.eps)) * Vector::<f32, N>::new(rate);
            }
        } else {
            let denominator = Vector::sqrt(moment2 / Vector::<f32, N>::new(decision[comptime!(CORRECTION2)]))
                + Vector::<f32, N>::new(step.eps);
            new = kept - moment1 / denominator * Vector::<f32, N>::new(rate);
        }
    }
    new_value[place] = new;
    new_first[place] = moment1;
    new_second[place] = moment2;
}

/// Returns the update decision for these gradients and the new scaler.
pub fn update_decision<R: CubeRuntime>(
    gradients: Vec<CubeTensor<R>>,
    scaler: CubeTensor<R>,
    params: DecisionParams,
) -> [CubeTensor<R>; 2] {
    let scaler = contiguous(scaler);
    let parts = |gradient: &CubeTensor<R>| gradient.shape().num_elements().div_ceil(PART);
    let slots: usize = gradients.iter().map(parts).sum();
    let sums = allocate(&scaler, [slots.max(1)], DType::F32);
    let mut place = 0;
    for gradient in gradients {
        let cubes = parts(&gradient);
        let size = vector_size(gradient.shape().num_elements(), &[DType::F32]);
        squares::launch::<R>(
            &scaler.client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            size,
            contiguous(gradient).into_array_arg(),
            sums.clone().into_array_arg(),
            place,
            PART / size,
        );
        place += cubes;
    }
    let (decision, after) =
        (allocate(&scaler, [UpdateDecision::LEN], DType::F32), allocate(&scaler, [GradScaler::LEN], DType::F32));
    let [beta1, beta2] = params.betas;
    update_decision_kernel::launch::<R>(
        &scaler.client.clone(),
        CubeCount::Static(1, 1, 1),
        CubeDim::new_1d(UNITS as u32),
        sums.into_array_arg(),
        scaler.into_array_arg(),
        decision.clone().into_array_arg(),
        after.clone().into_array_arg(),
        DecisionConstantsLaunch::new(
            params.max_grad_norm.unwrap_or(f32::INFINITY),
            beta1,
            beta2,
            (1.0 - f64::from(beta1)) as f32,
            (1.0 - f64::from(beta2)) as f32,
            params.longest(),
        ),
        params.dynamic_scale,
    );
    [decision, after]
}

/// Returns the new value and velocity, in place if the old ones' memory is not shared.
pub fn sgd<R: CubeRuntime>(
    value: CubeTensor<R>,
    gradient: CubeTensor<R>,
    velocity: Option<CubeTensor<R>>,
    decision: CubeTensor<R>,
    step: SgdStep,
) -> [CubeTensor<R>; 2] {
    let (value, gradient) = (contiguous(value), contiguous(gradient));
    let is_first = velocity.is_none();
    let new_value = reuse(&value);
    let (velocity, new_velocity) = match velocity.map(contiguous) {
        Some(velocity) => {
            let new = reuse(&velocity);
            (velocity, new)
        }
        // Unused placeholder.
        None => (value.clone(), allocate(&value, value.shape(), DType::F32)),
    };
    let size = vector_size(value.shape().num_elements(), &[DType::F32]);
    let (count, dim) = elementwise(value.shape().num_elements() / size);
    sgd_step::launch::<R>(
        &new_value.client,
        count,
        dim,
        size,
        value.into_array_arg(),
        gradient.into_array_arg(),
        velocity.into_array_arg(),
        decision.into_array_arg(),
        new_value.clone().into_array_arg(),
        new_velocity.clone().into_array_arg(),
        SgdConstantsLaunch::new(step.learning_rate, step.momentum, step.weight_decay),
        step.nesterov,
        is_first,
    );
    [new_value, new_velocity]
}

/// Returns the new value and moments, in place if the old ones' memory is not shared.
pub fn adam<R: CubeRuntime>(
    value: CubeTensor<R>,
    gradient: CubeTensor<R>,
    moments: Option<[CubeTensor<R>; 2]>,
    decision: CubeTensor<R>,
    step: AdamStep,
) -> [CubeTensor<R>; 3] {
    let (value, gradient) = (contiguous(value), contiguous(gradient));
    let is_first = moments.is_none();
    let new_value = reuse(&value);
    let fresh = || allocate(&value, value.shape(), DType::F32);
    let ([first, second], [new_first, new_second]) = match moments {
        Some(moments) => {
            let moments = moments.map(contiguous);
            let new = [reuse(&moments[0]), reuse(&moments[1])];
            (moments, new)
        }
        // Unused placeholder.
        None => ([value.clone(), value.clone()], [fresh(), fresh()]),
    };
    let size = vector_size(value.shape().num_elements(), &[DType::F32]);
    let (count, dim) = elementwise(value.shape().num_elements() / size);
    adam_step::launch::<R>(
        &new_value.client,
        count,
        dim,
        size,
        value.into_array_arg(),
        gradient.into_array_arg(),
        first.into_array_arg(),
        second.into_array_arg(),
        decision.into_array_arg(),
        new_value.clone().into_array_arg(),
        new_first.clone().into_array_arg(),
        new_second.clone().into_array_arg(),
        AdamConstantsLaunch::new(step.learning_rate, step.betas[0], step.betas[1], step.eps, step.weight_decay),
        step.decoupled,
        step.rectified,
        is_first,
    );
    [new_value, new_first, new_second]
}
