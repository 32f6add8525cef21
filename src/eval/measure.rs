//! Optional metrics in addition to nnU-Net's.

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// A metric per class and case that nnU-Net's `summary.json` does not have.
///
/// Surface metrics are in mm between the centers of surface voxels, see [`super::SurfaceDistances`]. A value is NaN if
/// undefined, and then excluded from means, as nnU-Net does for Dice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Measure {
    /// `TP / (TP + FN)`.
    Sensitivity,
    /// `TP / (TP + FP)`.
    Precision,
    /// `TN / (TN + FP)`.
    Specificity,
    /// Absolute volume difference, mm³.
    Avd,
    /// Relative volume difference, `(predicted - true) / true`; positive for over-segmentation.
    Rvd,
    /// Normalized surface Dice at a tolerance.
    Nsd,
    /// 95th percentile of the Hausdorff distance, mm.
    Hd95,
    /// Average symmetric surface distance, mm.
    Assd,
}

impl Measure {
    /// All measures, in the order used in files and tables.
    pub const ALL: [Self; 8] = [
        Self::Sensitivity,
        Self::Precision,
        Self::Specificity,
        Self::Avd,
        Self::Rvd,
        Self::Nsd,
        Self::Hd95,
        Self::Assd,
    ];

    /// Name in files and tables.
    pub fn key(self) -> &'static str {
        match self {
            Self::Sensitivity => "Sensitivity",
            Self::Precision => "Precision",
            Self::Specificity => "Specificity",
            Self::Avd => "AVD",
            Self::Rvd => "RVD",
            Self::Nsd => "NSD",
            Self::Hd95 => "HD95",
            Self::Assd => "ASSD",
        }
    }

    /// Whether it needs surface distances, which take longer than counting voxels.
    pub fn needs_surfaces(self) -> bool {
        matches!(self, Self::Nsd | Self::Hd95 | Self::Assd)
    }
}

/// Measures to compute per class in addition to nnU-Net's metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measures {
    /// Measures to compute.
    pub chosen: Vec<Measure>,
    /// Tolerance of [`Measure::Nsd`].
    pub tolerance: Tolerance,
}

impl Measures {
    /// Whether any measure needs surface distances.
    pub fn need_surfaces(&self) -> bool {
        self.chosen.iter().any(|measure| measure.needs_surfaces())
    }
}

/// Tolerance of the normalized surface Dice, in mm.
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    /// Tolerance of classes without an own entry.
    pub general: f64,
    /// Tolerances by the key of the class or region in `summary.json`.
    pub per_class: Vec<(String, f64)>,
}

impl Default for Tolerance {
    /// 1 mm.
    fn default() -> Self {
        Self { general: 1.0, per_class: Vec::new() }
    }
}

impl Tolerance {
    /// Tolerance of a class; white space in its key is ignored.
    pub fn for_class(&self, class: &str) -> f64 {
        let plain = |key: &str| key.split_whitespace().collect::<String>();
        let found = self.per_class.iter().rev().find(|(key, _)| plain(key) == plain(class));
        found.map_or(self.general, |(_, tolerance)| *tolerance)
    }
}

/// Values of the measures that were computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured([Option<f64>; Measure::ALL.len()]);

impl Measured {
    /// Computes each measure that any of `others` has.
    pub(super) fn combine(others: &[Self], f: impl Fn(&dyn Fn(&Self) -> f64) -> f64) -> Self {
        let mut combined = Self::default();
        for measure in Measure::ALL {
            if others.iter().any(|other| other.get(measure).is_some()) {
                combined.set(measure, f(&|measured| measured.get(measure).unwrap_or(f64::NAN)));
            }
        }
        combined
    }

    /// Value of a measure: `None` if not computed, NaN if undefined.
    pub fn get(&self, measure: Measure) -> Option<f64> {
        self.0[measure as usize]
    }

    pub(super) fn set(&mut self, measure: Measure, value: f64) {
        self.0[measure as usize] = Some(value);
    }

    /// The computed measures and their values.
    pub fn iter(&self) -> impl Iterator<Item = (Measure, f64)> + '_ {
        Measure::ALL.into_iter().filter_map(|measure| Some((measure, self.get(measure)?)))
    }
}

impl Serialize for Measured {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (measure, value) in self.iter() {
            map.serialize_entry(measure.key(), &value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Measured {
    /// Unknown keys are ignored; null is NaN.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = Map::<String, Value>::deserialize(deserializer)?;
        let mut measured = Self::default();
        for measure in Measure::ALL {
            if let Some(value) = map.get(measure.key()) {
                measured.set(measure, value.as_f64().unwrap_or(f64::NAN));
            }
        }
        Ok(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_has_its_own_tolerance_or_the_general_one() {
        let per_class = vec![("2".to_owned(), 0.5), ("(1,2)".to_owned(), 3.0)];
        let tolerance = Tolerance { general: 1.5, per_class };
        assert_eq!(["1", "2", "(1, 2)"].map(|class| tolerance.for_class(class)), [1.5, 0.5, 3.0]);
    }

    #[test]
    fn computed_measures_survive_a_round_trip_through_json() {
        let mut measured = Measured::default();
        measured.set(Measure::Hd95, 2.5);
        let json = serde_json::to_string(&measured).unwrap();
        assert_eq!(json, r#"{"HD95":2.5}"#);
        assert_eq!(serde_json::from_str::<Measured>(&json).unwrap(), measured);
        let other: Measured = serde_json::from_str(r#"{"NSD": null, "unknown": "x"}"#).unwrap();
        assert!(other.get(Measure::Nsd).unwrap().is_nan() && other.get(Measure::Assd).is_none());
    }
}
