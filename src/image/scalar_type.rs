//! Scalar types of image files, and their conversion from and to bytes.

use std::io::{self, Write};

use ndarray::Array4;

use super::inexact::InexactValues;

/// Number of scalars converted at a time.
const BLOCK: usize = 1 << 16;

/// Scalar type of the voxels in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalarType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl ScalarType {
    /// Size of one scalar in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Name of the type in NumPy.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::U16 => "uint16",
            Self::I16 => "int16",
            Self::U32 => "uint32",
            Self::I32 => "int32",
            Self::U64 => "uint64",
            Self::I64 => "int64",
            Self::F32 => "float32",
            Self::F64 => "float64",
        }
    }

    /// The smallest of `uint8`, `int16`, `uint16` and `float32` that holds all values exactly.
    pub(super) fn smallest(values: &[f32]) -> Self {
        if values.iter().any(|value| value.fract() != 0.0) {
            return Self::F32;
        }
        let (low, high) = values.iter().fold((0f32, 0f32), |(low, high), value| (low.min(*value), high.max(*value)));
        let fits = |least: f32, most: f32| low >= least && high <= most;
        match () {
            () if fits(0.0, 255.0) => Self::U8,
            () if fits(f32::from(i16::MIN), f32::from(i16::MAX)) => Self::I16,
            () if fits(0.0, f32::from(u16::MAX)) => Self::U16,
            () => Self::F32,
        }
    }

    /// Whether `f32` holds all values of the type.
    fn is_exact_in_f32(self) -> bool {
        matches!(self, Self::U8 | Self::I8 | Self::U16 | Self::I16 | Self::F32)
    }

    /// Decodes `bytes` and appends the values, scaled by slope and intercept in double precision, as nibabel does.
    /// Stored values that do not fit are added to `inexact`.
    pub(super) fn decode(
        self,
        bytes: &[u8],
        big_endian: bool,
        scaling: Option<(f64, f64)>,
        numbers: &mut Vec<f32>,
        inexact: &mut InexactValues,
    ) {
        macro_rules! append {
            ($type:ty) => {{
                const SIZE: usize = size_of::<$type>();
                let read = |bytes: &[u8; SIZE]| match big_endian {
                    true => <$type>::from_be_bytes(*bytes),
                    false => <$type>::from_le_bytes(*bytes),
                };
                let stored = bytes.as_chunks::<SIZE>().0.iter().map(read);
                match scaling {
                    None if !self.is_exact_in_f32() => numbers.extend(stored.map(|number| {
                        inexact.look_at(number as f64);
                        number as f64 as f32
                    })),
                    None => numbers.extend(stored.map(|number| number as f64 as f32)),
                    Some((slope, intercept)) => numbers.extend(stored.map(|number| {
                        let value = number as f64 * slope + intercept;
                        inexact.look_at(value);
                        value as f32
                    })),
                }
            }};
        }
        match self {
            Self::U8 => append!(u8),
            Self::I8 => append!(i8),
            Self::U16 => append!(u16),
            Self::I16 => append!(i16),
            Self::U32 => append!(u32),
            Self::I32 => append!(i32),
            Self::U64 => append!(u64),
            Self::I64 => append!(i64),
            Self::F32 => append!(f32),
            Self::F64 => append!(f64),
        }
    }
}

/// Values to write, little-endian, in the smallest type that holds them.
pub(super) enum EncodedVoxels<'a> {
    Labels(&'a [i16]),
    Intensities(&'a [f32], ScalarType),
}

impl<'a> EncodedVoxels<'a> {
    pub fn from_labels(labels: &'a [i16]) -> Self {
        Self::Labels(labels)
    }

    pub fn from_intensities(values: &'a [f32]) -> Self {
        Self::Intensities(values, ScalarType::smallest(values))
    }

    /// Scalar type to write: one of `uint8`, `int16`, `uint16` and `float32`.
    pub fn scalar_type(&self) -> ScalarType {
        match self {
            Self::Labels(labels) if labels.iter().all(|label| u8::try_from(*label).is_ok()) => ScalarType::U8,
            Self::Labels(_) => ScalarType::I16,
            Self::Intensities(_, scalar_type) => *scalar_type,
        }
    }

    pub fn write(&self, file: &mut dyn Write) -> io::Result<()> {
        match (self, self.scalar_type()) {
            (Self::Labels(labels), ScalarType::U8) => write_numbers(file, labels, |label| [label as u8]),
            (Self::Labels(labels), _) => write_numbers(file, labels, i16::to_le_bytes),
            (Self::Intensities(values, _), ScalarType::U8) => write_numbers(file, values, |value| [value as u8]),
            (Self::Intensities(values, _), ScalarType::I16) => {
                write_numbers(file, values, |value| (value as i16).to_le_bytes())
            }
            (Self::Intensities(values, _), ScalarType::U16) => {
                write_numbers(file, values, |value| (value as u16).to_le_bytes())
            }
            (Self::Intensities(values, _), _) => write_numbers(file, values, f32::to_le_bytes),
        }
    }
}

fn write_numbers<T: Copy, const N: usize>(
    file: &mut dyn Write,
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BLOCK.min(values.len()) * N);
    for block in values.chunks(BLOCK) {
        buffer.clear();
        buffer.extend(block.iter().flat_map(|value| bytes(*value)));
        file.write_all(&buffer)?;
    }
    Ok(())
}

/// De-interleaves voxel components into channels. The result has a multiple of `components` channels if the file holds
/// several images, one after the other.
pub(super) fn components_first(numbers: Vec<f32>, components: usize, voxels: usize) -> Vec<f32> {
    if components == 1 {
        return numbers;
    }
    let images = numbers.chunks_exact(voxels * components);
    images.flat_map(|image| (0..components).flat_map(|c| image.iter().skip(c).step_by(components))).copied().collect()
}

/// The inverse of [`components_first`]: `(z, y, x, channel)`, C order.
pub(super) fn components_last(data: &Array4<f32>) -> Array4<f32> {
    data.view().permuted_axes([1, 2, 3, 0]).as_standard_layout().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_smallest_type_that_holds_all_values() {
        for (values, scalar_type) in [
            (vec![0.0, 255.0], ScalarType::U8),
            (vec![-1.0, 255.0], ScalarType::I16),
            (vec![0.0, 40000.0], ScalarType::U16),
            (vec![-1.0, 40000.0], ScalarType::F32),
            (vec![0.5], ScalarType::F32),
            (vec![f32::INFINITY], ScalarType::F32),
            (vec![], ScalarType::U8),
        ] {
            let numbers = EncodedVoxels::from_intensities(&values);
            assert_eq!(numbers.scalar_type(), scalar_type, "{values:?}");
            let (mut bytes, mut back) = (Vec::new(), Vec::new());
            numbers.write(&mut bytes).unwrap();
            scalar_type.decode(&bytes, false, None, &mut back, &mut InexactValues::default());
            assert_eq!(back, values);
        }
        assert_eq!(ScalarType::smallest(&[f32::NAN]), ScalarType::F32);
    }
}
