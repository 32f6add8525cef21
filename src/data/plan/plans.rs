//! `nnUNetPlans.json` in nnU-Net v2's schema.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::Value;

use super::{Configuration, PlanError, old_format};
use crate::dataset::IntensityProperties;
use nnunet_core::fsio;

/// The plans file. Keys this crate does not know are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plans {
    pub dataset_name: String,
    pub plans_name: String,
    /// Median spacing in mm after [`Plans::transpose_forward`], `(z, y, x)`.
    pub original_median_spacing_after_transp: Vec<f64>,
    /// Median shape in voxels after [`Plans::transpose_forward`], `(z, y, x)`.
    pub original_median_shape_after_transp: Vec<usize>,
    /// Class of nnU-Net that reads and writes the images.
    pub image_reader_writer: String,
    /// Axis permutation applied to a raw array before anything else; puts the coarsest axis first.
    pub transpose_forward: Vec<usize>,
    /// The inverse of [`Plans::transpose_forward`].
    pub transpose_backward: Vec<usize>,
    /// By name: `2d`, `3d_lowres`, `3d_fullres`, `3d_cascade_fullres`.
    pub configurations: IndexMap<String, ConfigurationEntry>,
    pub experiment_planner_used: String,
    pub label_manager: String,
    pub foreground_intensity_properties_per_channel: IndexMap<String, IntensityProperties>,
    #[serde(flatten)]
    pub other: IndexMap<String, Value>,
    #[serde(skip)]
    pub(super) origin: Origin,
}

/// The file that plans were read from, if any, which errors name; plans from another file are not other plans.
#[derive(Clone, Default)]
pub(super) struct Origin(Option<PathBuf>);

/// One entry of `configurations`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ConfigurationEntry {
    /// A configuration that stands by itself.
    Full(Box<Configuration>),
    /// A configuration that takes what it does not state from another.
    Inherited(InheritedConfiguration),
}

/// A configuration that takes what it does not state from another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InheritedConfiguration {
    pub inherits_from: String,
    #[serde(flatten)]
    pub overrides: IndexMap<String, Value>,
}

impl Plans {
    /// Reads a plans file.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let text = std::fs::read(path).map_err(|source| PlanError::File { path: path.to_owned(), source })?;
        let plans = serde_json::from_slice(&text);
        let plans: Self = plans.map_err(|source| PlanError::Malformed { path: path.to_owned(), source })?;
        Ok(Self { origin: Origin(Some(path.to_owned())), ..plans })
    }

    /// Writes the plans file as nnU-Net lays it out (indented by four).
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), PlanError> {
        fsio::write_atomically(path, |file| self.write(file))
            .map_err(|source| PlanError::File { path: path.to_owned(), source })
    }

    fn write(&self, file: impl Write) -> io::Result<()> {
        let layout = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        Ok(self.serialize(&mut serde_json::Serializer::with_formatter(file, layout))?)
    }

    /// A configuration with everything it inherits, checked: its parts fit together, and its network can be built.
    ///
    /// # Errors
    /// An unknown name lists the known ones; a circle of inheritance, a missing key, a contradiction or a network that is
    /// not known is named.
    pub fn configuration(&self, name: &str) -> Result<Configuration, PlanError> {
        let configuration = self.resolve(name)?;
        if let Some(reason) = configuration.contradiction() {
            return Err(self.invalid(name, reason));
        }
        configuration.network_shape().map_err(|error| self.invalid(name, error.to_string()))?;
        Ok(configuration)
    }

    /// A configuration of these plans that cannot be followed.
    pub(crate) fn invalid(&self, name: &str, reason: String) -> PlanError {
        PlanError::Invalid { plans: self.place(), name: name.to_owned(), reason }
    }

    /// What errors call these plans.
    fn place(&self) -> String {
        match &self.origin {
            Origin(Some(path)) => path.display().to_string(),
            Origin(None) => format!("{} of {}", self.plans_name, self.dataset_name),
        }
    }

    fn resolve(&self, name: &str) -> Result<Configuration, PlanError> {
        let invalid = |reason: String| self.invalid(name, reason);
        let mut overrides = Vec::new();
        let mut ancestor = name;
        let base = loop {
            match self.entry(ancestor)? {
                ConfigurationEntry::Full(base) => break base,
                // A chain longer than there are configurations visits one of them twice.
                ConfigurationEntry::Inherited(_) if overrides.len() == self.configurations.len() => {
                    return Err(invalid("inherits from itself".to_owned()));
                }
                ConfigurationEntry::Inherited(entry) => {
                    overrides.push(&entry.overrides);
                    ancestor = &entry.inherits_from;
                }
            }
        };
        if overrides.is_empty() {
            return Ok((**base).clone());
        }
        let mut merged = serde_json::to_value(base).map_err(|error| invalid(error.to_string()))?;
        for (key, value) in overrides.into_iter().rev().flatten() {
            merged[key] = value.clone();
        }
        serde_json::from_value(merged).map_err(|error| invalid(error.to_string()))
    }

    fn entry(&self, name: &str) -> Result<&ConfigurationEntry, PlanError> {
        self.configurations.get(name).ok_or_else(|| PlanError::UnknownConfiguration {
            name: name.to_owned(),
            plans: self.place(),
            available: self.configurations.keys().cloned().collect(),
        })
    }
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("_")
    }
}

/// By hand, because an untagged enum cannot say which key is missing.
impl<'de> Deserialize<'de> for ConfigurationEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        old_format::modernize(&mut value);
        let of = value.get("data_identifier").and_then(Value::as_str).unwrap_or("a configuration").to_owned();
        let entry = if value.get("inherits_from").is_some() {
            serde_json::from_value(value).map(Self::Inherited)
        } else {
            serde_json::from_value(value).map(Self::Full)
        };
        entry.map_err(|error| D::Error::custom(format_args!("{of}: {error}")))
    }
}
