//! Optimizer updates of a parameter, in one pass over its value, gradient and moments.

use burn::tensor::{DType, TensorMetadata};
use burn_flex::FlexTensor;
use multiversion::multiversion;
use rayon::prelude::*;

use super::buffer_pool::buffer;
use super::tensor::{contiguous, values};
use crate::ops::update::{AdamStep, SgdStep, UpdateDecision};

/// Number of weights per task.
const BLOCK: usize = 16 * 1024;

/// Returns the sum of squares.
pub fn squared_norm(gradient: FlexTensor) -> f64 {
    let gradient = contiguous(gradient);
    let blocks: Vec<f64> = values::<f32>(&gradient).par_chunks(BLOCK).map(squares).collect();
    blocks.iter().sum()
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn squares(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; 16];
    let (blocks, rest) = values.as_chunks::<16>();
    for block in blocks.iter().map(|block| &block[..]).chain([rest]) {
        for (sum, value) in sums.iter_mut().zip(block) {
            *sum += f64::from(*value) * f64::from(*value);
        }
    }
    sums.iter().sum()
}

/// Returns the new value and velocity; the velocity reuses the old one's memory.
pub fn sgd(
    value: FlexTensor,
    gradient: FlexTensor,
    velocity: Option<FlexTensor>,
    decision: UpdateDecision,
    step: SgdStep,
) -> [FlexTensor; 2] {
    if decision.apply == 0.0 {
        let velocity = into_unique(velocity, &value);
        return [value, velocity];
    }
    let (value, gradient) = (contiguous(value), contiguous(gradient));
    let (old, gradient) = (values::<f32>(&value), values::<f32>(&gradient));
    let mut new = buffer::<f32>(old.len());
    let has_velocity = velocity.is_some();
    let mut velocity = into_unique(velocity, &value);
    let velocities = new.par_chunks_mut(BLOCK).zip(velocity.storage_mut::<f32>().par_chunks_mut(BLOCK));
    let blocks = velocities.zip(old.par_chunks(BLOCK)).zip(gradient.par_chunks(BLOCK));
    blocks.for_each(|(((new, velocity), old), gradient)| {
        sgd_block(new, velocity, has_velocity, old, gradient, (step, decision.factor));
    });
    [new.into_tensor([old.len()]).reshape(value.shape()), velocity]
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn sgd_block(
    new: &mut [f32],
    velocity: &mut [f32],
    has_velocity: bool,
    old: &[f32],
    gradient: &[f32],
    (step, factor): (SgdStep, f32),
) {
    for (((new, velocity), old), gradient) in new.iter_mut().zip(velocity).zip(old).zip(gradient) {
        (*new, *velocity) = step.apply(*old, *gradient, has_velocity.then_some(*velocity), factor);
    }
}

/// Returns the new value and moments; the moments reuse the old ones' memory.
pub fn adam(
    value: FlexTensor,
    gradient: FlexTensor,
    moments: Option<[FlexTensor; 2]>,
    decision: UpdateDecision,
    step: AdamStep,
) -> [FlexTensor; 3] {
    if decision.apply == 0.0 {
        let [first, second] = moments.map_or([None, None], |moments| moments.map(Some));
        let (first, second) = (into_unique(first, &value), into_unique(second, &value));
        return [value, first, second];
    }
    let (value, gradient) = (contiguous(value), contiguous(gradient));
    let (old, gradient) = (values::<f32>(&value), values::<f32>(&gradient));
    let mut new = buffer::<f32>(old.len());
    let [first, second] = moments.map_or([None, None], |moments| moments.map(Some));
    let (mut first, mut second) = (into_unique(first, &value), into_unique(second, &value));
    let moments = first.storage_mut::<f32>().par_chunks_mut(BLOCK).zip(second.storage_mut().par_chunks_mut(BLOCK));
    let blocks = new.par_chunks_mut(BLOCK).zip(moments).zip(old.par_chunks(BLOCK)).zip(gradient.par_chunks(BLOCK));
    blocks.for_each(|(((new, (first, second)), old), gradient)| {
        adam_block(new, [first, second], old, gradient, (step, &decision));
    });
    [new.into_tensor([old.len()]).reshape(value.shape()), first, second]
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn adam_block(
    new: &mut [f32],
    moments: [&mut [f32]; 2],
    old: &[f32],
    gradient: &[f32],
    (step, decision): (AdamStep, &UpdateDecision),
) {
    let [first, second] = moments;
    let moments = first.iter_mut().zip(second);
    for (((new, (first, second)), old), gradient) in new.iter_mut().zip(moments).zip(old).zip(gradient) {
        (*new, [*first, *second]) = step.apply(*old, *gradient, [*first, *second], decision);
    }
}

/// Returns the tensor with exclusive, contiguous memory; zeros with the shape of `value` if there is no tensor.
fn into_unique(tensor: Option<FlexTensor>, value: &FlexTensor) -> FlexTensor {
    tensor.map_or_else(|| FlexTensor::zeros(value.shape(), DType::F32), |tensor| tensor.to_contiguous())
}
