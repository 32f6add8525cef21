//! Random distributions of transform strengths.

use std::ops::Range;

use rand::Rng;

use nnunet_core::rng::Stream;

/// Draws uniformly from `range`; returns its start if the range is empty.
pub(super) fn uniform(range: &Range<f64>, rng: &mut Stream) -> f64 {
    range.start + (range.end - range.start) * rng.random::<f64>()
}

/// Draws a factor that is below 1 with probability 0.5 and above 1 otherwise, uniform on either side (batchgeneratorsv2
/// `BGContrast`).
///
/// Unlike [`uniform`], an asymmetric range such as `0.7..1.5` weakens as often as it strengthens.
pub(super) fn balanced_factor(range: &Range<f64>, rng: &mut Stream) -> f64 {
    if chance(0.5, rng) && range.start < 1.0 {
        uniform(&(range.start..1.0), rng)
    } else {
        uniform(&(range.start.max(1.0)..range.end), rng)
    }
}

/// Returns true with this probability. Always consumes one draw, so that streams stay aligned when a probability
/// changes.
pub(super) fn chance(probability: f64, rng: &mut Stream) -> bool {
    rng.random::<f64>() < probability
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_core::rng::{Purpose, stream};

    #[test]
    fn balanced_factor_is_balanced_and_stays_in_range() {
        let mut rng = stream(1, Purpose::Augment, 0, 0);
        let draws: Vec<f64> = (0..4000).map(|_| balanced_factor(&(0.7..1.5), &mut rng)).collect();
        assert!(draws.iter().all(|draw| (0.7..1.5).contains(draw)));
        let below = draws.iter().filter(|&&draw| draw < 1.0).count() as f64 / draws.len() as f64;
        assert!((below - 0.5).abs() < 0.03, "{below}");
        assert!(draws.iter().any(|&draw| draw < 0.71) && draws.iter().any(|&draw| draw > 1.49));
    }

    #[test]
    fn chance_of_0_is_never_true_and_chance_of_1_always() {
        let mut rng = stream(2, Purpose::Augment, 0, 0);
        assert!((0..1000).all(|_| !chance(0.0, &mut rng) && chance(1.0, &mut rng)));
    }
}
