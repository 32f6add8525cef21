//! Slow weights that follow the optimiser's.

use std::collections::HashMap;

use burn::tensor::{
    backend::{AutodiffBackend, Backend},
    ops::FloatTensor,
};

use crate::model::{Parameter, ParameterSpec, StateError, TensorState};
use crate::ops::host;

/// Steps between two of the slow weights (`sync_period` of TensorFlow Addons' `Lookahead`, which NVIDIA's nnU-Net uses).
const PERIOD: usize = 6;
/// How far the slow weights go towards the fast ones (`slow_step_size` there).
const SHARE: f32 = 0.5;
/// Names in the optimiser's state: of the number of steps, and behind a parameter's.
const STEPS: &str = "lookahead.steps";
const SLOW: &str = "slow";

/// Lookahead (Zhang et al. 2019): after every sixth step of the optimiser below it, slow weights go half the way to where it
/// has come, and it goes on from there.
///
/// That is a pass over the weights in every sixth step, and memory for the weights once more. All steps count, those that
/// were skipped for a gradient that is not finite too.
#[derive(Debug)]
pub struct Lookahead<B: Backend> {
    steps: usize,
    /// Empty before the first step.
    slow: Vec<FloatTensor<B>>,
}

impl<B: Backend> Lookahead<B> {
    /// Without history.
    pub(super) fn new() -> Self {
        Self { steps: 0, slow: Vec::new() }
    }

    /// Before a step: the slow weights begin where the fast ones do.
    pub(super) fn begin<A: AutodiffBackend<InnerBackend = B>>(&mut self, parameters: &[Parameter<A>]) {
        if self.slow.is_empty() {
            self.slow = parameters.iter().map(Parameter::inner).collect();
        }
    }

    /// After a step.
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

    /// Adds what [`Lookahead::load`] takes.
    pub(super) fn add_to(&self, state: &mut Vec<TensorState>, specs: &[ParameterSpec]) {
        let slow = specs.iter().zip(&self.slow).map(|(spec, slow)| {
            let spec = ParameterSpec { name: name_of(spec), shape: spec.shape.clone() };
            TensorState { spec, values: host::<B>(slow.clone()) }
        });
        state.extend(slow);
        // Two halves, for f32 has no more than 24 bits.
        let values = vec![(self.steps >> 16) as f32, (self.steps & 0xffff) as f32];
        state.push(TensorState { spec: ParameterSpec { name: STEPS.into(), shape: vec![2] }, values });
    }

    /// Restores the history; a state without one, of a run that had no slow weights, begins it anew.
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
            _ => Err(StateError(format!("{} is missing or has another shape", name_of(spec)))),
        });
        self.slow = slow.collect::<Result<_, _>>()?;
        Ok(())
    }
}

fn name_of(spec: &ParameterSpec) -> String {
    format!("{}.{SLOW}", spec.name)
}
