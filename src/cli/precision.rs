//! The flags that name a number format.

use clap::Args;

use nnunet_data::work::ConfigError;
use nnunet_nn::Device;
use nnunet_nn::backend::mixed_precision;
use nnunet_nn::ops::Precision;

/// `--precision FORMAT` or `--amp`.
#[derive(Clone, Copy, Debug, Args)]
pub struct PrecisionFlags {
    /// Number format of activations [default: fp32].
    #[arg(long, value_enum, value_name = "FORMAT")]
    precision: Option<Precision>,

    /// Mixed precision: --precision amp-bf16, or amp-fp16 on GPUs without bfloat16.
    #[arg(long, conflicts_with = "precision")]
    amp: bool,
}

impl PrecisionFlags {
    /// What is asked for, if anything is.
    pub fn stated(&self, device: Device) -> Option<Precision> {
        if self.amp { Some(mixed_precision(device)) } else { self.precision }
    }

    /// What is asked for, or fp32.
    ///
    /// # Errors
    /// The device does not have it.
    pub fn on(&self, device: Device) -> Result<Precision, ConfigError> {
        let precision = self.stated(device).unwrap_or_default();
        precision
            .check(device)
            .map_err(|defect| ConfigError::new("command line", format!("`--precision` {defect}")))?;
        Ok(precision)
    }
}
