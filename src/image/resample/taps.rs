//! Input positions and weights of the new samples of a line.

/// For each new sample of a line, its first input sample and the weights from there on.
pub struct Taps {
    /// Number of weights used: 1, 2 or 4 for nearest, linear and cubic.
    pub support: usize,
    /// Samples by which the line is extended on either side, to cover the support of the spline beyond the border.
    /// Positions count from the first of these.
    pub margin: usize,
    /// Position of the first sample, and the weights.
    pub taps: Vec<(usize, [f32; 4])>,
}

impl Taps {
    /// Resamples `from` samples to `to` samples over the same length.
    ///
    /// # Panics
    /// Panics if `order` is not 0, 1 or 3; plans are validated when they are read.
    pub fn new(order: usize, from: usize, to: usize) -> Self {
        let positions = positions(from, to);
        match order {
            0 => Self { support: 1, margin: 0, taps: positions.map(|at| (nearest(at, from), [1.0; 4])).collect() },
            1 => {
                let tap = |position| {
                    let (first, part) = linear(position, from);
                    (first, [1.0 - part as f32, part as f32, 0.0, 0.0])
                };
                // The margin is needed for lines of one sample, which have no second one.
                Self { support: 2, margin: 1, taps: positions.map(tap).map(|(first, w)| (first + 1, w)).collect() }
            }
            3 => {
                let tap = |position: f64| {
                    let first = position.floor();
                    ((first + 1.0) as usize, cubic_weights(position - first))
                };
                Self { support: 4, margin: 2, taps: positions.map(tap).collect() }
            }
            _ => panic!("spline order {order} is not 0, 1 or 3"),
        }
    }

    /// Whether the weights apply to spline coefficients, which must be computed first.
    pub fn needs_coefficients(&self) -> bool {
        self.support == 4
    }
}

/// Centers of the new samples in units of the old samples.
pub fn positions(from: usize, to: usize) -> impl Iterator<Item = f64> {
    let scale = from as f64 / to as f64;
    (0..to).map(move |index| scale * (index as f64 + 0.5) - 0.5)
}

/// Index of the sample nearest to a position; halves round up.
pub fn nearest(position: f64, len: usize) -> usize {
    (position.clamp(0.0, (len - 1) as f64) + 0.5).floor() as usize
}

/// Index of the sample at or before a position, and the fraction of the way to the next, `0.0..1.0`.
pub fn linear(position: f64, len: usize) -> (usize, f64) {
    let position = position.clamp(0.0, (len - 1) as f64);
    let first = (position.floor() as usize).min(len.saturating_sub(2));
    (first, position - first as f64)
}

/// Cubic B-spline at distances `1 + t, t, 1 - t, 2 - t`.
fn cubic_weights(t: f64) -> [f32; 4] {
    let outer = |t: f64| t * t * t / 6.0;
    let inner = |t: f64| (4.0 - 6.0 * t * t + 3.0 * t * t * t) / 6.0;
    [outer(1.0 - t), inner(t), inner(1.0 - t), outer(t)].map(|weight| weight as f32)
}
