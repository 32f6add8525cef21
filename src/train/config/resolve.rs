//! Resolution of a configuration from its layers.

use std::path::Path;

use serde::Deserialize;

use super::layer::Layer;
use super::{RunConfig, defaults};
use nnunet_data::work::{ConfigError, one_line};

impl RunConfig {
    /// Applies `plans`, `file` and `flags` on top of the defaults, in this order, and validates the result.
    ///
    /// # Errors
    /// Returns an error in one line that names the layer and the key if a key is unknown or a value has the wrong type
    /// or is out of range.
    pub fn resolve(plans: Layer, file: Option<Layer>, flags: Layer) -> Result<Self, ConfigError> {
        let layers: Vec<&Layer> = [&plans].into_iter().chain(&file).chain([&flags]).collect();
        let mut table =
            defaults::table(stated(&layers, "optimizer.kind"), stated(&layers, "device"), stated(&layers, "precision"));
        let mut config = None;
        for layer in layers {
            layer.apply_to(&mut table)?;
            let resolved: Self = table
                .clone()
                .try_into()
                .map_err(|error: toml::de::Error| ConfigError::new(layer.origin(), one_line(&error.to_string())))?;
            resolved.validate().map_err(|defect| ConfigError::new(layer.origin(), defect))?;
            config = Some(resolved);
        }
        let config = config.ok_or_else(|| ConfigError::new("configuration", "no configuration layer given"))?;
        let misfit = |defect| ConfigError::new("configuration", format!("`precision` {defect}"));
        config.precision.check(config.device).map_err(misfit)?;
        Ok(config)
    }

    /// Reads the `config.toml` of a run.
    ///
    /// # Errors
    /// Same as [`RunConfig::resolve`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::resolve(Layer::default(), Some(Layer::from_file(path)?), Layer::default())
    }
}

/// Returns the value of a key from the highest layer that sets it; other defaults depend on these keys.
fn stated<T: for<'de> Deserialize<'de>>(layers: &[&Layer], key: &str) -> Option<T> {
    // A value that is not a `T` is reported when its layer is applied.
    layers.iter().rev().find_map(|layer| layer.get(key)).and_then(|value| value.clone().try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{OptimizerConfig, OptimizerKind, TrainingConfig};
    use nnunet_comm::distributed::CommDtype;
    use nnunet_data::work::FoldId;

    fn file(text: &str) -> Layer {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("my.toml");
        std::fs::write(&path, text).unwrap();
        Layer::from_file(&path).unwrap()
    }

    fn resolve(text: &str) -> Result<RunConfig, ConfigError> {
        RunConfig::resolve(Layer::new("plans"), Some(file(text)), Layer::new("flags"))
    }

    fn defect(text: &str) -> String {
        let message = resolve(text).unwrap_err().to_string();
        assert!(message.contains("my.toml: ") && !message.contains('\n'), "{message}");
        message
    }

    #[test]
    fn each_layer_overrides_the_one_before() {
        let mut plans = Layer::new("plans");
        plans.set("training.batch_size", Some(9));
        let mut flags = Layer::new("flags");
        flags.set("training.epochs", Some(3)).set("seed", None::<i64>);
        let text = "seed = 7\nfold = 3\n[training]\nepochs = 10\niterations_per_epoch = 20\n";
        let config = RunConfig::resolve(plans, Some(file(text)), flags).unwrap();
        let TrainingConfig { epochs, iterations_per_epoch, validation_iterations, batch_size, .. } = config.training;
        assert_eq!((epochs, iterations_per_epoch, validation_iterations, batch_size), (3, 20, 50, 9));
        assert_eq!((config.seed, config.fold), (7, FoldId::Number(3)));
    }

    #[test]
    fn the_optimizer_brings_its_own_defaults_unless_they_are_stated() {
        assert_eq!(resolve("").unwrap().optimizer, OptimizerConfig::default_of(OptimizerKind::Sgd));
        let adam = resolve("optimizer = { kind = 'adam', weight_decay = 0 }").unwrap().optimizer;
        assert_eq!((adam.kind, adam.lr, adam.weight_decay), (OptimizerKind::Adam, 3e-4, 0.0));
    }

    #[test]
    fn gpus_exchange_what_they_compute_in_unless_told_otherwise() {
        let comm_dtype = |text: &str| resolve(text).unwrap().dist.compression;
        assert_eq!(comm_dtype("precision = 'amp-bf16'"), CommDtype::F32);
        assert_eq!(comm_dtype("precision = 'amp-bf16'\ndevice = 'cuda'"), CommDtype::Bf16);
        assert_eq!(comm_dtype("precision = 'amp-fp16'\ndevice = 'cuda'"), CommDtype::F16);
        assert_eq!(comm_dtype("precision = 'amp-fp16'\ndevice = 'cuda'\n[dist]\ncompression = 'none'"), CommDtype::F32);
    }

    #[test]
    fn errors_name_file_and_key() {
        assert!(defect("[optimizer]\nmomentun = 0.9").contains("unknown key `optimizer.momentun`"));
        assert!(defect("epochs = 3").contains("unknown key `epochs`"));
        assert!(defect("[training]\nepochs = 'ten'").contains("`training.epochs` must be of type integer"));
        assert!(defect("[training]\nepochs = 0").contains("`training.epochs` is 0"));
        assert!(defect("[training]\nepochs = -1").contains("training.epochs"));
        assert!(defect("[optimizer]\nlr = nan").contains("`optimizer.lr` is NaN"));
        assert!(defect("precision = 'fp8'").contains("precision"));
        let misfit = |text: &str| resolve(text).unwrap_err().to_string();
        assert!(misfit("precision = 'amp-fp16'").contains("`precision` amp-fp16 requires a GPU"));
        assert!(resolve("precision = 'amp-fp16'\ndevice = 'cuda'").is_ok());
        assert!(defect("fold = 'none'").contains("not `none`"));
    }

    #[test]
    fn a_saved_configuration_reads_back_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let mut flags = Layer::new("flags");
        flags.set("run_dir", Some(directory.path().display().to_string())).set("fold", Some("all"));
        let config = RunConfig::resolve(Layer::new("plans"), None, flags).unwrap();
        config.save().unwrap();
        assert_eq!(RunConfig::load(&config.run_dir().config()).unwrap(), config);
    }
}
