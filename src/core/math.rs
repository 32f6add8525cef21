//! Elementary f32 functions without branches or tables, which the compiler can vectorize.
//!
//! Errors are a few units in the last place. The standard library is more accurate, but processes one value at a time.

use std::f32::consts::{LN_2, LOG2_E, PI};

/// Computes `x ^ exponent` for `x >= 0` and a positive exponent; 0 stays 0 and NaN stays NaN.
#[inline(always)]
pub fn power(x: f32, exponent: f32) -> f32 {
    let result = exp2(exponent * log2(x));
    if x > 0.0 { result } else { x }
}

/// Computes the base-2 logarithm of a positive normal number.
///
/// Splits `x` into `2^n * m` with `m` between √½ and √2, and computes `log2 m` from the series of `2 atanh((m - 1) / (m
/// + 1)) / ln 2`.
#[inline(always)]
pub fn log2(x: f32) -> f32 {
    /// √½.
    const LEAST_MANTISSA: i32 = 0x3f35_04f3;
    let bits = x.to_bits() as i32;
    let exponent = bits.wrapping_sub(LEAST_MANTISSA) >> 23;
    let mantissa = f32::from_bits(bits.wrapping_sub(exponent << 23) as u32);
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let series = 1.0 + square * (1.0 / 3.0 + square * (1.0 / 5.0 + square * (1.0 / 7.0 + square * (1.0 / 9.0))));
    exponent as f32 + 2.0 * LOG2_E * s * series
}

/// Computes `2^y`; `y` is clamped to -126 to 127.
///
/// Splits `y` into an integer, which is stored in the exponent bits, and a remainder of at most ½, for which the Taylor
/// series is evaluated.
#[inline(always)]
pub fn exp2(y: f32) -> f32 {
    /// Adding this to a small number leaves the nearest integer in the lowest bits.
    const ROUNDER: f32 = 12_582_912.0;
    let y = y.clamp(-126.0, 127.0);
    let rounded = y + ROUNDER;
    let rest = (y - (rounded - ROUNDER)) * LN_2;
    let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let fifth = 1.0 / 120.0 + rest * (1.0 / 720.0 + rest * (1.0 / 5040.0));
    let second = 1.0 / 2.0 + rest * (1.0 / 6.0 + rest * (1.0 / 24.0 + rest * fifth));
    scale * (1.0 + rest * (1.0 + rest * second))
}

/// Computes sine and cosine of `2π * turn`, for `turn` between -½ and ½.
///
/// Uses the Taylor series of half the angle and the double-angle formulas.
#[inline(always)]
pub fn sin_cos(turn: f32) -> (f32, f32) {
    let half = PI * turn;
    let square = half * half;
    let tail = 1.0 / 362_880.0 + square * (-1.0 / 39_916_800.0 + square * (1.0 / 6_227_020_800.0));
    let sin = half * (1.0 + square * (-1.0 / 6.0 + square * (1.0 / 120.0 + square * (-1.0 / 5040.0 + square * tail))));
    let tail = 1.0 / 40_320.0 + square * (-1.0 / 3_628_800.0 + square * (1.0 / 479_001_600.0));
    let cos = 1.0 + square * (-1.0 / 2.0 + square * (1.0 / 24.0 + square * (-1.0 / 720.0 + square * tail)));
    (2.0 * sin * cos, 1.0 - 2.0 * sin * sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_match_the_standard_library() {
        for exponent in [0.7, 0.93, 1.0, 1.21, 1.5] {
            for step in 0..=20_000 {
                let x = step as f32 / 20_000.0;
                let (value, expected) = (power(x, exponent), f64::from(x).powf(f64::from(exponent)));
                let error = (f64::from(value) - expected).abs();
                assert!(error <= 1e-6 * expected.max(1e-3), "{x}^{exponent} is {expected}, not {value}");
            }
        }
        assert_eq!(power(0.0, 0.7), 0.0);
        assert_eq!(power(1.0, 1.3), 1.0);
        assert!(power(1e-7, 1.5) < 1e-10 && power(f32::NAN, 1.5).is_nan());
    }

    #[test]
    fn logarithms_and_exponentials_match_the_standard_library() {
        for step in 1..=20_000 {
            let x = step as f32 / 1000.0;
            let expected = f64::from(x).log2();
            let error = (f64::from(log2(x)) - expected).abs();
            assert!(error < 3e-7 * expected.abs().max(1.0), "log2 {x} = {}", log2(x));
            let y = x - 10.0;
            assert!((f64::from(exp2(y)) / f64::from(y).exp2() - 1.0).abs() < 3e-7, "exp2 {y} = {}", exp2(y));
        }
    }

    #[test]
    fn sines_and_cosines_match_the_standard_library() {
        for step in -10_000..=10_000 {
            let turn = step as f32 / 20_000.0;
            let ((sin, cos), angle) = (sin_cos(turn), f64::from(turn) * std::f64::consts::TAU);
            assert!(
                (f64::from(sin) - angle.sin()).abs() < 1e-6 && (f64::from(cos) - angle.cos()).abs() < 1e-6,
                "{turn}"
            );
        }
    }
}
