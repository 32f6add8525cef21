//! Which metrics are computed beyond nnU-Net's own, and how they are kept.

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// A metric of a class in a case that nnU-Net's `summary.json` does not have.
///
/// Surface metrics are in mm and between the surfaces' voxels, see [`super::SurfaceDistances`]. Each is NaN where it is not
/// defined, and then left out of means, as nnU-Net does with Dice.
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
    /// Relative volume difference, `(predicted - true) / true`: above 0 too much was predicted.
    Rvd,
    /// Normalised surface Dice at a tolerance.
    Nsd,
    /// 95th percentile of the Hausdorff distance, mm.
    Hd95,
    /// Average symmetric surface distance, mm.
    Assd,
}

impl Measure {
    /// All of them, in the order of files and tables.
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

    /// Its name in files and tables.
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

    /// Whether distances between surfaces are needed for it, which take longer than counting voxels.
    pub fn is_of_surfaces(self) -> bool {
        matches!(self, Self::Nsd | Self::Hd95 | Self::Assd)
    }
}

/// What to compute of each class beyond nnU-Net's metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measures {
    /// Which.
    pub chosen: Vec<Measure>,
    /// Of [`Measure::Nsd`].
    pub tolerance: Tolerance,
}

impl Measures {
    /// Whether any of them needs surfaces.
    pub fn need_surfaces(&self) -> bool {
        self.chosen.iter().any(|measure| measure.is_of_surfaces())
    }
}

/// How far two surfaces may be from each other to count as the same, mm.
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    /// Of classes not named below.
    pub general: f64,
    /// By the class's or region's key in `summary.json`.
    pub of_class: Vec<(String, f64)>,
}

impl Default for Tolerance {
    /// 1 mm.
    fn default() -> Self {
        Self { general: 1.0, of_class: Vec::new() }
    }
}

impl Tolerance {
    /// That of a class; blanks in its key do not matter.
    pub fn of(&self, class: &str) -> f64 {
        let plain = |key: &str| key.split_whitespace().collect::<String>();
        let found = self.of_class.iter().rev().find(|(key, _)| plain(key) == plain(class));
        found.map_or(self.general, |(_, tolerance)| *tolerance)
    }
}

/// The values of those measures that were computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured([Option<f64>; Measure::ALL.len()]);

impl Measured {
    /// Computes each member that `others` have.
    pub(super) fn combine(others: &[Self], f: impl Fn(&dyn Fn(&Self) -> f64) -> f64) -> Self {
        let mut combined = Self::default();
        for measure in Measure::ALL {
            if others.iter().any(|other| other.get(measure).is_some()) {
                combined.set(measure, f(&|measured| measured.get(measure).unwrap_or(f64::NAN)));
            }
        }
        combined
    }

    /// The value, if it was computed; NaN where it is not defined.
    pub fn get(&self, measure: Measure) -> Option<f64> {
        self.0[measure as usize]
    }

    pub(super) fn set(&mut self, measure: Measure, value: f64) {
        self.0[measure as usize] = Some(value);
    }

    /// What was computed.
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
    /// Keys that are no measure's are passed over; null is NaN.
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
    fn a_class_has_its_own_tolerance_or_the_general_one() {
        let of_class = vec![("2".to_owned(), 0.5), ("(1,2)".to_owned(), 3.0)];
        let tolerance = Tolerance { general: 1.5, of_class };
        assert_eq!(["1", "2", "(1, 2)"].map(|class| tolerance.of(class)), [1.5, 0.5, 3.0]);
    }

    #[test]
    fn what_was_measured_reads_back_and_the_rest_stays_unset() {
        let mut measured = Measured::default();
        measured.set(Measure::Hd95, 2.5);
        let json = serde_json::to_string(&measured).unwrap();
        assert_eq!(json, r#"{"HD95":2.5}"#);
        assert_eq!(serde_json::from_str::<Measured>(&json).unwrap(), measured);
        let other: Measured = serde_json::from_str(r#"{"NSD": null, "unknown": "x"}"#).unwrap();
        assert!(other.get(Measure::Nsd).unwrap().is_nan() && other.get(Measure::Assd).is_none());
    }
}
