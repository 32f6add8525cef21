//! SGD with Nesterov momentum, Adam, AdamW and RAdam as PyTorch defines them, with gradient clipping and Lookahead.

use std::collections::HashMap;

use burn::tensor::{
    backend::{AutodiffBackend, Backend},
    ops::FloatTensor,
};

use super::lookahead::Lookahead;
use crate::model::{Parameter, ParameterSpec, StateError, TensorState};
use crate::ops::{AdamStep, DecisionParams, GradScaler, INITIAL_SCALE, NnOps, SgdStep, host};

/// Stochastic gradient descent (`torch.optim.SGD`), nnU-Net's default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    pub momentum: f64,
    pub nesterov: bool,
    /// Added to the gradient as `weight_decay * weight`.
    pub weight_decay: f64,
}

/// Adam (Kingma & Ba 2015; `torch.optim.Adam`), NVIDIA's default, and its variants AdamW and RAdam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Added to the gradient as `weight_decay * weight`; if `decoupled`, the weight is instead reduced by
    /// `learning_rate * weight_decay * weight`.
    pub weight_decay: f64,
    /// AdamW (Loshchilov & Hutter 2019; `torch.optim.AdamW`): weight decay decoupled from the gradient.
    pub decoupled: bool,
    /// RAdam (Liu et al. 2020; `torch.optim.RAdam`): rectifies the step size of the first steps.
    pub rectified: bool,
}

impl Default for Adam {
    /// Adam with PyTorch's constants, without weight decay.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, decoupled: false, rectified: false }
    }
}

/// The update rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    Sgd(Sgd),
    Adam(Adam),
}

impl From<Sgd> for Rule {
    fn from(sgd: Sgd) -> Self {
        Self::Sgd(sgd)
    }
}

impl From<Adam> for Rule {
    fn from(adam: Adam) -> Self {
        Self::Adam(adam)
    }
}

/// Optimizer state of one parameter: the momentum buffer, or Adam's two moments.
#[derive(Clone, Debug)]
pub struct Moments<B: Backend> {
    first: FloatTensor<B>,
    second: Option<FloatTensor<B>>,
}

/// Update rule with its state, one entry per parameter.
#[derive(Debug)]
pub struct Optimizer<B: Backend> {
    rule: Rule,
    /// Maximum gradient norm; `None` disables clipping.
    clip_norm: Option<f64>,
    /// Whether the loss is scaled dynamically.
    dynamic_scale: bool,
    /// Loss scaler; `None` before its first use.
    scaler: Option<FloatTensor<B>>,
    moments: Vec<Option<Moments<B>>>,
    lookahead: Option<Lookahead<B>>,
}

/// Name of the scaler in the optimizer state.
const SCALER: &str = "scaler";

impl<B: NnOps> Optimizer<B> {
    /// Creates an optimizer without state.
    pub fn new(rule: impl Into<Rule>, clip_norm: Option<f64>) -> Self {
        Self { rule: rule.into(), clip_norm, dynamic_scale: false, scaler: None, moments: Vec::new(), lookahead: None }
    }

    /// Enables [`Lookahead`].
    pub fn with_lookahead(self) -> Self {
        Self { lookahead: Some(Lookahead::new()), ..self }
    }

    /// Enables a dynamic loss scale (`torch.amp.GradScaler`), for fp16 activations.
    pub fn with_dynamic_scale(self) -> Self {
        Self { dynamic_scale: true, ..self }
    }

    /// Returns the values of [`GradScaler`]. The first is the loss scale.
    pub fn scaler(&mut self, device: &B::Device) -> FloatTensor<B> {
        let initial = if self.dynamic_scale { INITIAL_SCALE } else { 1.0 };
        let new = || B::float_from_data(GradScaler::new(initial).values().as_slice().into(), device);
        self.scaler.get_or_insert_with(new).clone()
    }

    /// Returns the loss scale. Waits for the device if the scale is dynamic.
    pub fn loss_scale(&mut self, device: &B::Device) -> f64 {
        match self.dynamic_scale {
            true => f64::from(host::<B>(self.scaler(device))[0]),
            false => 1.0,
        }
    }

    /// Updates all parameters. A parameter without a gradient is left unchanged, without weight decay, as in PyTorch.
    ///
    /// `gradients` has one entry per parameter, averaged over the ranks and multiplied by the loss scale. If one of
    /// them is NaN or infinite, nothing is updated. Returns the values of [`crate::ops::UpdateDecision`] as a tensor. Does not
    /// synchronize with the device.
    pub fn step<A: AutodiffBackend<InnerBackend = B>>(
        &mut self,
        parameters: &mut [Parameter<A>],
        gradients: Vec<Option<FloatTensor<B>>>,
        learning_rate: f64,
        device: &B::Device,
    ) -> FloatTensor<B> {
        debug_assert_eq!(parameters.len(), gradients.len());
        self.moments.resize_with(parameters.len(), || None);
        let decision_params = DecisionParams {
            max_grad_norm: self.clip_norm.map(|norm| norm as f32),
            dynamic_scale: self.dynamic_scale,
            betas: match &self.rule {
                Rule::Sgd(_) => [0.0; 2],
                Rule::Adam(adam) => [adam.beta1 as f32, adam.beta2 as f32],
            },
        };
        if let Some(lookahead) = &mut self.lookahead {
            lookahead.begin(parameters);
        }
        let scaler = self.scaler(device);
        let [decision, scaler] =
            B::update_decision(gradients.iter().flatten().cloned().collect(), scaler, decision_params);
        self.scaler = Some(scaler);
        for ((parameter, gradient), moments) in parameters.iter_mut().zip(gradients).zip(&mut self.moments) {
            let Some(gradient) = gradient else { continue };
            let value = parameter.inner();
            let updated = match &self.rule {
                Rule::Sgd(sgd) => sgd.update::<B>(value, gradient, moments, learning_rate, decision.clone()),
                Rule::Adam(adam) => adam.update::<B>(value, gradient, moments, learning_rate, decision.clone()),
            };
            parameter.set(updated);
        }
        if let Some(lookahead) = &mut self.lookahead {
            lookahead.follow(parameters);
        }
        decision
    }

    /// Returns the optimizer state on the host: `NAME.first` and `NAME.second` (Adam) per parameter, the scaler, and
    /// the state of [`Lookahead`].
    pub fn state(&self, specs: &[ParameterSpec]) -> Vec<TensorState> {
        let mut state = Vec::new();
        for (spec, moments) in specs.iter().zip(&self.moments) {
            let Some(moments) = moments else { continue };
            let named = |suffix: &str, shape: Vec<usize>, values| TensorState {
                spec: ParameterSpec { name: format!("{}.{suffix}", spec.name), shape },
                values,
            };
            state.push(named("first", spec.shape.clone(), host::<B>(moments.first.clone())));
            if let Some(second) = &moments.second {
                state.push(named("second", spec.shape.clone(), host::<B>(second.clone())));
            }
        }
        if let Some(scaler) = &self.scaler {
            let values = host::<B>(scaler.clone());
            state.push(TensorState { spec: ParameterSpec { name: SCALER.into(), shape: vec![values.len()] }, values });
        }
        if let Some(lookahead) = &self.lookahead {
            lookahead.add_to(&mut state, specs);
        }
        state
    }

    /// Restores the state returned by [`Optimizer::state`]. Parameters without an entry start without state.
    ///
    /// # Errors
    /// Returns an error that names the first entry with the wrong shape.
    pub fn load_state(
        &mut self,
        specs: &[ParameterSpec],
        state: &[TensorState],
        device: &B::Device,
    ) -> Result<(), StateError> {
        let by_name: HashMap<_, _> = state.iter().map(|s| (s.spec.name.as_str(), s)).collect();
        let find = |spec: &ParameterSpec, suffix: &str, shape: &[usize]| {
            let Some(found) = by_name.get(format!("{}.{suffix}", spec.name).as_str()) else { return Ok(None) };
            if found.spec.shape != shape {
                let (name, theirs) = (&found.spec.name, &found.spec.shape);
                return Err(StateError(format!("{name} has shape {theirs:?}, expected {shape:?}")));
            }
            Ok(Some(*found))
        };
        let upload = |state: &TensorState| state.upload::<B>(device);
        let moments = specs.iter().map(|spec| {
            let Some(first) = find(spec, "first", &spec.shape)? else { return Ok(None) };
            Ok(Some(Moments { first: upload(first), second: find(spec, "second", &spec.shape)?.map(upload) }))
        });
        self.moments = moments.collect::<Result<_, _>>()?;
        self.scaler = match by_name.get(SCALER) {
            Some(scaler) if scaler.spec.shape == [GradScaler::LEN] => Some(upload(scaler)),
            None if state.is_empty() => None,
            _ => return Err(StateError(format!("the optimizer's {SCALER} is missing or has the wrong shape"))),
        };
        if let Some(lookahead) = &mut self.lookahead {
            lookahead.load(specs, &by_name, device)?;
        }
        Ok(())
    }
}

impl Sgd {
    fn update<B: NnOps>(
        &self,
        value: FloatTensor<B>,
        gradient: FloatTensor<B>,
        moments: &mut Option<Moments<B>>,
        learning_rate: f64,
        decision: FloatTensor<B>,
    ) -> FloatTensor<B> {
        let step = SgdStep {
            learning_rate: learning_rate as f32,
            momentum: self.momentum as f32,
            nesterov: self.nesterov,
            weight_decay: self.weight_decay as f32,
        };
        let velocity = moments.take().map(|moments| moments.first);
        let [value, velocity] = B::sgd(value, gradient, velocity, decision, step);
        *moments = Some(Moments { first: velocity, second: None });
        value
    }
}

impl Adam {
    fn update<B: NnOps>(
        &self,
        value: FloatTensor<B>,
        gradient: FloatTensor<B>,
        moments: &mut Option<Moments<B>>,
        learning_rate: f64,
        decision: FloatTensor<B>,
    ) -> FloatTensor<B> {
        let before = moments.take().and_then(|Moments { first, second }| second.map(|second| [first, second]));
        let step = AdamStep {
            learning_rate: learning_rate as f32,
            betas: [self.beta1 as f32, self.beta2 as f32],
            eps: self.eps as f32,
            weight_decay: self.weight_decay as f32,
            decoupled: self.decoupled,
            rectified: self.rectified,
        };
        let [value, first, second] = B::adam(value, gradient, before, decision, step);
        *moments = Some(Moments { first, second: Some(second) });
        value
    }
}
