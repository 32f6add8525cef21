//! `architecture` of a configuration: the network in the words of `dynamic_network_architectures`, and in ours.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::PlanError;
use super::configuration::lift;

/// nnU-Net's plain U-Net.
const PLAIN_UNET: &str = "dynamic_network_architectures.architectures.unet.PlainConvUNet";

/// The arguments that name Python classes.
const CLASSES: [&str; 4] = ["conv_op", "norm_op", "dropout_op", "nonlin"];

/// More stages than any image can be halved; a plans file that asks for more is damaged.
const MAX_STAGES: usize = 32;

/// Slope of PyTorch's leaky ReLU where none is given.
const LEAKY_SLOPE: f64 = 0.01;

/// `architecture` of a configuration, as `dynamic_network_architectures` takes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    pub network_class_name: String,
    pub arch_kwargs: IndexMap<String, Value>,
    #[serde(rename = "_kw_requires_import")]
    pub kw_requires_import: Vec<String>,
}

/// What the network builder needs of [`Architecture`], lifted to three dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkShape {
    /// Feature maps of each stage, highest resolution first.
    pub features: Vec<usize>,
    /// Convolution kernel of each stage, `(z, y, x)`.
    pub kernels: Vec<[usize; 3]>,
    /// Stride of each stage's first convolution; the first entry is 1.
    pub strides: Vec<[usize; 3]>,
    /// Convolutions per encoder stage.
    pub convs_encoder: Vec<usize>,
    /// Convolutions per decoder stage, lowest resolution first.
    pub convs_decoder: Vec<usize>,
    /// Whether convolutions have a bias.
    pub conv_bias: bool,
    /// Epsilon of the instance norm.
    pub norm_eps: f64,
}

impl Architecture {
    /// The plain U-Net of this shape; `axes` is 2 or 3, and tells how many of the shape's axes are real.
    pub(super) fn plain_unet(shape: &NetworkShape, axes: usize) -> Self {
        let real = |triples: &[[usize; 3]]| -> Vec<Vec<usize>> {
            triples.iter().map(|triple| triple[3 - axes..].to_vec()).collect()
        };
        let kwargs = [
            ("n_stages", json!(shape.features.len())),
            ("features_per_stage", json!(shape.features)),
            ("conv_op", json!(conv_op(axes))),
            ("kernel_sizes", json!(real(&shape.kernels))),
            ("strides", json!(real(&shape.strides))),
            ("n_conv_per_stage", json!(shape.convs_encoder)),
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
            network_class_name: PLAIN_UNET.to_owned(),
            arch_kwargs: kwargs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            kw_requires_import: CLASSES.map(str::to_owned).to_vec(),
        }
    }

    /// Reads the shape of a plain U-Net with instance norm and leaky ReLU, 2D or 3D.
    ///
    /// # Errors
    /// Names the argument that is missing, malformed or asks for what this crate does not build.
    pub(super) fn network_shape(&self) -> Result<NetworkShape, PlanError> {
        if self.network_class_name.rsplit('.').next() != Some("PlainConvUNet") {
            let class = &self.network_class_name;
            return Err(PlanError::Architecture(format!("{class} is not supported; use a PlainConvUNet")));
        }
        let axes = self.axes()?;
        self.check_layers(axes)?;
        let stages: usize = self.required("n_stages")?;
        if !(2..=MAX_STAGES).contains(&stages) {
            return Err(PlanError::Architecture(format!("n_stages is {stages}; must be 2 to {MAX_STAGES}")));
        }
        let shape = NetworkShape {
            features: self.per_stage("features_per_stage", stages)?,
            kernels: self.per_stage_and_axis("kernel_sizes", stages, axes)?,
            strides: self.per_stage_and_axis("strides", stages, axes)?,
            convs_encoder: self.per_stage("n_conv_per_stage", stages)?,
            convs_decoder: self.per_stage("n_conv_per_stage_decoder", stages - 1)?,
            conv_bias: self.optional("conv_bias")?.unwrap_or(false),
            norm_eps: self.inner("norm_op_kwargs", "eps")?.unwrap_or(1e-5),
        };
        if shape.strides[0] != [1; 3] {
            return Err(PlanError::Architecture("the first of strides must be 1 in every axis".to_owned()));
        }
        match shape.kernels.iter().find(|kernel| kernel.iter().any(|extent| extent % 2 == 0)) {
            Some(kernel) => Err(PlanError::Architecture(format!("kernel {kernel:?} must be odd in every axis"))),
            None => Ok(shape),
        }
    }

    /// Number of spatial axes, 2 or 3.
    pub(super) fn axes(&self) -> Result<usize, PlanError> {
        let op: String = self.required("conv_op")?;
        let suffix = op.rsplit('.').next().unwrap_or_default();
        (2..=3).find(|axes| suffix == format!("Conv{axes}d")).ok_or_else(|| {
            PlanError::Architecture(format!("conv_op {op} is not supported; use {} or {}", conv_op(2), conv_op(3)))
        })
    }

    /// Everything but the shape must be what nnU-Net's planners write.
    fn check_layers(&self, axes: usize) -> Result<(), PlanError> {
        self.check_class("norm_op", &format!("InstanceNorm{axes}d"))?;
        self.check_class("nonlin", "LeakyReLU")?;
        if self.inner("norm_op_kwargs", "affine")? != Some(true) {
            return Err(PlanError::Architecture("norm_op_kwargs without affine: true is not supported".to_owned()));
        }
        if self.inner("nonlin_kwargs", "negative_slope")?.unwrap_or(LEAKY_SLOPE) != LEAKY_SLOPE {
            return Err(PlanError::Architecture(format!("negative_slope must be {LEAKY_SLOPE}")));
        }
        match self.optional::<String>("dropout_op")? {
            None => Ok(()),
            Some(op) => Err(PlanError::Architecture(format!("dropout_op {op} is not supported; use null"))),
        }
    }

    fn check_class(&self, key: &str, expected: &str) -> Result<(), PlanError> {
        let class: String = self.required(key)?;
        if class.rsplit('.').next() == Some(expected) {
            return Ok(());
        }
        Err(PlanError::Architecture(format!("{key} {class} is not supported; use a {expected}")))
    }

    /// One positive number per stage; a single number means the same for all.
    fn per_stage(&self, key: &str, stages: usize) -> Result<Vec<usize>, PlanError> {
        let numbers = match self.required::<Repeated<usize>>(key)? {
            Repeated::Once(number) => vec![number; stages],
            Repeated::Each(numbers) => numbers,
        };
        if numbers.len() == stages && !numbers.contains(&0) {
            return Ok(numbers);
        }
        Err(PlanError::Architecture(format!("{key} {numbers:?} must be {stages} positive numbers")))
    }

    /// One positive number per stage and axis; single numbers mean the same for all.
    fn per_stage_and_axis(&self, key: &str, stages: usize, axes: usize) -> Result<Vec<[usize; 3]>, PlanError> {
        let extents = match self.required::<Repeated<Repeated<usize>>>(key)? {
            Repeated::Once(extent) => vec![extent; stages],
            Repeated::Each(extents) => extents,
        };
        let lifted: Option<Vec<_>> = extents.into_iter().map(|extent| extent.lifted(axes)).collect();
        lifted.filter(|lifted| lifted.len() == stages).ok_or_else(|| {
            PlanError::Architecture(format!("{key} must be {stages} lists of {axes} positive numbers each"))
        })
    }

    fn required<T: DeserializeOwned>(&self, key: &str) -> Result<T, PlanError> {
        let value = self.arch_kwargs.get(key);
        parse(key, value.ok_or_else(|| PlanError::Architecture(format!("{key} is missing in arch_kwargs")))?)
    }

    fn optional<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, PlanError> {
        self.arch_kwargs.get(key).map_or(Ok(None), |value| parse(key, value))
    }

    /// An argument of an argument.
    fn inner<T: DeserializeOwned>(&self, key: &str, inner: &str) -> Result<Option<T>, PlanError> {
        let value = self.arch_kwargs.get(key).and_then(|arguments| arguments.get(inner));
        value.map_or(Ok(None), |value| parse(inner, value))
    }
}

/// A value for all, or one for each.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Repeated<T> {
    Once(T),
    Each(Vec<T>),
}

impl Repeated<usize> {
    /// `(z, y, x)` of an extent in `axes` axes; `None` where it has another number of them, or a zero.
    fn lifted(self, axes: usize) -> Option<[usize; 3]> {
        let extents = match self {
            Self::Once(extent) => vec![extent; axes],
            Self::Each(extents) => extents,
        };
        (extents.len() == axes && !extents.contains(&0)).then(|| lift(&extents, 1))
    }
}

fn parse<T: DeserializeOwned>(key: &str, value: &Value) -> Result<T, PlanError> {
    T::deserialize(value).map_err(|error| PlanError::Architecture(format!("{key}: {error}")))
}

fn conv_op(axes: usize) -> String {
    format!("torch.nn.modules.conv.Conv{axes}d")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> NetworkShape {
        NetworkShape {
            features: vec![8, 16],
            kernels: vec![[1, 3, 3]; 2],
            strides: vec![[1, 1, 1], [1, 2, 2]],
            convs_encoder: vec![2, 2],
            convs_decoder: vec![2],
            conv_bias: true,
            norm_eps: 1e-5,
        }
    }

    #[test]
    fn a_shape_survives_the_way_through_the_plans() {
        for axes in [2, 3] {
            assert_eq!(Architecture::plain_unet(&shape(), axes).network_shape().unwrap(), shape());
        }
    }

    #[test]
    fn what_cannot_be_built_is_named() {
        let cases = [
            ("conv_op", json!("torch.nn.modules.conv.Conv1d"), "Conv1d is not supported"),
            ("norm_op", json!("torch.nn.modules.batchnorm.BatchNorm3d"), "BatchNorm3d is not supported"),
            ("dropout_op", json!("torch.nn.modules.dropout.Dropout3d"), "Dropout3d is not supported"),
            ("features_per_stage", json!([8]), "features_per_stage [8] must be 2"),
            ("strides", json!([[1, 1, 1], [2, 2]]), "strides must be 2 lists of 3"),
            ("kernel_sizes", json!(2), "must be odd"),
            ("strides", json!(2), "first of strides must be 1"),
            ("n_stages", json!("two"), "n_stages: invalid type"),
            ("n_stages", json!(u64::MAX), "must be 2 to 32"),
        ];
        for (key, value, expected) in cases {
            let mut architecture = Architecture::plain_unet(&shape(), 3);
            architecture.arch_kwargs.insert(key.to_owned(), value);
            let message = architecture.network_shape().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let mut architecture = Architecture::plain_unet(&shape(), 3);
        architecture.network_class_name = "a.b.ResidualEncoderUNet".to_owned();
        assert!(architecture.network_shape().unwrap_err().to_string().contains("a.b.ResidualEncoderUNet"));
    }
}
