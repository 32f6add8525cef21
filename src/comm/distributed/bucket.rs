//! Buckets of gradients: their layout, and their transfer format between ranks.

use std::fmt::Write;
use std::ops::Range;

use serde::{Deserialize, Serialize};

#[cfg(any(feature = "mpi", test))]
use half::{bf16, f16, slice::HalfFloatSliceExt};

/// Layout of all parameters in flat, contiguous buckets.
///
/// Parameters are stored in reverse order of use. The backward pass finishes their gradients in the same order, so a
/// bucket fills from start to end and the first bucket is full early in the pass (Li et al. 2020, "PyTorch
/// Distributed", section 3.2.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketLayout {
    buckets: Vec<Bucket>,
    /// Position of each parameter; indexed by parameter number.
    positions: Vec<Option<BucketPosition>>,
}

/// Parameters that are reduced together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Parameter numbers, in storage order.
    pub parameters: Vec<usize>,
    /// Number of values in the bucket.
    pub len: usize,
}

/// Position of a parameter in the buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketPosition {
    /// Bucket number.
    pub bucket: usize,
    /// Range of the parameter's values in the bucket.
    pub range: Range<usize>,
}

impl BucketLayout {
    /// Packs the parameters `used`, given in order of use, into buckets of at most `capacity` values. A larger
    /// parameter gets a bucket of its own. `lengths` holds the number of values of every parameter.
    pub fn new(lengths: &[usize], used: &[usize], capacity: usize) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut positions = vec![None; lengths.len()];
        for &parameter in used.iter().rev() {
            let length = lengths[parameter];
            if buckets.last().is_none_or(|bucket| bucket.len + length > capacity) {
                buckets.push(Bucket { parameters: Vec::new(), len: 0 });
            }
            let number = buckets.len() - 1;
            let bucket = &mut buckets[number];
            positions[parameter] = Some(BucketPosition { bucket: number, range: bucket.len..bucket.len + length });
            bucket.parameters.push(parameter);
            bucket.len += length;
        }
        Self { buckets, positions }
    }

    /// Returns the buckets, in the order in which they fill up.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Returns the position of a parameter, or `None` if it is not used.
    pub fn position(&self, parameter: usize) -> Option<&BucketPosition> {
        self.positions.get(parameter)?.as_ref()
    }

    /// Describes the layout as text for the comparison between ranks: everything that determines the order of values.
    pub fn fingerprint(&self) -> String {
        let mut text = String::new();
        for bucket in &self.buckets {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} {:?}", bucket.len, bucket.parameters);
        }
        text
    }
}

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

    #[test]
    fn stores_parameters_in_reverse_order_of_use() {
        let layout = BucketLayout::new(&[10, 20, 30], &[0, 2, 1], 1000);
        assert_eq!(layout.buckets(), [Bucket { parameters: vec![1, 2, 0], len: 60 }]);
        assert_eq!(layout.position(2), Some(&BucketPosition { bucket: 0, range: 20..50 }));
    }

    #[test]
    fn limits_the_bucket_size_except_for_large_parameters() {
        let layout = BucketLayout::new(&[4, 4, 4, 100, 4], &[0, 1, 2, 3, 4], 10);
        let contents: Vec<_> = layout.buckets().iter().map(|bucket| bucket.parameters.clone()).collect();
        assert_eq!(contents, [vec![4], vec![3], vec![2, 1], vec![0]]);
    }

    #[test]
    fn unused_parameters_have_no_position() {
        let layout = BucketLayout::new(&[4, 4], &[1], 10);
        assert_eq!(layout.position(0), None);
        assert_eq!(layout.buckets().len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn every_value_has_exactly_one_position(
            lengths in proptest::collection::vec(0usize..50, 0..40),
            capacity in 1usize..200,
        ) {
            let used: Vec<_> = (0..lengths.len()).collect();
            let layout = BucketLayout::new(&lengths, &used, capacity);
            let mut taken: Vec<Vec<bool>> = layout.buckets().iter().map(|bucket| vec![false; bucket.len]).collect();
            for (parameter, &length) in lengths.iter().enumerate() {
                let position = layout.position(parameter).unwrap();
                assert_eq!(position.range.len(), length);
                for taken in &mut taken[position.bucket][position.range.clone()] {
                    assert!(!std::mem::replace(taken, true));
                }
            }
            assert!(taken.into_iter().flatten().all(|taken| taken));
        }
    }

    fn travelled(comm_dtype: CommDtype, values: &[f32]) -> Vec<f32> {
        let mut bits = vec![0; values.len()];
        comm_dtype.encode(values, &mut bits);
        let mut arrived = vec![0.0; values.len()];
        comm_dtype.decode(&bits, &mut arrived);
        arrived
    }

    #[test]
    fn rounds_to_nearest() {
        let values = [1.0, -0.1, 1e-3, 70000.0, 1e-9];
        assert_eq!(travelled(CommDtype::F16, &values), [1.0, -0.099975586, 0.0010004044, f32::INFINITY, 0.0]);
        assert_eq!(travelled(CommDtype::Bf16, &values), [1.0, -0.100097656, 0.0009994507, 70144.0, 9.968062e-10]);
    }

    #[test]
    fn encoding_a_decoded_value_is_lossless() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() / 7.0).collect();
        for comm_dtype in [CommDtype::F16, CommDtype::Bf16] {
            let once = travelled(comm_dtype, &values);
            assert_eq!(travelled(comm_dtype, &once), once);
        }
    }
}
