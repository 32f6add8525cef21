//! What an update does to the parameters, for [`super::NnOps::control`], [`super::NnOps::sgd`] and [`super::NnOps::adam`].
//!
//! All that an update must know of the gradients, whether they are finite and how far they are scaled down, is in a
//! tensor, its control. So a device decides by itself, and the host can go on queueing work.

/// A step of stochastic gradient descent with momentum, as `torch.optim.SGD` defines it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    pub learning_rate: f32,
    pub momentum: f32,
    pub nesterov: bool,
    /// Times the value, added to the gradient.
    pub weight_decay: f32,
}

/// A step of Adam (Kingma & Ba 2015) or one of its kin, as `torch.optim.Adam`, `AdamW` and `RAdam` define them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    pub learning_rate: f32,
    /// Decay of the two moments.
    pub betas: [f32; 2],
    pub eps: f32,
    /// Times the value, added to the gradient; or, times the learning rate, taken off the value.
    pub weight_decay: f32,
    /// Weight decay apart from the gradient (Loshchilov & Hutter 2019): AdamW.
    pub decoupled: bool,
    /// The step's length is corrected for the variance of what it is divided by (Liu et al. 2020): RAdam.
    pub rectified: bool,
}

/// How a [`Control`] follows from the gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ControlRule {
    /// Gradients are scaled down to this norm; `None` leaves them (`torch.nn.utils.clip_grad_norm_`).
    pub clip_norm: Option<f32>,
    /// Whether the loss scale follows the overflows (`torch.amp.GradScaler`), or stays as it is.
    pub dynamic_scale: bool,
    /// Decay of Adam's moments; not used with SGD.
    pub betas: [f32; 2],
}

/// What lasts from update to update: the values of a tensor `(5)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaler {
    /// By which the loss is multiplied.
    pub scale: f32,
    /// Updates since the scale has changed or a gradient has overflowed.
    pub good_steps: f32,
    /// `1 - beta^updates` of either moment of Adam, over the updates that were made.
    pub corrections: [f32; 2],
    /// `Σ (1 - beta2) beta2^(age - 1) age` over the ages of the gradients in Adam's second moment, the last one of age 1;
    /// divided by its correction their mean age.
    pub age: f32,
}

/// What becomes of the gradients of a step: the values of a tensor `(7)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Control {
    /// Times every gradient: undoes the loss scale, and clips.
    pub factor: f32,
    /// 1, or 0 where a gradient is not finite: then nothing is updated.
    pub apply: f32,
    /// Euclidean norm of all gradients, without the loss scale, before clipping.
    pub norm: f32,
    /// The loss scale of these gradients.
    pub scale: f32,
    /// Those of [`Scaler`], after this update.
    pub corrections: [f32; 2],
    /// RAdam's factor of the step; 0 where there are too few gradients to divide by their second moment.
    pub rectification: f32,
}

/// Gradients that RAdam's second moment must be worth before it is divided by.
pub const RECTIFIED_FROM: f32 = 5.0;
/// Of `torch.amp.GradScaler`.
pub const INITIAL_SCALE: f32 = 65536.0;
/// Steps without overflow after which the scale doubles; it halves at each overflow.
pub const GROWTH_INTERVAL: f32 = 2000.0;
/// Added to the norm before it divides, as PyTorch does.
pub const CLIP_EPS: f32 = 1e-6;

impl Scaler {
    /// Number of values in the tensor.
    pub const LEN: usize = 5;

    /// At the start of a training, with a loss scale.
    pub fn new(scale: f32) -> Self {
        Self { scale, good_steps: 0.0, corrections: [0.0; 2], age: 0.0 }
    }

    pub(super) fn from_values(values: &[f32]) -> Self {
        Self { scale: values[0], good_steps: values[1], corrections: [values[2], values[3]], age: values[4] }
    }

    /// As in the tensor.
    pub fn values(self) -> [f32; Self::LEN] {
        [self.scale, self.good_steps, self.corrections[0], self.corrections[1], self.age]
    }

    /// The control of gradients whose squares, scaled, add up to this, and the scaler after them.
    pub(super) fn advance(self, sum_of_squares: f64, rule: ControlRule) -> (Control, Self) {
        let norm = (sum_of_squares.sqrt() / f64::from(self.scale)) as f32;
        let scale = self.scale;
        if !norm.is_finite() {
            let shrunk = if rule.dynamic_scale { 0.5 * scale } else { scale };
            let corrections = self.corrections;
            let control = Control { factor: 0.0, apply: 0.0, norm, scale, corrections, rectification: 0.0 };
            return (control, Self { scale: shrunk, good_steps: 0.0, ..self });
        }
        let clip = rule.clip_norm.map_or(1.0, |limit| (limit / (norm + CLIP_EPS)).min(1.0));
        // 1 - beta^n = (1 - beta^(n - 1)) * beta + 1 - beta, without a difference of near numbers.
        let corrections = std::array::from_fn(|moment| {
            self.corrections[moment] * rule.betas[moment] + (1.0 - f64::from(rule.betas[moment])) as f32
        });
        // Every gradient is a step older, and there is one more. All terms are positive, so that no digits are lost.
        let age = self.age * rule.betas[1] + corrections[1];
        let rectification = rule.rectification(age / corrections[1]);
        let control = Control { factor: clip / scale, apply: 1.0, norm, scale, corrections, rectification };
        let grows = rule.dynamic_scale && self.good_steps + 1.0 >= GROWTH_INTERVAL;
        let after = match grows {
            true => Self { scale: 2.0 * scale, good_steps: 0.0, corrections, age },
            false => Self { scale, good_steps: self.good_steps + 1.0, corrections, age },
        };
        (control, after)
    }
}

impl ControlRule {
    /// The length that RAdam's second moment would come to: `2 / (1 - beta2) - 1`.
    pub(super) fn longest(&self) -> f32 {
        (2.0 / (1.0 - f64::from(self.betas[1])) - 1.0) as f32
    }

    /// RAdam's factor, of the mean age of the gradients in the second moment. The paper's length of an average that weights
    /// its gradients alike is twice their mean age, less 1.
    fn rectification(&self, mean_age: f32) -> f32 {
        let (length, longest) = (2.0 * mean_age - 1.0, self.longest());
        if length <= RECTIFIED_FROM {
            return 0.0;
        }
        let of = |length: f32| (length - 4.0) / length * (length - 2.0);
        (of(length) / of(longest)).sqrt()
    }
}

impl Control {
    /// Number of values in the tensor.
    pub const LEN: usize = 7;

    /// From the tensor's values.
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

    /// As in the tensor.
    pub fn values(self) -> [f32; Self::LEN] {
        let Self { factor, apply, norm, scale, corrections: [first, second], rectification } = self;
        [factor, apply, norm, scale, first, second, rectification]
    }
}

impl SgdStep {
    /// New value and velocity of one weight; without a velocity it begins as the gradient.
    #[inline(always)]
    pub(super) fn apply(self, value: f32, gradient: f32, velocity: Option<f32>, factor: f32) -> (f32, f32) {
        let gradient = gradient * factor + value * self.weight_decay;
        let velocity = velocity.map_or(gradient, |velocity| velocity * self.momentum + gradient);
        let direction = if self.nesterov { gradient + velocity * self.momentum } else { velocity };
        (value - direction * self.learning_rate, velocity)
    }
}

impl AdamStep {
    /// New value and moments of one weight; moments begin as 0.
    #[inline(always)]
    pub(super) fn apply(self, value: f32, gradient: f32, moments: [f32; 2], control: &Control) -> (f32, [f32; 2]) {
        let decay = self.weight_decay;
        let (kept, decay) = if self.decoupled { (1.0 - self.learning_rate * decay, 0.0) } else { (1.0, decay) };
        let rate = self.learning_rate / control.corrections[0];
        // All kinds divide by `root * sqrt(second / divisor) + eps`, so that the loop over the weights has no branches.
        let (root, divisor, eps, rate) = match self.rectified {
            false => (1.0, control.corrections[1], self.eps, rate),
            // PyTorch's RAdam adds `eps` to the root before it corrects it.
            true if control.rectification > 0.0 => {
                (1.0, 1.0, self.eps, rate * control.rectification * control.corrections[1].sqrt())
            }
            true => (0.0, 1.0, 1.0, rate),
        };
        let gradient = gradient * control.factor + value * decay;
        let first = moments[0] * self.betas[0] + gradient * (1.0 - self.betas[0]);
        let second = moments[1] * self.betas[1] + gradient * gradient * (1.0 - self.betas[1]);
        let new = value * kept - first / (root * (second / divisor).sqrt() + eps) * rate;
        (new, [first, second])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: ControlRule = ControlRule { clip_norm: Some(12.0), dynamic_scale: true, betas: [0.9, 0.999] };

    #[test]
    fn the_scale_halves_at_an_overflow_and_doubles_after_2000_good_steps() {
        let (control, scaler) = Scaler::new(INITIAL_SCALE).advance(f64::INFINITY, RULE);
        assert_eq!((control.apply, scaler.scale, scaler.corrections), (0.0, 32768.0, [0.0; 2]));
        let mut scaler = scaler;
        for _ in 0..1999 {
            scaler = scaler.advance(1.0, RULE).1;
        }
        assert_eq!(scaler.scale, 32768.0);
        let (control, scaler) = scaler.advance(1.0, RULE);
        assert_eq!((control.scale, scaler.scale, scaler.good_steps), (32768.0, 65536.0, 0.0));
        let (_, scaler) = scaler.advance(f64::NAN, RULE);
        assert_eq!(scaler.scale, 32768.0);
    }

    #[test]
    fn without_scaling_an_overflow_only_stops_the_update() {
        let rule = ControlRule { dynamic_scale: false, ..RULE };
        let (control, scaler) = Scaler::new(1.0).advance(f64::NAN, rule);
        assert!(control.norm.is_nan() && control.apply == 0.0);
        assert_eq!(scaler.scale, 1.0);
    }

    #[test]
    fn the_factor_undoes_the_scale_and_clips() {
        let scaler = Scaler::new(64.0);
        let (control, _) = scaler.advance((24.0f64 * 64.0).powi(2), RULE);
        assert!((control.norm - 24.0).abs() < 1e-5 && (control.factor - 0.5 / 64.0).abs() < 1e-8, "{control:?}");
        let (control, _) = scaler.advance(64.0f64.powi(2), RULE);
        assert_eq!(control.factor, 1.0 / 64.0);
    }

    #[test]
    fn the_rectification_is_that_of_the_paper() {
        let mut scaler = Scaler::new(1.0);
        let longest = 2.0 / (1.0 - 0.999) - 1.0;
        for update in 1..=3000 {
            let (control, after) = scaler.advance(1.0, RULE);
            scaler = after;
            let power = 0.999f64.powi(update);
            let length = longest - 2.0 * f64::from(update) * power / (1.0 - power);
            let factor = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length);
            let expected = if length > 5.0 { factor.sqrt() } else { 0.0 };
            let difference = (f64::from(control.rectification) - expected).abs();
            assert!(difference <= 1e-4 * expected, "{} and {expected} in update {update}", control.rectification);
        }
    }

    #[test]
    fn corrections_are_those_of_adam() {
        let mut scaler = Scaler::new(1.0);
        for update in 1..=50 {
            scaler = scaler.advance(1.0, RULE).1;
            for (ours, beta) in scaler.corrections.into_iter().zip([0.9f32, 0.999]) {
                let expected = 1.0 - f64::from(beta).powi(update);
                assert!((f64::from(ours) / expected - 1.0).abs() < 1e-6, "{ours} and {expected}");
            }
        }
    }
}
