//! SGD with Nesterov momentum and Adam, as PyTorch defines them, with gradient clipping.

use std::collections::HashMap;

use burn::tensor::{
    Tensor, TensorPrimitive,
    backend::{AutodiffBackend, Backend},
    ops::FloatTensor,
};

use crate::model::{Parameter, ParameterSpec, StateError, TensorState};
use crate::ops::{AdamStep, NnOps, SgdStep};

/// Stochastic gradient descent (`torch.optim.SGD`), nnU-Net's default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    pub momentum: f64,
    pub nesterov: bool,
    /// Added to the gradient as `weight_decay * weight`.
    pub weight_decay: f64,
}

/// Adam (Kingma & Ba 2015; `torch.optim.Adam`), NVIDIA's default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Added to the gradient as `weight_decay * weight`.
    pub weight_decay: f64,
}

impl Default for Adam {
    /// PyTorch's constants, without weight decay.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
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

/// What a step has done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Euclidean norm of all gradients before clipping.
    pub gradient_norm: f64,
}

/// What an optimiser remembers of one parameter: the momentum buffer, or Adam's two moments.
#[derive(Clone, Debug)]
pub struct Moments<B: Backend> {
    first: FloatTensor<B>,
    second: Option<FloatTensor<B>>,
    /// Updates of this parameter so far, for Adam's bias correction.
    updates: u64,
}

/// An update rule with its state, one entry per parameter.
#[derive(Debug)]
pub struct Optimizer<B: Backend> {
    rule: Rule,
    /// Gradients are scaled down to this norm; `None` leaves them.
    clip_norm: Option<f64>,
    moments: Vec<Option<Moments<B>>>,
}

impl<B: NnOps> Optimizer<B> {
    /// An optimiser without history.
    pub fn new(rule: impl Into<Rule>, clip_norm: Option<f64>) -> Self {
        Self { rule: rule.into(), clip_norm, moments: Vec::new() }
    }

    /// Updates all parameters. A parameter without gradient stays as it is, without weight decay, as in PyTorch.
    ///
    /// `gradients` holds one entry per parameter, averaged over the ranks.
    pub fn step<A: AutodiffBackend<InnerBackend = B>>(
        &mut self,
        parameters: &mut [Parameter<A>],
        gradients: Vec<Option<FloatTensor<B>>>,
        learning_rate: f64,
    ) -> StepReport {
        debug_assert_eq!(parameters.len(), gradients.len());
        self.moments.resize_with(parameters.len(), || None);
        let gradient_norm = global_norm::<B>(&gradients);
        // `torch.nn.utils.clip_grad_norm_`, its epsilon included.
        let scale = self.clip_norm.map_or(1.0, |limit| (limit / (gradient_norm + 1e-6)).min(1.0));
        for ((parameter, gradient), moments) in parameters.iter_mut().zip(gradients).zip(&mut self.moments) {
            let Some(gradient) = gradient else { continue };
            let value = parameter.inner();
            let updated = match &self.rule {
                Rule::Sgd(sgd) => sgd.update::<B>(value, gradient, moments, learning_rate, scale),
                Rule::Adam(adam) => adam.update::<B>(value, gradient, moments, learning_rate, scale),
            };
            parameter.set(updated);
        }
        StepReport { gradient_norm }
    }

    /// The optimiser's state on the host: `NAME.first`, `NAME.second` (Adam) and `NAME.updates` per parameter.
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
            state.push(named("updates", vec![1], vec![moments.updates as f32]));
        }
        state
    }

    /// Restores what [`Optimizer::state`] has returned. A parameter of which it says nothing begins without history.
    ///
    /// # Errors
    /// Names the first entry whose shape is not that of its parameter.
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
                return Err(StateError(format!("{name} has shape {theirs:?} instead of {shape:?}")));
            }
            Ok(Some(*found))
        };
        let upload = |state: &TensorState| {
            Parameter::<B>::new(state.spec.clone(), state.values.clone(), device).tensor_primitive()
        };
        let moments = specs.iter().map(|spec| {
            let Some(first) = find(spec, "first", &spec.shape)? else { return Ok(None) };
            Ok(Some(Moments {
                first: upload(first),
                second: find(spec, "second", &spec.shape)?.map(upload),
                updates: find(spec, "updates", &[1])?.map_or(0, |updates| updates.values[0] as u64),
            }))
        });
        self.moments = moments.collect::<Result<_, _>>()?;
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
        gradient_scale: f64,
    ) -> FloatTensor<B> {
        let step = SgdStep {
            learning_rate: learning_rate as f32,
            momentum: self.momentum as f32,
            nesterov: self.nesterov,
            weight_decay: self.weight_decay as f32,
            gradient_scale: gradient_scale as f32,
        };
        let velocity = moments.take().map(|moments| moments.first);
        let [value, velocity] = B::sgd(value, gradient, velocity, step);
        *moments = Some(Moments { first: velocity, second: None, updates: 0 });
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
        gradient_scale: f64,
    ) -> FloatTensor<B> {
        let (moments_before, updates) = match moments.take() {
            Some(Moments { first, second, updates }) => (second.map(|second| [first, second]), updates + 1),
            None => (None, 1),
        };
        let step = AdamStep {
            learning_rate: learning_rate as f32,
            betas: [self.beta1 as f32, self.beta2 as f32],
            eps: self.eps as f32,
            weight_decay: self.weight_decay as f32,
            gradient_scale: gradient_scale as f32,
            corrections: [self.beta1, self.beta2].map(|beta| (1.0 - beta.powi(updates as i32)) as f32),
        };
        let [value, first, second] = B::adam(value, gradient, moments_before, step);
        *moments = Some(Moments { first, second: Some(second), updates });
        value
    }
}

fn host<B: Backend>(tensor: FloatTensor<B>) -> Vec<f32> {
    let data = burn::tensor::read_sync(B::float_into_data(tensor)).expect("reading back needs no more than the device");
    data.convert::<f32>().into_vec().expect("converted to f32")
}

/// Norm of all gradients together, with one read-back from the device.
fn global_norm<B: NnOps>(gradients: &[Option<FloatTensor<B>>]) -> f64 {
    let squares = gradients
        .iter()
        .flatten()
        .map(|gradient| Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(B::squared_norm(gradient.clone()))));
    let squares: Vec<_> = squares.collect();
    if squares.is_empty() {
        return 0.0;
    }
    let squares: Vec<f32> = Tensor::cat(squares, 0).into_data().convert::<f32>().into_vec().expect("converted to f32");
    squares.iter().map(|square| f64::from(*square)).sum::<f64>().sqrt()
}
