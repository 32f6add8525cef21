//! Lookahead optimizer wrapper.

use std::collections::HashMap;

use burn::tensor::{
    backend::{AutodiffBackend, Backend},
    ops::FloatTensor,
};

use crate::model::{Parameter, ParameterSpec, StateError, TensorState};
use crate::ops::host;

/// Steps between updates of the slow weights (`sync_period` of TensorFlow Addons' `Lookahead`, used by NVIDIA's
/// nnU-Net).
const PERIOD: usize = 6;
/// Interpolation factor of the slow weights towards the fast ones (`slow_step_size` in TensorFlow Addons).
const SHARE: f32 = 0.5;
/// Names in the optimizer state: the step count, and the suffix of a parameter's slow weights.
const STEPS: &str = "lookahead.steps";
const SLOW: &str = "slow";

/// Lookahead (Zhang et al. 2019): after every sixth step of the inner optimizer, the slow weights move half way to the
/// fast weights, and the fast weights are reset to them.
///
/// Costs one pass over the weights every sixth step and one more copy of the weights in memory. Steps skipped because
/// of a NaN or infinite gradient count too.
#[derive(Debug)]
pub struct Lookahead<B: Backend> {
    steps: usize,
    /// Slow weights; empty before the first step.
    slow: Vec<FloatTensor<B>>,
}

impl<B: Backend> Lookahead<B> {
    /// Creates the initial state.
    pub(super) fn new() -> Self {
        Self { steps: 0, slow: Vec::new() }
    }

    /// Initializes the slow weights before the first step.
    pub(super) fn begin<A: AutodiffBackend<InnerBackend = B>>(&mut self, parameters: &[Parameter<A>]) {
        if self.slow.is_empty() {
            self.slow = parameters.iter().map(Parameter::inner).collect();
        }
    }

    /// Updates slow and fast weights after a step.
    pub(super) fn follow<A: AutodiffBackend<InnerBackend = B>>(&mut self, parameters: &mut [Parameter<A>]) {
        self.steps += 1;
        if !self.steps.is_multiple_of(PERIOD) {
            return;
        }
        for (parameter, slow) in parameters.iter_mut().zip(&mut self.slow) {
            let way = B::float_sub(parameter.inner(), slow.clone());
            *slow = B::float_add(slow.clone(), B::float_mul_scalar(way, SHARE.into()));
            parameter.set(slow.clone());
        }
    }

    /// Appends the state that [`Lookahead::load`] restores.
    pub(super) fn add_to(&self, state: &mut Vec<TensorState>, specs: &[ParameterSpec]) {
        let slow = specs.iter().zip(&self.slow).map(|(spec, slow)| {
            let spec = ParameterSpec { name: name_of(spec), shape: spec.shape.clone() };
            TensorState { spec, values: host::<B>(slow.clone()) }
        });
        state.extend(slow);
        // The count is split into two halves, since f32 represents integers exactly only up to 24 bits.
        let values = vec![(self.steps >> 16) as f32, (self.steps & 0xffff) as f32];
        state.push(TensorState { spec: ParameterSpec { name: STEPS.into(), shape: vec![2] }, values });
    }

    /// Restores the state. A state without Lookahead entries, saved without slow weights, starts from scratch.
    pub(super) fn load(
        &mut self,
        specs: &[ParameterSpec],
        state: &HashMap<&str, &TensorState>,
        device: &B::Device,
    ) -> Result<(), StateError> {
        *self = Self::new();
        let Some(steps) = state.get(STEPS).filter(|steps| steps.values.len() == 2) else { return Ok(()) };
        self.steps = (steps.values[0] as usize) << 16 | steps.values[1] as usize;
        if self.steps == 0 {
            return Ok(());
        }
        let slow = specs.iter().map(|spec| match state.get(name_of(spec).as_str()) {
            Some(found) if found.spec.shape == spec.shape => Ok(found.upload::<B>(device)),
            _ => Err(StateError(format!("{} is missing or has the wrong shape", name_of(spec)))),
        });
        self.slow = slow.collect::<Result<_, _>>()?;
        Ok(())
    }
}

fn name_of(spec: &ParameterSpec) -> String {
    format!("{}.{SLOW}", spec.name)
}
