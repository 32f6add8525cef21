//! Which planes, rows and voxels of the network's grid a voxel of the raw grid is made of.

use nnunet_image::{linear, nearest, positions};

/// What one new sample along an axis is made of: the old sample `first` and, by `part`, the one after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tap {
    pub first: usize,
    /// `0.0..1.0`; with 0 there need not be a sample after `first`.
    pub part: f32,
}

impl Tap {
    /// For each of `to` samples that cover the length of `from` samples, as [`nnunet_image::resample_data`] makes them:
    /// the nearest (spline order 0) or the weighted mean of both neighbours (order 1).
    pub fn along_axis(order: usize, from: usize, to: usize) -> Vec<Self> {
        let taps = positions(from, to).map(|position| match order {
            0 => Self { first: nearest(position, from), part: 0.0 },
            _ => {
                let (first, part) = linear(position, from);
                // The last sample alone.
                if part == 1.0 { Self { first: first + 1, part: 0.0 } } else { Self { first, part: part as f32 } }
            }
        });
        taps.collect()
    }

    /// The last sample that is needed.
    pub fn last(self) -> usize {
        self.first + usize::from(self.part > 0.0)
    }

    /// Both samples' numbers and weights; two times the same where one is enough.
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
            let taps = Tap::along_axis(order, 5, 5);
            assert!(taps.iter().enumerate().all(|(index, tap)| *tap == Tap { first: index, part: 0.0 }), "{taps:?}");
        }
    }

    #[test]
    fn no_tap_reaches_beyond_the_end() {
        for (from, to) in [(1, 4), (2, 7), (9, 4), (16, 31)] {
            for order in [0, 1] {
                assert!(Tap::along_axis(order, from, to).iter().all(|tap| tap.last() < from), "{from} to {to}");
            }
        }
    }
}
