//! Interpolation from the network's grid to the raw grid along each axis.

use nnunet_image::{linear, nearest, positions};

/// Interpolation of one new sample along an axis: the old sample `first` and, with weight `part`, the one after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearSample {
    pub first: usize,
    /// Weight of the second sample, `0.0..1.0`; if it is 0, there may be no sample after `first`.
    pub part: f32,
}

impl LinearSample {
    /// Returns the interpolation of `to` samples that cover the length of `from` samples, as in
    /// [`nnunet_image::resample_data`]: the nearest sample (spline order 0) or the weighted mean of both neighbors
    /// (order 1).
    pub fn along_axis(order: usize, from: usize, to: usize) -> Vec<Self> {
        let samples = positions(from, to).map(|position| match order {
            0 => Self { first: nearest(position, from), part: 0.0 },
            _ => {
                let (first, part) = linear(position, from);
                // Only the last sample contributes.
                if part == 1.0 { Self { first: first + 1, part: 0.0 } } else { Self { first, part: part as f32 } }
            }
        });
        samples.collect()
    }

    /// Returns the index of the last sample used.
    pub fn last(self) -> usize {
        self.first + usize::from(self.part > 0.0)
    }

    /// Returns indices and weights of both samples; the same index twice if one is enough.
    pub fn pair(self) -> [(usize, f32); 2] {
        [(self.first, 1.0 - self.part), (self.last(), self.part)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_extents_take_every_sample_as_it_is() {
        for order in [0, 1] {
            let samples = LinearSample::along_axis(order, 5, 5);
            assert!(
                samples.iter().enumerate().all(|(index, sample)| *sample == LinearSample { first: index, part: 0.0 }),
                "{samples:?}"
            );
        }
    }

    #[test]
    fn no_tap_reaches_beyond_the_end() {
        for (from, to) in [(1, 4), (2, 7), (9, 4), (16, 31)] {
            for order in [0, 1] {
                assert!(
                    LinearSample::along_axis(order, from, to).iter().all(|sample| sample.last() < from),
                    "{from} to {to}"
                );
            }
        }
    }
}
