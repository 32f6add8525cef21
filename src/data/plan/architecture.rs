//! `architecture` of a configuration, and its conversion to the network shape used by this crate.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::PlanError;
use super::network::{Network, NetworkShape, parameter_count, to_3d};
use super::networks::NETWORKS;

/// Arguments that name Python classes.
const CLASSES: [&str; 4] = ["conv_op", "norm_op", "dropout_op", "nonlin"];

/// Arguments common to all networks; the argument for the encoder blocks differs per network.
const ARGUMENTS: [&str; 13] = [
    "n_stages",
    "features_per_stage",
    "conv_op",
    "kernel_sizes",
    "strides",
    "n_conv_per_stage_decoder",
    "conv_bias",
    "norm_op",
    "norm_op_kwargs",
    "dropout_op",
    "dropout_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
];

/// Maximum number of stages; no image can be halved more often. A plans file beyond this or the following limits is
/// damaged.
const MAX_STAGES: usize = 32;

/// Maximum feature maps per stage, blocks per stage, and kernel extent.
const MAX_FEATURES: usize = 1 << 14;
const MAX_BLOCKS: usize = 256;
const MAX_KERNEL: usize = 31;

/// Maximum number of trainable parameters; the largest network of nnU-Net's planners has 0.15e9.
const MAX_PARAMETERS: u64 = 10_000_000_000;

/// Default slope of PyTorch's leaky ReLU.
const LEAKY_SLOPE: f64 = 0.01;

/// `architecture` of a configuration, in the format of `dynamic_network_architectures`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    pub network_class_name: String,
    pub arch_kwargs: IndexMap<String, Value>,
    #[serde(rename = "_kw_requires_import")]
    pub kw_requires_import: Vec<String>,
}

impl Architecture {
    /// Creates the architecture of this shape; `axes` is the number of spatial axes, 2 or 3.
    pub(super) fn from_shape(shape: &NetworkShape, axes: usize) -> Self {
        let real = |triples: &[[usize; 3]]| -> Vec<Vec<usize>> {
            triples.iter().map(|triple| triple[3 - axes..].to_vec()).collect()
        };
        let kwargs = [
            ("n_stages", json!(shape.features.len())),
            ("features_per_stage", json!(shape.features)),
            ("conv_op", json!(conv_op(axes))),
            ("kernel_sizes", json!(real(&shape.kernels))),
            ("strides", json!(real(&shape.strides))),
            (shape.network.blocks_key, json!(shape.blocks_encoder)),
            ("n_conv_per_stage_decoder", json!(shape.convs_decoder)),
            ("conv_bias", json!(shape.conv_bias)),
            ("norm_op", json!(format!("torch.nn.modules.instancenorm.InstanceNorm{axes}d"))),
            ("norm_op_kwargs", json!({"eps": shape.norm_eps, "affine": true})),
            ("dropout_op", Value::Null),
            ("dropout_op_kwargs", Value::Null),
            ("nonlin", json!("torch.nn.LeakyReLU")),
            ("nonlin_kwargs", json!({"inplace": true})),
        ];
        Self {
            network_class_name: shape.network.class.to_owned(),
            arch_kwargs: kwargs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            kw_requires_import: CLASSES.map(str::to_owned).to_vec(),
        }
    }

    /// Reads the shape of one of the [`NETWORKS`] with instance norm and leaky ReLU, 2D or 3D.
    ///
    /// # Errors
    /// Returns an error that names the argument if one is missing, malformed or unsupported.
    pub(super) fn network_shape(&self) -> Result<NetworkShape, PlanError> {
        let network = self.network()?;
        let axes = self.axes()?;
        self.check_layers(axes)?;
        self.check_arguments(network)?;
        let stages: usize = self.required("n_stages")?;
        if !(2..=MAX_STAGES).contains(&stages) {
            return Err(invalid_argument("n_stages", format!("is {stages}; must be 2 to {MAX_STAGES}")));
        }
        let shape = NetworkShape {
            network,
            features: self.per_stage("features_per_stage", stages, MAX_FEATURES)?,
            kernels: self.per_stage_and_axis("kernel_sizes", stages, axes)?,
            strides: self.per_stage_and_axis("strides", stages, axes)?,
            blocks_encoder: self.per_stage(network.blocks_key, stages, MAX_BLOCKS)?,
            convs_decoder: self.per_stage("n_conv_per_stage_decoder", stages - 1, MAX_BLOCKS)?,
            conv_bias: self.optional("conv_bias")?.unwrap_or(false),
            norm_eps: self.inner("norm_op_kwargs", "eps")?.unwrap_or(1e-5),
        };
        if shape.strides[0] != [1; 3] {
            return Err(invalid_argument("strides", "the first stride must be 1 along every axis"));
        }
        if !(shape.norm_eps > 0.0 && shape.norm_eps < 1.0) {
            return Err(invalid_argument(
                "norm_op_kwargs",
                format!("eps is {}; must be above 0 and below 1", shape.norm_eps),
            ));
        }
        let is_kernel = |extent: &usize| extent % 2 == 1 && *extent <= MAX_KERNEL;
        if let Some(kernel) = shape.kernels.iter().find(|kernel| !kernel.iter().all(is_kernel)) {
            let reason = format!("{kernel:?} must be odd along every axis, and at most {MAX_KERNEL}");
            return Err(invalid_argument("kernel_sizes", reason));
        }
        Ok(shape)
    }

    /// Rejects networks with too many parameters. The strides are already known to divide the patch size.
    pub(super) fn check_size(&self, shape: &NetworkShape) -> Result<(), PlanError> {
        match parameter_count(shape, 1, 1) {
            ..=MAX_PARAMETERS => Ok(()),
            count => {
                let reason = format!("the network would have {count} parameters; at most {MAX_PARAMETERS} are allowed");
                Err(invalid_argument("features_per_stage", reason))
            }
        }
    }

    /// Returns the number of spatial axes, 2 or 3.
    pub(super) fn axes(&self) -> Result<usize, PlanError> {
        let op: String = self.required("conv_op")?;
        let suffix = op.rsplit('.').next().unwrap_or_default();
        (2..=3).find(|axes| suffix == format!("Conv{axes}d")).ok_or_else(|| {
            invalid_argument("conv_op", format!("{op} is not supported; use {} or {}", conv_op(2), conv_op(3)))
        })
    }

    fn network(&self) -> Result<&'static Network, PlanError> {
        let class = &self.network_class_name;
        Network::from_class_name(class).ok_or_else(|| PlanError::Architecture {
            key: "network_class_name".to_owned(),
            reason: format!("unknown network class {class}; use one of {}", NETWORKS.map(Network::name).join(", ")),
        })
    }

    /// Requires the layer types and options that nnU-Net's planners write.
    fn check_layers(&self, axes: usize) -> Result<(), PlanError> {
        self.check_class("norm_op", &format!("InstanceNorm{axes}d"))?;
        self.check_class("nonlin", "LeakyReLU")?;
        if self.inner("norm_op_kwargs", "affine")? != Some(true) {
            return Err(invalid_argument("norm_op_kwargs", "is only supported with affine: true"));
        }
        if self.inner("nonlin_kwargs", "negative_slope")?.unwrap_or(LEAKY_SLOPE) != LEAKY_SLOPE {
            return Err(invalid_argument("nonlin_kwargs", format!("negative_slope must be {LEAKY_SLOPE}")));
        }
        match self.optional::<String>("dropout_op")? {
            None => Ok(()),
            Some(op) => Err(invalid_argument("dropout_op", format!("{op} is not supported; use null"))),
        }
    }

    /// Rejects other arguments unless they are off (null or false); the trainer handles deep supervision.
    fn check_arguments(&self, network: &Network) -> Result<(), PlanError> {
        let is_read = |key: &str| key == network.blocks_key || ARGUMENTS.contains(&key) || key == "deep_supervision";
        let asks = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        match self.arch_kwargs.iter().find(|(key, value)| !is_read(key) && asks(value)) {
            None => Ok(()),
            Some((key, value)) => {
                Err(invalid_argument(key, format!("{value} is not supported for {}; remove it", network.name())))
            }
        }
    }

    fn check_class(&self, key: &str, expected: &str) -> Result<(), PlanError> {
        let class: String = self.required(key)?;
        if class.rsplit('.').next() == Some(expected) {
            return Ok(());
        }
        Err(invalid_argument(key, format!("{class} is not supported; use a {expected}")))
    }

    /// Reads one positive number per stage; a single number applies to all stages.
    fn per_stage(&self, key: &str, stages: usize, most: usize) -> Result<Vec<usize>, PlanError> {
        let numbers = match self.required::<Repeated<usize>>(key)? {
            Repeated::Once(number) => vec![number; stages],
            Repeated::Each(numbers) => numbers,
        };
        if numbers.len() == stages && numbers.iter().all(|number| (1..=most).contains(number)) {
            return Ok(numbers);
        }
        Err(invalid_argument(key, format!("{numbers:?} must be {stages} numbers from 1 to {most}")))
    }

    /// Reads one positive number per stage and axis; a single number applies to all.
    fn per_stage_and_axis(&self, key: &str, stages: usize, axes: usize) -> Result<Vec<[usize; 3]>, PlanError> {
        let extents = match self.required::<Repeated<Repeated<usize>>>(key)? {
            Repeated::Once(extent) => vec![Repeated::Once(extent); stages],
            Repeated::Each(extents) => extents,
        };
        let padded: Option<Vec<_>> = extents.into_iter().map(|extent| extent.into_3d(axes)).collect();
        padded
            .filter(|padded| padded.len() == stages)
            .ok_or_else(|| invalid_argument(key, format!("must be {stages} lists of {axes} positive numbers each")))
    }

    fn required<T: DeserializeOwned>(&self, key: &str) -> Result<T, PlanError> {
        let value = self.arch_kwargs.get(key);
        parse(key, value.ok_or_else(|| invalid_argument(key, "is missing"))?)
    }

    fn optional<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, PlanError> {
        self.arch_kwargs.get(key).map_or(Ok(None), |value| parse(key, value))
    }

    /// Reads a key of an argument that is a dictionary.
    fn inner<T: DeserializeOwned>(&self, key: &str, inner: &str) -> Result<Option<T>, PlanError> {
        let value = self.arch_kwargs.get(key).and_then(|arguments| arguments.get(inner));
        value.map_or(Ok(None), |value| parse(&format!("{key}.{inner}"), value))
    }
}

/// A single value for all, or a list of values.
#[derive(Clone, Deserialize)]
#[serde(untagged, expecting = "must be a whole number for all or a list of them")]
enum Repeated<T> {
    Once(usize),
    Each(Vec<T>),
}

impl Repeated<usize> {
    /// Returns `(z, y, x)` of an extent in `axes` axes; `None` if the number of axes differs or an extent is 0.
    fn into_3d(self, axes: usize) -> Option<[usize; 3]> {
        let extents = match self {
            Self::Once(extent) => vec![extent; axes],
            Self::Each(extents) => extents,
        };
        (extents.len() == axes && !extents.contains(&0)).then(|| to_3d(&extents, 1))
    }
}

fn parse<T: DeserializeOwned>(key: &str, value: &Value) -> Result<T, PlanError> {
    T::deserialize(value).map_err(|error| invalid_argument(key, error))
}

/// Creates the error of an invalid or unsupported network argument.
pub(super) fn invalid_argument(key: &str, reason: impl ToString) -> PlanError {
    PlanError::Architecture { key: format!("arch_kwargs.{key}"), reason: reason.to_string() }
}

fn conv_op(axes: usize) -> String {
    format!("torch.nn.modules.conv.Conv{axes}d")
}

#[cfg(test)]
mod tests {
    use super::super::networks::PLAIN_CONV_UNET;
    use super::*;

    fn shape(network: &'static Network) -> NetworkShape {
        NetworkShape {
            network,
            features: vec![8, 16],
            kernels: vec![[1, 3, 3]; 2],
            strides: vec![[1, 1, 1], [1, 2, 2]],
            blocks_encoder: vec![2, 2],
            convs_decoder: vec![2],
            conv_bias: true,
            norm_eps: 1e-5,
        }
    }

    #[test]
    fn a_shape_survives_a_round_trip_through_the_plans() {
        for network in NETWORKS {
            for axes in [2, 3] {
                let shape = shape(network);
                assert_eq!(Architecture::from_shape(&shape, axes).network_shape().unwrap(), shape);
            }
        }
    }

    #[test]
    fn an_unsupported_argument_is_named() {
        let cases = [
            ("conv_op", json!("torch.nn.modules.conv.Conv1d"), "Conv1d is not supported"),
            ("norm_op", json!("torch.nn.modules.batchnorm.BatchNorm3d"), "BatchNorm3d is not supported"),
            ("norm_op_kwargs", json!({"affine": true, "eps": -1.0}), "eps is -1"),
            ("dropout_op", json!("torch.nn.modules.dropout.Dropout3d"), "Dropout3d is not supported"),
            ("features_per_stage", json!([8]), "[8] must be 2 numbers"),
            ("features_per_stage", json!([8, 1 << 20]), "[8, 1048576] must be 2 numbers from 1 to 16384"),
            ("n_conv_per_stage", json!([2, 0]), "[2, 0] must be 2 numbers from 1"),
            ("strides", json!([[1, 1, 1], [2, 2]]), "must be 2 lists of 3"),
            ("kernel_sizes", json!(2), "must be odd"),
            ("kernel_sizes", json!(99), "at most 31"),
            ("strides", json!(2), "the first stride must be 1"),
            ("n_stages", json!("two"), "invalid type"),
            ("n_stages", json!(u64::MAX), "must be 2 to 32"),
            ("nonlin_first", json!(true), "true is not supported for PlainConvUNet"),
            ("n_blocks_per_stage", json!([1, 3]), "[1,3] is not supported for PlainConvUNet"),
        ];
        for (key, value, expected) in cases {
            let mut architecture = Architecture::from_shape(&shape(&PLAIN_CONV_UNET), 3);
            architecture.arch_kwargs.insert(key.to_owned(), value);
            let message = architecture.network_shape().unwrap_err().to_string();
            assert!(message.starts_with(&format!("architecture.arch_kwargs.{key}")), "{message}");
            assert!(message.contains(expected), "{message}");
        }
        let mut architecture = Architecture::from_shape(&shape(&PLAIN_CONV_UNET), 3);
        architecture.network_class_name = "a.b.Primus".to_owned();
        let message = architecture.network_shape().unwrap_err().to_string();
        let known = "unknown network class a.b.Primus; use one of PlainConvUNet, ResidualEncoderUNet";
        assert_eq!(message, format!("architecture.network_class_name: {known}"));
    }

    #[test]
    fn a_list_of_numbers_is_one_per_stage() {
        let mut architecture = Architecture::from_shape(&shape(&PLAIN_CONV_UNET), 3);
        architecture.arch_kwargs.insert("strides".to_owned(), json!([1, 2]));
        assert_eq!(architecture.network_shape().unwrap().strides, [[1; 3], [2; 3]]);
    }

    #[test]
    fn disabled_options_are_accepted() {
        let mut architecture = Architecture::from_shape(&shape(&PLAIN_CONV_UNET), 3);
        for (key, value) in [("nonlin_first", json!(false)), ("stem_channels", Value::Null)] {
            architecture.arch_kwargs.insert(key.to_owned(), value);
        }
        assert!(architecture.network_shape().is_ok());
    }
}
