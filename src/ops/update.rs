//! What an update rule does to one parameter, for [`super::NnOps::sgd`] and [`super::NnOps::adam`].

/// A step of stochastic gradient descent with momentum, as `torch.optim.SGD` defines it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    pub learning_rate: f32,
    pub momentum: f32,
    pub nesterov: bool,
    /// Times the value, added to the gradient.
    pub weight_decay: f32,
    /// Times the gradient, before anything else: at most 1, by which its norm is clipped.
    pub gradient_scale: f32,
}

/// A step of Adam (Kingma & Ba 2015), as `torch.optim.Adam` defines it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    pub learning_rate: f32,
    /// Decay of the two moments.
    pub betas: [f32; 2],
    pub eps: f32,
    /// Times the value, added to the gradient.
    pub weight_decay: f32,
    /// Times the gradient, before anything else: at most 1, by which its norm is clipped.
    pub gradient_scale: f32,
    /// `1 - beta^updates`, of either moment.
    pub corrections: [f32; 2],
}

impl SgdStep {
    /// New value and velocity of one weight; without a velocity it begins as the gradient.
    #[inline(always)]
    pub(super) fn apply(self, value: f32, gradient: f32, velocity: Option<f32>) -> (f32, f32) {
        let gradient = gradient * self.gradient_scale + value * self.weight_decay;
        let velocity = velocity.map_or(gradient, |velocity| velocity * self.momentum + gradient);
        let direction = if self.nesterov { gradient + velocity * self.momentum } else { velocity };
        (value - direction * self.learning_rate, velocity)
    }
}

impl AdamStep {
    /// New value and moments of one weight; moments begin as 0.
    #[inline(always)]
    pub(super) fn apply(self, value: f32, gradient: f32, moments: [f32; 2]) -> (f32, [f32; 2]) {
        let gradient = gradient * self.gradient_scale + value * self.weight_decay;
        let first = moments[0] * self.betas[0] + gradient * (1.0 - self.betas[0]);
        let second = moments[1] * self.betas[1] + gradient * gradient * (1.0 - self.betas[1]);
        let denominator = (second / self.corrections[1]).sqrt() + self.eps;
        (value - first / denominator * (self.learning_rate / self.corrections[0]), [first, second])
    }
}
