//! `nnUNetPlans.json` in nnU-Net v2's schema, including the old format without `architecture`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use indexmap::IndexMap;
use nnunet_core::fsio;
use nnunet_core::fsio::check_name_part;
use nnunet_core::user_file::{self, UserFileError};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::{Configuration, PlanError};
use crate::dataset::IntensityProperties;

/// Contents of a plans file. Unknown keys are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plans {
    pub dataset_name: String,
    pub plans_name: String,
    /// Median spacing in mm after [`Plans::transpose_forward`], `(z, y, x)`.
    pub original_median_spacing_after_transp: Vec<f64>,
    /// Median shape in voxels after [`Plans::transpose_forward`], `(z, y, x)`.
    pub original_median_shape_after_transp: Vec<usize>,
    /// nnU-Net class that reads and writes the images.
    pub image_reader_writer: String,
    /// Axis permutation applied first to a raw array; moves the coarsest axis to the front.
    pub transpose_forward: Vec<usize>,
    /// The inverse of [`Plans::transpose_forward`].
    pub transpose_backward: Vec<usize>,
    /// Configurations by name: `2d`, `3d_lowres`, `3d_fullres`, `3d_cascade_fullres`.
    pub configurations: IndexMap<String, ConfigurationEntry>,
    pub experiment_planner_used: String,
    pub label_manager: String,
    pub foreground_intensity_properties_per_channel: IndexMap<String, IntensityProperties>,
    #[serde(flatten)]
    pub other: IndexMap<String, Value>,
    #[serde(skip)]
    pub(super) origin: PlansSource,
}

/// Path of the plans file, if any, for error messages; ignored when plans are compared.
#[derive(Clone, Default)]
pub(super) struct PlansSource(Option<PathBuf>);

/// One entry of `configurations`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ConfigurationEntry {
    /// A self-contained configuration.
    Full(Box<Configuration>),
    /// A configuration that inherits missing keys from another.
    Inherited(InheritedConfiguration),
}

/// A configuration that inherits missing keys from another.
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
    /// Returns an error that names the file if it cannot be read or is invalid.
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let plans: Self = user_file::read_json(path).map_err(|error| match error {
            UserFileError::Io(source) => PlanError::File { path: path.to_owned(), source },
            UserFileError::Invalid(defect) => PlanError::Malformed { path: path.to_owned(), defect },
        })?;
        Ok(Self { origin: PlansSource(Some(path.to_owned())), ..plans })
    }

    /// Writes a plans file in nnU-Net's formatting (indented by four spaces).
    ///
    /// # Errors
    /// Returns an error that names the file if it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), PlanError> {
        fsio::write_atomically(path, |file| self.write(file))
            .map_err(|source| PlanError::File { path: path.to_owned(), source })
    }

    fn write(&self, file: impl Write) -> io::Result<()> {
        let layout = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        Ok(self.serialize(&mut serde_json::Serializer::with_formatter(file, layout))?)
    }

    /// Returns a configuration with all inherited keys, validated: it is consistent and its network is supported.
    ///
    /// # Errors
    /// Returns an error for an unknown name (listing the known ones), circular inheritance, a missing key, an
    /// inconsistency or an unsupported network.
    pub fn configuration(&self, name: &str) -> Result<Configuration, PlanError> {
        let configuration = self.resolve(name)?;
        let mut names = configuration.next_stage_names();
        names.push(name);
        names.into_iter().try_for_each(check_name_part).map_err(|defect| self.invalid(name, defect))?;
        if let Some(reason) = configuration.inconsistency() {
            return Err(self.invalid(name, reason));
        }
        configuration.network_shape().map_err(|error| self.invalid(name, error.to_string()))?;
        Ok(configuration)
    }

    /// Creates the error of an invalid configuration of these plans.
    pub(crate) fn invalid(&self, name: &str, reason: String) -> PlanError {
        PlanError::Invalid { plans: self.source_name(), name: name.to_owned(), reason }
    }

    /// Returns a description of these plans for error messages.
    fn source_name(&self) -> String {
        match &self.origin {
            PlansSource(Some(path)) => path.display().to_string(),
            PlansSource(None) => format!("{} of {}", self.plans_name, self.dataset_name),
        }
    }

    fn resolve(&self, name: &str) -> Result<Configuration, PlanError> {
        let invalid = |reason: String| self.invalid(name, reason);
        let mut overrides = Vec::new();
        let mut ancestor = name;
        let base = loop {
            match self.entry(ancestor)? {
                ConfigurationEntry::Full(base) => break base,
                // A chain longer than the number of configurations visits one of them twice.
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
            plans: self.source_name(),
            available: self.configurations.keys().cloned().collect(),
        })
    }
}

impl PartialEq for PlansSource {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for PlansSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("_")
    }
}

/// Implemented by hand, because derived untagged enums do not report missing keys.
impl<'de> Deserialize<'de> for ConfigurationEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        upgrade_old_format(&mut value);
        let of = value.get("data_identifier").and_then(Value::as_str).unwrap_or("a configuration").to_owned();
        let entry = if value.get("inherits_from").is_some() {
            serde_json::from_value(value).map(Self::Inherited)
        } else {
            serde_json::from_value(value).map(Self::Full)
        };
        entry.map_err(|error| D::Error::custom(format_args!("{of}: {error}")))
    }
}

/// Adds the `architecture` to a configuration in the old format, as nnU-Net does (`plans_handler.py`). All other
/// configurations are unchanged, including invalid ones, which then lack the key.
fn upgrade_old_format(configuration: &mut Value) {
    if configuration.get("architecture").is_none()
        && let Some(architecture) = architecture(configuration)
    {
        configuration["architecture"] = architecture;
    }
}

fn architecture(configuration: &Value) -> Option<Value> {
    let (class, convolutions) = match configuration.get("UNet_class_name")?.as_str()? {
        "PlainConvUNet" => ("unet.PlainConvUNet", "n_conv_per_stage"),
        "ResidualEncoderUNet" => ("residual_unet.ResidualEncoderUNet", "n_blocks_per_stage"),
        _ => return None,
    };
    let number = |key: &str| configuration.get(key)?.as_u64();
    let (base, max) = (number("UNet_base_num_features")?, number("unet_max_num_features")?);
    let encoder = configuration.get("n_conv_per_stage_encoder")?.as_array()?;
    let features: Vec<u64> =
        (0..encoder.len() as u32).map(|stage| base.saturating_mul(2u64.saturating_pow(stage)).min(max)).collect();
    let axes = configuration.get("patch_size")?.as_array()?.len();
    Some(json!({
        "network_class_name": format!("dynamic_network_architectures.architectures.{class}"),
        "arch_kwargs": {
            "n_stages": encoder.len(),
            "features_per_stage": features,
            "conv_op": format!("torch.nn.modules.conv.Conv{axes}d"),
            "kernel_sizes": configuration.get("conv_kernel_sizes")?,
            "strides": configuration.get("pool_op_kernel_sizes")?,
            convolutions: encoder,
            "n_conv_per_stage_decoder": configuration.get("n_conv_per_stage_decoder")?,
            "conv_bias": true,
            "norm_op": format!("torch.nn.modules.instancenorm.InstanceNorm{axes}d"),
            "norm_op_kwargs": {"eps": 1e-5, "affine": true},
            "dropout_op": null,
            "dropout_op_kwargs": null,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": true},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_format_gets_an_architecture_and_new_plans_are_unchanged() {
        let old = json!({
            "patch_size": [40, 56, 40],
            "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 32, "unet_max_num_features": 100,
            "n_conv_per_stage_encoder": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2],
            "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3], [3, 3, 3]],
        });
        let mut configuration = old.clone();
        upgrade_old_format(&mut configuration);
        let architecture: crate::plan::Architecture =
            serde_json::from_value(configuration["architecture"].clone()).unwrap();
        assert_eq!(architecture.arch_kwargs["features_per_stage"], json!([32, 64, 100]));
        assert_eq!(architecture.arch_kwargs["conv_op"], "torch.nn.modules.conv.Conv3d");
        assert_eq!(architecture.arch_kwargs["strides"], old["pool_op_kernel_sizes"]);
        let new = configuration.clone();
        upgrade_old_format(&mut configuration);
        assert_eq!(configuration, new);
        let mut unknown = json!({"UNet_class_name": "MyUNet"});
        upgrade_old_format(&mut unknown);
        assert!(unknown.get("architecture").is_none());
    }
}
