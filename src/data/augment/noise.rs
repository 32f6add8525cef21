//! Additive Gaussian noise.

use std::f32::consts::LN_2;
use std::ops::Range;

use multiversion::multiversion;
use rand::Rng;

use super::distributions::uniform;
use super::voxels::data_mut;
use crate::store::Patch;
use nnunet_core::math::{log2, sin_cos};
use nnunet_core::rng::Stream;

/// Number of random generators run in parallel, matching the lanes of the widest SIMD vectors.
const LANES: usize = 16;

/// Adds independent Gaussian noise to every voxel, with one standard deviation for all channels.
///
/// nnU-Net v2: probability 0.1, standard deviation uniform in 0..0.1. The reference calls this parameter a variance but
/// uses it as the standard deviation (batchgeneratorsv2 `GaussianNoiseTransform`); this implementation does the same.
/// NVIDIA's nnU-Net: probability 0.15, standard deviation uniform in 0..0.3.
#[derive(Clone, Debug)]
pub struct GaussianNoise {
    /// Range of the standard deviation, in units of the normalized intensity.
    pub std: Range<f64>,
}

impl GaussianNoise {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let std = uniform(&self.std, rng) as f32;
        let generators = std::array::from_fn(|_| std::array::from_fn(|_| rng.random()));
        add_noise(data_mut(patch), std, generators);
    }
}

/// States of xoshiro128++ generators (Blackman and Vigna 2021), stored word by word with the generators interleaved.
type XoshiroLanes = [[u32; LANES]; 4];

/// Adds normal deviates of this standard deviation, each computed from two uniform deviates with the Box-Muller
/// transform. The values are bounded at 5.8 standard deviations; the exact tail beyond has a probability of 1e-8.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add_noise(values: &mut [f32], std: f32, generators: XoshiroLanes) {
    let mut generators = generators;
    for block in values.chunks_mut(2 * LANES) {
        let (radii, turns) = (next(&mut generators), next(&mut generators));
        let mut noise = [0.0; 2 * LANES];
        for lane in 0..LANES {
            // The radius is in 2^-24..=1, as the logarithm requires, and the angle in -0.5..0.5 turns.
            let uniform = ((radii[lane] >> 8) as i32 + 1) as f32 / (1 << 24) as f32;
            let turn = (turns[lane] >> 8) as i32 as f32 / (1 << 24) as f32 - 0.5;
            let radius = std * (-2.0 * LN_2 * log2(uniform)).max(0.0).sqrt();
            let (sin, cos) = sin_cos(turn);
            noise[lane] = radius * cos;
            noise[LANES + lane] = radius * sin;
        }
        block.iter_mut().zip(&noise).for_each(|(value, noise)| *value += noise);
    }
}

/// Returns the next number of each generator.
#[inline(always)]
fn next([a, b, c, d]: &mut XoshiroLanes) -> [u32; LANES] {
    let mut numbers = [0; LANES];
    for lane in 0..LANES {
        numbers[lane] = a[lane].wrapping_add(d[lane]).rotate_left(7).wrapping_add(a[lane]);
        let shifted = b[lane] << 9;
        c[lane] ^= a[lane];
        d[lane] ^= b[lane];
        b[lane] ^= c[lane];
        a[lane] ^= d[lane];
        c[lane] ^= shifted;
        d[lane] = d[lane].rotate_left(11);
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_core::rng::{Purpose, stream};

    fn noise(index: u64, count: usize) -> Vec<f32> {
        let mut rng = stream(5, Purpose::Augment, 0, index);
        let mut values = vec![0.0; count];
        add_noise(&mut values, 1.0, std::array::from_fn(|_| std::array::from_fn(|_| rng.random())));
        values
    }

    #[test]
    fn xoshiro_lanes_match_the_reference() {
        // xoshiro128++ seeded with 1, 2, 3, 4 (test vector of `rand_xoshiro`, from the authors' C code).
        let mut generators = [[1; LANES], [2; LANES], [3; LANES], [4; LANES]];
        let drawn: [u32; 4] = std::array::from_fn(|_| next(&mut generators)[7]);
        assert_eq!(drawn, [641, 1_573_767, 3_222_811_527, 3_517_856_514]);
    }

    #[test]
    fn noise_is_normal_and_uncorrelated_between_neighbors() {
        let values: Vec<f64> = noise(0, 400_001).into_iter().map(f64::from).collect();
        let average = |f: &dyn Fn(f64) -> f64| values.iter().map(|&value| f(value)).sum::<f64>() / values.len() as f64;
        // Moments 0, 1, 0 and 3, within about four standard errors.
        for (power, expected, tolerance) in [(1, 0.0, 0.007), (2, 1.0, 0.01), (3, 0.0, 0.025), (4, 3.0, 0.06)] {
            let moment = average(&|value| value.powi(power));
            assert!((moment - expected).abs() < tolerance, "moment {power} is {moment}");
        }
        for (limit, share) in [(1.0, 0.682_69), (2.0, 0.954_50), (3.0, 0.997_30)] {
            let within = average(&|value| f64::from(value.abs() < limit));
            assert!((within - share).abs() < 0.003, "{within} lie within {limit}");
        }
        for lag in [1, 2, LANES, 2 * LANES] {
            let pairs = values.iter().zip(&values[lag..]).map(|(a, b)| a * b).sum::<f64>() / values.len() as f64;
            assert!(pairs.abs() < 0.007, "correlation {pairs} at distance {lag}");
        }
    }

    #[test]
    fn noise_depends_on_the_stream_and_not_on_the_length() {
        assert_eq!(noise(3, 100), noise(3, 1000)[..100]);
        assert_ne!(noise(3, 100), noise(4, 100));
    }
}
