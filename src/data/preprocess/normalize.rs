//! Intensity normalization (nnU-Net v2, `default_normalization_schemes.py`).

use multiversion::multiversion;
use ndarray::{ArrayView3, ArrayViewMut3, Zip};

use crate::dataset::IntensityProperties;

/// Lower bound of standard deviations and ranges used as divisors.
const EPSILON: f32 = 1e-8;

/// Normalization scheme of the intensities of one channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Normalization {
    /// Clip to the 0.5 and 99.5 percentiles of the training set's foreground, subtract its mean and divide by its
    /// standard deviation; for quantitative images.
    Ct {
        /// The 0.5 percentile.
        lower: f32,
        /// The 99.5 percentile.
        upper: f32,
        /// Mean of the foreground.
        mean: f32,
        /// Standard deviation of the foreground.
        std: f32,
    },
    /// Subtract the mean of the image and divide by its standard deviation.
    ZScore {
        /// Compute both, and normalize, inside the nonzero mask only; voxels outside are unchanged.
        inside_mask: bool,
    },
    /// Leave the intensities unchanged.
    None,
    /// Map the range of the image to 0..1.
    RescaleTo01,
    /// Divide 8-bit intensities, 0..255, by 255.
    RgbTo01,
}

impl Normalization {
    /// Returns the scheme for a class name as used in plans files.
    ///
    /// `use_mask` affects the z-score only, `intensities` (of the channel, over the training set) CT only.
    ///
    /// # Errors
    /// Returns a description of the problem if the name is unknown, or CT has no intensities.
    pub(super) fn from_plans(
        name: &str,
        use_mask: bool,
        intensities: Option<&IntensityProperties>,
    ) -> Result<Self, String> {
        match name {
            "CTNormalization" => {
                let of = intensities.ok_or("CTNormalization needs foreground intensity properties of its channel")?;
                Ok(Self::Ct {
                    lower: of.percentile_00_5 as f32,
                    upper: of.percentile_99_5 as f32,
                    mean: of.mean as f32,
                    std: of.std as f32,
                })
            }
            "ZScoreNormalization" => Ok(Self::ZScore { inside_mask: use_mask }),
            "NoNormalization" => Ok(Self::None),
            "RescaleTo01Normalization" => Ok(Self::RescaleTo01),
            "RGBTo01Normalization" => Ok(Self::RgbTo01),
            unknown => Err(format!("unknown normalization scheme {unknown}")),
        }
    }

    /// Normalizes one channel in place. `inside` is true for voxels in the nonzero mask.
    ///
    /// # Errors
    /// Returns a description of the problem if the intensities contradict the scheme.
    pub(super) fn apply(&self, mut image: ArrayViewMut3<f32>, inside: ArrayView3<bool>) -> Result<(), String> {
        match *self {
            Self::Ct { lower, upper, mean, std } => {
                let divisor = std.max(EPSILON);
                image.mapv_inplace(|v| (v.max(lower).min(upper) - mean) / divisor);
            }
            Self::ZScore { inside_mask } => {
                let mask = inside_mask.then_some(inside);
                let (mean, divisor) = moments(image.view(), mask);
                match mask {
                    None => image.mapv_inplace(|v| (v - mean) / divisor),
                    Some(inside) => Zip::from(&mut image).and(inside).for_each(|v, &inside| {
                        *v = if inside { (*v - mean) / divisor } else { *v };
                    }),
                }
            }
            Self::None => {}
            Self::RescaleTo01 => {
                let (min, max) = range(&image);
                let divisor = (max - min).max(EPSILON);
                image.mapv_inplace(|v| (v - min) / divisor);
            }
            Self::RgbTo01 => {
                let (min, max) = range(&image);
                if min < 0.0 || max > 255.0 {
                    return Err(format!("intensities {min} .. {max} are outside the 8-bit range 0 .. 255"));
                }
                image.mapv_inplace(|v| v / 255.0);
            }
        }
        Ok(())
    }
}

/// Returns the mean and standard deviation (at least [`EPSILON`]) of the values inside the mask, or of all values
/// without a mask; uses two passes in double precision, as single precision loses digits on large images.
fn moments(image: ArrayView3<f32>, mask: Option<ArrayView3<bool>>) -> (f32, f32) {
    let sum_of = |centre: f64, moment: Moment| {
        let (image, mask) = (image.as_standard_layout(), mask.as_ref().map(|mask| mask.as_standard_layout()));
        let image = image.as_slice().expect("in C order");
        let mask = mask.as_ref().map(|mask| mask.as_slice().expect("in C order"));
        let deviations = Deviations { image, mask, centre };
        sum_of(&deviations, moment)
    };
    let count = mask.as_ref().map_or(image.len(), |mask| mask.iter().filter(|inside| **inside).count()).max(1) as f64;
    let mean = sum_of(0.0, Moment::First) / count;
    let squares = sum_of(mean, Moment::Second);
    (mean as f32, ((squares / count).sqrt() as f32).max(EPSILON))
}

#[derive(Clone, Copy, PartialEq)]
enum Moment {
    First,
    Second,
}

/// The arguments of a sum of deviations from a center, or of their squares, computed in independent lanes.
struct Deviations<'a> {
    image: &'a [f32],
    mask: Option<&'a [bool]>,
    centre: f64,
}

/// Number of parallel partial sums.
const LANES: usize = 32;

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn sum_of(deviations: &Deviations, moment: Moment) -> f64 {
    match (moment, deviations.mask) {
        (Moment::First, None) => deviations.sum(|deviation, _| deviation),
        (Moment::Second, None) => deviations.sum(|deviation, _| deviation * deviation),
        (Moment::First, Some(_)) => deviations.sum(|deviation, inside| if inside { deviation } else { 0.0 }),
        (Moment::Second, Some(_)) => {
            deviations.sum(|deviation, inside| if inside { deviation * deviation } else { 0.0 })
        }
    }
}

impl Deviations<'_> {
    #[inline(always)]
    fn sum(&self, term: impl Fn(f64, bool) -> f64) -> f64 {
        const EVERYWHERE: [bool; LANES] = [true; LANES];
        let mut sums = [0.0; LANES];
        for (block, values) in self.image.chunks(LANES).enumerate() {
            let inside = match self.mask {
                Some(mask) => &mask[block * LANES..][..values.len()],
                None => &EVERYWHERE[..values.len()],
            };
            for ((sum, value), inside) in sums.iter_mut().zip(values).zip(inside) {
                *sum += term(f64::from(*value) - self.centre, *inside);
            }
        }
        sums.iter().sum()
    }
}

fn range(image: &ArrayViewMut3<f32>) -> (f32, f32) {
    image.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &v| (min.min(v), max.max(v)))
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, array};

    use super::*;

    fn normalized(name: &str, use_mask: bool, values: &[f32]) -> Result<Vec<f32>, String> {
        let training = IntensityProperties {
            max: 100.0,
            mean: 5.0,
            median: 5.0,
            min: -100.0,
            percentile_00_5: -10.0,
            percentile_99_5: 20.0,
            std: 2.5,
        };
        let mut image = Array3::from_shape_vec((1, 1, values.len()), values.to_vec()).unwrap();
        let inside = image.mapv(|v| v != 0.0);
        Normalization::from_plans(name, use_mask, Some(&training))?.apply(image.view_mut(), inside.view())?;
        Ok(image.into_raw_vec_and_offset().0)
    }

    #[test]
    fn each_scheme_normalizes_as_documented() {
        let values = [0.0, 10.0, 30.0, 40.0];
        let std = 250f32.sqrt();
        let cases = [
            ("CTNormalization", vec![-2.0, 2.0, 6.0, 6.0]),
            ("ZScoreNormalization", values.map(|v| (v - 20.0) / std).to_vec()),
            ("NoNormalization", values.to_vec()),
            ("RescaleTo01Normalization", vec![0.0, 0.25, 0.75, 1.0]),
            ("RGBTo01Normalization", values.map(|v| v / 255.0).to_vec()),
        ];
        for (name, expected) in cases {
            for (got, want) in normalized(name, false, &values).unwrap().iter().zip(&expected) {
                assert!((got - want).abs() < 1e-6, "{name}: {got} instead of {want}");
            }
        }
        assert!(normalized("Normalization", false, &values).unwrap_err().contains("unknown normalization scheme"));
        assert!(Normalization::from_plans("CTNormalization", false, None).is_err());
    }

    #[test]
    fn a_masked_z_score_leaves_the_outside_unchanged() {
        let got = normalized("ZScoreNormalization", true, &[0.0, 1.0, 3.0, 0.0]).unwrap();
        assert_eq!(got, [0.0, -1.0, 1.0, 0.0]);
    }

    #[test]
    fn a_constant_image_stays_finite() {
        for name in ["ZScoreNormalization", "RescaleTo01Normalization"] {
            assert_eq!(normalized(name, false, &[7.0; 5]).unwrap(), [0.0; 5], "{name}");
        }
        assert_eq!(normalized("ZScoreNormalization", true, &[0.0; 3]).unwrap(), [0.0; 3]);
    }

    #[test]
    fn rejects_intensities_outside_8_bits() {
        let mut image = array![[[-1.0f32, 3.0]]];
        let defect = Normalization::RgbTo01.apply(image.view_mut(), array![[[true, true]]].view()).unwrap_err();
        assert!(defect.contains("-1 .. 3"), "{defect}");
    }
}
