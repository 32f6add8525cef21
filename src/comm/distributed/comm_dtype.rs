//! Transfer format of values between ranks: unchanged, or rounded to 16 bits to halve the traffic.

#[cfg(any(feature = "mpi", test))]
use half::{bf16, f16, slice::HalfFloatSliceExt};
use serde::{Deserialize, Serialize};

/// Transfer format of gradients. Sums are computed in f32 in every format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum CommDtype {
    /// IEEE single precision: lossless.
    #[default]
    #[cfg_attr(feature = "clap", value(name = "none"))]
    #[serde(rename = "none")]
    F32,
    /// IEEE half precision: 11 bits of mantissa, values up to 65504; values below 6e-8 become zero.
    #[cfg_attr(feature = "clap", value(name = "fp16"))]
    #[serde(rename = "fp16")]
    F16,
    /// bfloat16: 8 bits of mantissa, the range of f32.
    Bf16,
}

impl CommDtype {
    /// Returns the bytes per transferred value.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Rounds `values` (to nearest, ties to even) into `bits`, which must have the same length.
    ///
    /// # Panics
    /// Panics for [`CommDtype::F32`], which needs no rounding.
    #[cfg(any(feature = "mpi", test))]
    pub(super) fn encode(self, values: &[f32], bits: &mut [u16]) {
        match self {
            Self::F32 => unreachable!("f32 values are sent without encoding"),
            Self::F16 => bytemuck::cast_slice_mut::<u16, f16>(bits).convert_from_f32_slice(values),
            Self::Bf16 => bytemuck::cast_slice_mut::<u16, bf16>(bits).convert_from_f32_slice(values),
        }
    }

    /// Inverse of [`CommDtype::encode`].
    ///
    /// # Panics
    /// Same as [`CommDtype::encode`].
    #[cfg(any(feature = "mpi", test))]
    pub(super) fn decode(self, bits: &[u16], values: &mut [f32]) {
        match self {
            Self::F32 => unreachable!("f32 values are received without decoding"),
            Self::F16 => bytemuck::cast_slice::<u16, f16>(bits).convert_to_f32_slice(values),
            Self::Bf16 => bytemuck::cast_slice::<u16, bf16>(bits).convert_to_f32_slice(values),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn travelled(comm_dtype: CommDtype, values: &[f32]) -> Vec<f32> {
        let mut bits = vec![0; values.len()];
        comm_dtype.encode(values, &mut bits);
        let mut arrived = vec![0.0; values.len()];
        comm_dtype.decode(&bits, &mut arrived);
        arrived
    }

    #[test]
    fn rounding_is_to_the_formats_nearest_value() {
        let values = [1.0, -0.1, 1e-3, 70000.0, 1e-9];
        assert_eq!(travelled(CommDtype::F16, &values), [1.0, -0.099975586, 0.0010004044, f32::INFINITY, 0.0]);
        assert_eq!(travelled(CommDtype::Bf16, &values), [1.0, -0.100097656, 0.0009994507, 70144.0, 9.968062e-10]);
    }

    #[test]
    fn what_has_travelled_once_travels_unchanged() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() / 7.0).collect();
        for comm_dtype in [CommDtype::F16, CommDtype::Bf16] {
            let once = travelled(comm_dtype, &values);
            assert_eq!(travelled(comm_dtype, &once), once);
        }
    }
}
