//! Optimizer update steps, for [`super::NnOps::update_decision`], [`super::NnOps::sgd`] and [`super::NnOps::adam`].
//!
//! Whether the gradients are finite and how far they are scaled is kept in a device tensor, [`UpdateDecision`]. The device
//! evaluates it, so the host need not wait and can keep queueing work.

/// A step of SGD with momentum, as in `torch.optim.SGD`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    pub learning_rate: f32,
    pub momentum: f32,
    pub nesterov: bool,
    /// L2 penalty: `weight_decay * value` is added to the gradient.
    pub weight_decay: f32,
}

/// A step of Adam (Kingma & Ba 2015), AdamW or RAdam, as in `torch.optim.Adam`, `AdamW` and `RAdam`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    pub learning_rate: f32,
    /// Decay rates of the two moments.
    pub betas: [f32; 2],
    pub eps: f32,
    /// Added to the gradient as `weight_decay * value`; if `decoupled`, the value is instead reduced by
    /// `learning_rate * weight_decay * value`.
    pub weight_decay: f32,
    /// AdamW: weight decay decoupled from the gradient (Loshchilov & Hutter 2019).
    pub decoupled: bool,
    /// RAdam: rectifies the step size for the variance of the second moment (Liu et al. 2020).
    pub rectified: bool,
}

/// Parameters of the update decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecisionParams {
    /// Maximum gradient norm; `None` disables clipping (`torch.nn.utils.clip_grad_norm_`).
    pub max_grad_norm: Option<f32>,
    /// Whether the loss scale is dynamic (`torch.amp.GradScaler`) or constant.
    pub dynamic_scale: bool,
    /// Decay rates of Adam's moments; unused with SGD.
    pub betas: [f32; 2],
}

/// Loss scaler and Adam state that persist between updates: the values of a tensor of shape `(5)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradScaler {
    /// Loss scale.
    pub scale: f32,
    /// Updates since the last change of the scale or the last overflow.
    pub good_steps: f32,
    /// `1 - beta^updates` for each moment of Adam, over the updates that were applied.
    pub corrections: [f32; 2],
    /// `Σ (1 - beta2) beta2^(age - 1) age` over the ages of the gradients in Adam's second moment, with age 1 for the
    /// last. Divided by the second moment's correction, it is their mean age.
    pub age: f32,
}

/// Update decision of a step: the values of a tensor of shape `(7)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateDecision {
    /// Factor of every gradient: removes the loss scale and clips.
    pub factor: f32,
    /// 1 to apply the update, 0 to skip it because a gradient is NaN or infinite.
    pub apply: f32,
    /// Euclidean norm of all gradients, without the loss scale, before clipping.
    pub norm: f32,
    /// Loss scale of these gradients.
    pub scale: f32,
    /// [`GradScaler::corrections`] after this update.
    pub corrections: [f32; 2],
    /// RAdam's step factor; 0 if the second moment has too few gradients to divide by it.
    pub rectification: f32,
}

/// Minimum effective number of gradients in RAdam's second moment before the step is divided by it.
pub const RECTIFIED_FROM: f32 = 5.0;
/// Initial loss scale of `torch.amp.GradScaler`.
pub const INITIAL_SCALE: f32 = 65536.0;
/// Number of steps without overflow after which the loss scale doubles. Each overflow halves it.
pub const GROWTH_INTERVAL: f32 = 2000.0;
/// Added to the norm before dividing by it, as in PyTorch.
pub const CLIP_EPS: f32 = 1e-6;

impl GradScaler {
    /// Number of values in the tensor.
    pub const LEN: usize = 5;

    /// Creates the initial state of a training run with a loss scale.
    pub fn new(scale: f32) -> Self {
        Self { scale, good_steps: 0.0, corrections: [0.0; 2], age: 0.0 }
    }

    pub(super) fn from_values(values: &[f32]) -> Self {
        Self { scale: values[0], good_steps: values[1], corrections: [values[2], values[3]], age: values[4] }
    }

    /// Returns the values in the order of the tensor.
    pub fn values(self) -> [f32; Self::LEN] {
        [self.scale, self.good_steps, self.corrections[0], self.corrections[1], self.age]
    }

    /// Computes the update decision and the new scaler from the sum of squares of the scaled gradients.
    pub(super) fn advance(self, sum_of_squares: f64, params: DecisionParams) -> (UpdateDecision, Self) {
        let norm = (sum_of_squares.sqrt() / f64::from(self.scale)) as f32;
        let scale = self.scale;
        if !norm.is_finite() {
            let shrunk = if params.dynamic_scale { 0.5 * scale } else { scale };
            let corrections = self.corrections;
            let decision = UpdateDecision { factor: 0.0, apply: 0.0, norm, scale, corrections, rectification: 0.0 };
            return (decision, Self { scale: shrunk, good_steps: 0.0, ..self });
        }
        let clip = params.max_grad_norm.map_or(1.0, |limit| (limit / (norm + CLIP_EPS)).min(1.0));
        // 1 - beta^n = (1 - beta^(n - 1)) * beta + 1 - beta avoids cancellation.
        let corrections = std::array::from_fn(|moment| {
            self.corrections[moment] * params.betas[moment] + (1.0 - f64::from(params.betas[moment])) as f32
        });
        // Every gradient ages by one step and a new one is added. All terms are positive, so there is no cancellation.
        let age = self.age * params.betas[1] + corrections[1];
        let rectification = params.rectification(age / corrections[1]);
        let decision = UpdateDecision { factor: clip / scale, apply: 1.0, norm, scale, corrections, rectification };
        let grows = params.dynamic_scale && self.good_steps + 1.0 >= GROWTH_INTERVAL;
        let after = match grows {
            true => Self { scale: 2.0 * scale, good_steps: 0.0, corrections, age },
            false => Self { scale, good_steps: self.good_steps + 1.0, corrections, age },
        };
        (decision, after)
    }
}

impl DecisionParams {
    /// Maximum length of RAdam's second moment: `2 / (1 - beta2) - 1`.
    pub(super) fn longest(&self) -> f32 {
        (2.0 / (1.0 - f64::from(self.betas[1])) - 1.0) as f32
    }

    /// RAdam's step factor, from the mean age of the gradients in the second moment. The length of the approximating
    /// simple moving average in the paper is twice the mean age, minus 1.
    fn rectification(&self, mean_age: f32) -> f32 {
        let (length, longest) = (2.0 * mean_age - 1.0, self.longest());
        if length <= RECTIFIED_FROM {
            return 0.0;
        }
        let term = |length: f32| (length - 4.0) / length * (length - 2.0);
        (term(length) / term(longest)).sqrt()
    }
}

impl UpdateDecision {
    /// Number of values in the tensor.
    pub const LEN: usize = 7;

    /// Creates the decision from the tensor's values.
    pub fn from_values(values: &[f32]) -> Self {
        Self {
            factor: values[0],
            apply: values[1],
            norm: values[2],
            scale: values[3],
            corrections: [values[4], values[5]],
            rectification: values[6],
        }
    }

    /// Returns the values in the order of the tensor.
    pub fn values(self) -> [f32; Self::LEN] {
        let Self { factor, apply, norm, scale, corrections: [first, second], rectification } = self;
        [factor, apply, norm, scale, first, second, rectification]
    }
}

impl SgdStep {
    /// Returns the new value and velocity of one weight. Without a velocity, it starts as the gradient.
    #[inline(always)]
    pub(super) fn apply(self, value: f32, gradient: f32, velocity: Option<f32>, factor: f32) -> (f32, f32) {
        let gradient = gradient * factor + value * self.weight_decay;
        let velocity = velocity.map_or(gradient, |velocity| velocity * self.momentum + gradient);
        let direction = if self.nesterov { gradient + velocity * self.momentum } else { velocity };
        (value - direction * self.learning_rate, velocity)
    }
}

impl AdamStep {
    /// Returns the new value and moments of one weight. Moments start at 0.
    #[inline(always)]
    pub(super) fn apply(
        self,
        value: f32,
        gradient: f32,
        moments: [f32; 2],
        decision: &UpdateDecision,
    ) -> (f32, [f32; 2]) {
        let decay = self.weight_decay;
        let (kept, decay) = if self.decoupled { (1.0 - self.learning_rate * decay, 0.0) } else { (1.0, decay) };
        let rate = self.learning_rate / decision.corrections[0];
        // All variants divide by `root * sqrt(second / divisor) + eps`, which keeps the loop over the weights
        // branch-free.
        let (root, divisor, eps, rate) = match self.rectified {
            false => (1.0, decision.corrections[1], self.eps, rate),
            // PyTorch's RAdam adds `eps` to the root before the bias correction.
            true if decision.rectification > 0.0 => {
                (1.0, 1.0, self.eps, rate * decision.rectification * decision.corrections[1].sqrt())
            }
            true => (0.0, 1.0, 1.0, rate),
        };
        let gradient = gradient * decision.factor + value * decay;
        let first = moments[0] * self.betas[0] + gradient * (1.0 - self.betas[0]);
        let second = moments[1] * self.betas[1] + gradient * gradient * (1.0 - self.betas[1]);
        let new = value * kept - first / (root * (second / divisor).sqrt() + eps) * rate;
        (new, [first, second])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: DecisionParams = DecisionParams { max_grad_norm: Some(12.0), dynamic_scale: true, betas: [0.9, 0.999] };

    #[test]
    fn the_scale_halves_at_an_overflow_and_doubles_after_2000_good_steps() {
        let (decision, scaler) = GradScaler::new(INITIAL_SCALE).advance(f64::INFINITY, RULE);
        assert_eq!((decision.apply, scaler.scale, scaler.corrections), (0.0, 32768.0, [0.0; 2]));
        let mut scaler = scaler;
        for _ in 0..1999 {
            scaler = scaler.advance(1.0, RULE).1;
        }
        assert_eq!(scaler.scale, 32768.0);
        let (decision, scaler) = scaler.advance(1.0, RULE);
        assert_eq!((decision.scale, scaler.scale, scaler.good_steps), (32768.0, 65536.0, 0.0));
        let (_, scaler) = scaler.advance(f64::NAN, RULE);
        assert_eq!(scaler.scale, 32768.0);
    }

    #[test]
    fn a_constant_scale_skips_the_update_on_overflow() {
        let params = DecisionParams { dynamic_scale: false, ..RULE };
        let (decision, scaler) = GradScaler::new(1.0).advance(f64::NAN, params);
        assert!(decision.norm.is_nan() && decision.apply == 0.0);
        assert_eq!(scaler.scale, 1.0);
    }

    #[test]
    fn factor_removes_the_loss_scale_and_clips() {
        let scaler = GradScaler::new(64.0);
        let (decision, _) = scaler.advance((24.0f64 * 64.0).powi(2), RULE);
        assert!((decision.norm - 24.0).abs() < 1e-5 && (decision.factor - 0.5 / 64.0).abs() < 1e-8, "{decision:?}");
        let (decision, _) = scaler.advance(64.0f64.powi(2), RULE);
        assert_eq!(decision.factor, 1.0 / 64.0);
    }

    #[test]
    fn rectification_matches_the_radam_paper() {
        let mut scaler = GradScaler::new(1.0);
        let longest = 2.0 / (1.0 - 0.999) - 1.0;
        for update in 1..=3000 {
            let (decision, after) = scaler.advance(1.0, RULE);
            scaler = after;
            let power = 0.999f64.powi(update);
            let length = longest - 2.0 * f64::from(update) * power / (1.0 - power);
            let factor = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length);
            let expected = if length > 5.0 { factor.sqrt() } else { 0.0 };
            let difference = (f64::from(decision.rectification) - expected).abs();
            assert!(difference <= 1e-4 * expected, "{} and {expected} in update {update}", decision.rectification);
        }
    }

    #[test]
    fn corrections_match_adam() {
        let mut scaler = GradScaler::new(1.0);
        for update in 1..=50 {
            scaler = scaler.advance(1.0, RULE).1;
            for (ours, beta) in scaler.corrections.into_iter().zip([0.9f32, 0.999]) {
                let expected = 1.0 - f64::from(beta).powi(update);
                assert!((f64::from(ours) / expected - 1.0).abs() < 1e-6, "{ours} and {expected}");
            }
        }
    }
}
