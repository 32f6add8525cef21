//! The part of numpy's legacy `RandomState` used by nnU-Net's splits and fingerprints.

use rand_mt::Mt;

/// `numpy.random.RandomState(seed)`: a Mersenne Twister with a frozen stream (NEP 19).
pub(super) struct RandomState(Mt);

impl RandomState {
    pub(super) fn new(seed: u32) -> Self {
        Self(Mt::new(seed))
    }

    /// Draws uniformly from `0..=max`: 32-bit words, masked to the bits of `max`, until one is at most `max`.
    pub(super) fn interval(&mut self, max: u32) -> u32 {
        // For a single possible value, numpy does not advance the stream.
        let Some(mask) = u32::MAX.checked_shr(max.leading_zeros()) else { return 0 };
        loop {
            let value = self.0.next_u32() & mask;
            if value <= max {
                return value;
            }
        }
    }

    /// Shuffles `values` with Fisher-Yates from the end, as `shuffle(values)`.
    pub(super) fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            let other = self.interval(u32::try_from(last).expect("a list of fewer than 2^32 values"));
            values.swap(last, other as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference from numpy 2.4: `RandomState(1234).choice(1000, 6)`, `RandomState(7).permutation(8)`, and `choice(1,
    /// 3)` before `choice(5, 3)` with one `RandomState(7)`.
    #[test]
    fn draws_match_numpy() {
        let mut random = RandomState::new(1234);
        assert_eq!([0; 6].map(|_| random.interval(999)), [815, 723, 294, 53, 204, 372]);
        let mut values: Vec<i32> = (0..8).collect();
        RandomState::new(7).shuffle(&mut values);
        assert_eq!(values, [2, 5, 0, 6, 3, 1, 4, 7]);
        let mut random = RandomState::new(7);
        assert_eq!([0; 3].map(|_| random.interval(0)), [0; 3]);
        assert_eq!([0; 3].map(|_| random.interval(4)), [4, 1, 3]);
    }
}
