//! ActivationElement types of activations.

use burn::tensor::{DType, bf16};

use super::onednn::DataType;

/// Floating-point type of activations. Arithmetic is in f32.
pub trait ActivationElement: burn::tensor::Element + bytemuck::Pod + Send + Sync {
    /// Type in Burn.
    const DTYPE: DType;
    /// Type in oneDNN.
    const ONEDNN: DataType;

    /// Converts to f32.
    fn widen(self) -> f32;

    /// Rounds to the nearest value, ties to even.
    fn narrow(value: f32) -> Self;
}

impl ActivationElement for f32 {
    const DTYPE: DType = DType::F32;
    const ONEDNN: DataType = DataType::F32;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl ActivationElement for bf16 {
    const DTYPE: DType = DType::BF16;
    const ONEDNN: DataType = DataType::Bf16;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Branch-free, so that loops over it vectorize.
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        const QUIET_NAN: u32 = 0x7fc0;
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        Self::from_bits(if value.is_nan() { QUIET_NAN } else { rounded } as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_rounds_to_the_nearest_even() {
        let mut bits = 1u32;
        for _ in 0..100_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(bits);
            let (ours, expected) = (<bf16 as ActivationElement>::narrow(value), bf16::from_f32(value));
            assert!(ours == expected || value.is_nan() && ours.is_nan(), "{value}: {ours} instead of {expected}");
            assert!(value.is_nan() || ActivationElement::widen(ours) == expected.to_f32());
        }
    }
}
