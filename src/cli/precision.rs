//! Flags that select the precision.

use clap::Args;

use nnunet_data::work::ConfigError;
use nnunet_nn::Device;
use nnunet_nn::backend::mixed_precision;
use nnunet_nn::ops::Precision;

/// `--precision FORMAT` or `--amp`.
#[derive(Clone, Copy, Debug, Args)]
pub struct PrecisionFlags {
    /// Data type of the activations [default: fp32].
    #[arg(long, value_enum, value_name = "FORMAT")]
    precision: Option<Precision>,

    /// Use mixed precision: --precision amp-bf16, or amp-fp16 on GPUs without bfloat16.
    #[arg(long, conflicts_with = "precision")]
    amp: bool,
}

impl PrecisionFlags {
    /// Returns the requested precision, or `None`.
    pub fn requested(&self, device: Device) -> Option<Precision> {
        if self.amp { Some(mixed_precision(device)) } else { self.precision }
    }

    /// Returns the requested precision, or fp32.
    ///
    /// # Errors
    /// Returns an error if the device does not support it.
    pub fn resolve(&self, device: Device) -> Result<Precision, ConfigError> {
        let precision = self.requested(device).unwrap_or_default();
        precision
            .check(device)
            .map_err(|defect| ConfigError::new("command line", format!("`--precision` {defect}")))?;
        Ok(precision)
    }
}
