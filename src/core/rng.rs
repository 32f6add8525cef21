//! Counter-based random streams.
//!
//! Every random value of a run comes from a stream keyed by `(seed, purpose, epoch, index)`, never from a thread-local
//! generator, so that one process, several processes and a resumed run draw the same values.

use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

/// The generator behind every stream.
pub type Stream = Xoshiro256PlusPlus;

/// Use of a stream. Streams for different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial network weights; index = parameter number.
    Weights = 1,
    /// Case and position of a training patch; index = global sample number of the epoch.
    TrainSample = 2,
    /// Augmentation of a training patch; index = global sample number of the epoch.
    Augment = 3,
    /// Like [`Purpose::TrainSample`], for the validation batches.
    ValSample = 4,
    /// Fingerprint intensities and class locations; index = case number.
    Dataset = 5,
    /// Generated phantom datasets; index = case number.
    Phantom = 6,
    /// Order of the cases in an epoch; index = position in the global batch and pass number over the cases.
    CaseOrder = 7,
    /// Resampled cases of confidence intervals; index = number of the resample.
    Bootstrap = 16,
}

/// Creates the stream of `(seed, purpose, epoch, index)`.
pub fn stream(seed: u64, purpose: Purpose, epoch: u64, index: u64) -> Stream {
    let mut key = mix(seed ^ 0x6e6e_554e_6574_0001);
    for part in [purpose as u64, epoch, index] {
        key = mix(key ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    Stream::seed_from_u64(key)
}

/// The SplitMix64 finalizer (Steele et al. 2014): a bijection that spreads every input bit over the output.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_are_reproducible_and_distinct() {
        let draw = |seed, purpose, epoch, index| stream(seed, purpose, epoch, index).random::<u64>();
        let base = draw(1, Purpose::Augment, 2, 3);
        assert_eq!(base, draw(1, Purpose::Augment, 2, 3));
        for other in [
            draw(2, Purpose::Augment, 2, 3),
            draw(1, Purpose::TrainSample, 2, 3),
            draw(1, Purpose::Augment, 3, 3),
            draw(1, Purpose::Augment, 2, 4),
            draw(1, Purpose::Augment, 3, 2),
        ] {
            assert_ne!(base, other);
        }
    }
}
