//! ONNX nodes of a U-Net, plain or with a residual encoder (`onnx.proto`: GraphProto, NodeProto, AttributeProto,
//! TensorProto, ValueInfoProto).

use std::collections::BTreeMap;

use super::message::Message;
use nnunet_nn::model::{TensorState, UNetSpec};

/// Slope of the leaky ReLU.
const NEGATIVE_SLOPE: f32 = 0.01;
/// `TensorProto.DataType.FLOAT`.
const FLOAT: u64 = 1;

/// Graph builder. The output of a node has the node's name.
pub(super) struct Graph<'a> {
    message: Message,
    weights: BTreeMap<&'a str, &'a TensorState>,
    /// Number of spatial axes, 2 or 3: the last of the network's three.
    axes: usize,
    /// Epsilon of the instance norms.
    eps: f32,
}

/// Attribute of an operator.
enum Attribute<'a> {
    Float(&'a str, f32),
    Number(&'a str, u64),
    Numbers(&'a str, Vec<usize>),
}

impl<'a> Graph<'a> {
    /// Builds the graph of a network from its weights, whose names determine the layers; see [`crate::model::UNet`].
    pub(super) fn unet(spec: &UNetSpec, weights: &'a [TensorState], axes: usize) -> Result<Self, String> {
        let weights = weights.iter().map(|tensor| (tensor.spec.name.as_str(), tensor)).collect();
        let (strides, eps) = (&spec.shape.strides, spec.shape.norm_eps as f32);
        let mut graph = Self { message: Message::default(), weights, axes, eps };
        graph.message.text(2, "nnU-Net");
        let mut features = graph.blocks("encoder.stem.convs", "image".into(), [1; 3])?;
        let mut skips = Vec::new();
        for (stage, stride) in strides.iter().enumerate() {
            let name = format!("encoder.stages.{stage}");
            features = match graph.has(&format!("{name}.blocks.0.conv1.conv.weight")) {
                true => graph.residual_blocks(&format!("{name}.blocks"), features, *stride)?,
                false => graph.blocks(&format!("{name}.0.convs"), features, *stride)?,
            };
            skips.push(features.clone());
        }
        skips.pop();
        for (stage, stride) in strides[1..].iter().rev().enumerate() {
            let (name, up) = (format!("decoder.stages.{stage}"), format!("decoder.transpconvs.{stage}"));
            graph.convolution("ConvTranspose", &up, &features, *stride)?;
            let skip = skips.pop().ok_or("the encoder has fewer stages than the decoder")?;
            graph.node("Concat", &name, &[&up, &skip], &[Attribute::Number("axis", 1)]);
            features = graph.blocks(&format!("{name}.convs"), name, [1; 3])?;
        }
        let head = format!("decoder.seg_layers.{}", strides.len() - 2);
        graph.convolution("Conv", &head, &features, [1; 3])?;
        graph.node("Identity", "logits", &[&head], &[]);
        graph.value(11, "image", spec.channels);
        graph.value(12, "logits", spec.classes);
        match graph.unused_weight() {
            Some(name) => Err(format!("tensor {name} belongs to a layer that is not supported in ONNX export")),
            None => Ok(graph),
        }
    }

    pub(super) fn finish(self) -> Message {
        self.message
    }

    /// Returns a weight that no node uses, except those of the lower-resolution heads.
    fn unused_weight(&self) -> Option<&'a str> {
        self.weights.keys().copied().find(|name| !name.starts_with("decoder.seg_layers."))
    }

    fn has(&self, weight: &str) -> bool {
        self.weights.contains_key(weight)
    }

    /// Adds blocks of convolution, instance norm and leaky ReLU for all weights with this prefix; only the first is
    /// strided. Like all of these methods, returns the name of the output.
    fn blocks(&mut self, name: &str, input: String, mut stride: [usize; 3]) -> Result<String, String> {
        let mut features = input;
        for number in 0.. {
            let block = format!("{name}.{number}");
            if !self.has(&format!("{block}.conv.weight")) {
                break;
            }
            let normed = self.conv_norm(&block, &features, std::mem::replace(&mut stride, [1; 3]))?;
            features = self.leaky_relu(&block, &normed);
        }
        Ok(features)
    }

    /// Adds residual blocks for all weights with this prefix; only the first is strided. If the spatial shape or the
    /// number of channels changes, the skip connection is average-pooled and projected.
    fn residual_blocks(&mut self, name: &str, input: String, mut stride: [usize; 3]) -> Result<String, String> {
        let mut features = input;
        for number in 0.. {
            let block = format!("{name}.{number}");
            if !self.has(&format!("{block}.conv1.conv.weight")) {
                break;
            }
            let stride = std::mem::replace(&mut stride, [1; 3]);
            let conv1 = format!("{block}.conv1");
            let inner = self.conv_norm(&conv1, &features, stride)?;
            let inner = self.leaky_relu(&conv1, &inner);
            let inner = self.conv_norm(&format!("{block}.conv2"), &inner, [1; 3])?;
            let mut skip = features;
            let is_strided = stride != [1; 3];
            if is_strided {
                let pool = format!("{block}.skip.0");
                let stride = stride[3 - self.axes..].to_vec();
                let attributes =
                    [Attribute::Numbers("kernel_shape", stride.clone()), Attribute::Numbers("strides", stride)];
                self.node("AveragePool", &pool, &[&skip], &attributes);
                skip = pool;
            }
            // The index of the projection counts a preceding pooling.
            let projection = format!("{block}.skip.{}", usize::from(is_strided));
            if self.has(&format!("{projection}.conv.weight")) {
                skip = self.conv_norm(&projection, &skip, [1; 3])?;
            }
            let sum = format!("{block}.sum");
            self.node("Add", &sum, &[&inner, &skip], &[]);
            features = self.leaky_relu(&block, &sum);
        }
        Ok(features)
    }

    fn conv_norm(&mut self, name: &str, input: &str, stride: [usize; 3]) -> Result<String, String> {
        let (conv, norm) = (format!("{name}.conv"), format!("{name}.norm"));
        self.convolution("Conv", &conv, input, stride)?;
        let (scale, shift) = (self.initializer(&format!("{norm}.weight"))?, self.initializer(&format!("{norm}.bias"))?);
        let epsilon = Attribute::Float("epsilon", self.eps);
        self.node("InstanceNormalization", &norm, &[&conv, &scale, &shift], &[epsilon]);
        Ok(norm)
    }

    fn leaky_relu(&mut self, block: &str, input: &str) -> String {
        let name = format!("{block}.nonlin");
        self.node("LeakyRelu", &name, &[input], &[Attribute::Float("alpha", NEGATIVE_SLOPE)]);
        name
    }

    /// Adds a convolution with "same" padding, or a transposed one with kernel size equal to stride.
    fn convolution(&mut self, op: &str, name: &str, input: &str, stride: [usize; 3]) -> Result<(), String> {
        let weight = format!("{name}.weight");
        let shape = &self.weights.get(weight.as_str()).ok_or_else(|| format!("missing tensor {weight}"))?.spec.shape;
        let kernel = shape[shape.len() - self.axes..].to_vec();
        let one_side = kernel.iter().map(|extent| if op == "Conv" { (extent - 1) / 2 } else { 0 });
        let pads = one_side.clone().chain(one_side).collect();
        let mut inputs = vec![input.to_owned(), self.initializer(&weight)?];
        let bias = format!("{name}.bias");
        if self.weights.contains_key(bias.as_str()) {
            inputs.push(self.initializer(&bias)?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let attributes = [
            Attribute::Numbers("strides", stride[3 - self.axes..].to_vec()),
            Attribute::Numbers("pads", pads),
            Attribute::Numbers("kernel_shape", kernel),
        ];
        self.node(op, name, &inputs, &attributes);
        Ok(())
    }

    fn node(&mut self, op: &str, name: &str, inputs: &[&str], attributes: &[Attribute]) {
        let mut node = Message::default();
        for input in inputs {
            node.text(1, input);
        }
        node.text(2, name).text(3, name).text(4, op);
        for attribute in attributes {
            node.message(5, &attribute.message());
        }
        self.message.message(1, &node);
    }

    /// Moves a weight into the graph and returns its name.
    fn initializer(&mut self, name: &str) -> Result<String, String> {
        let TensorState { spec, values } = self.weights.remove(name).ok_or_else(|| format!("missing tensor {name}"))?;
        let mut tensor = Message::default();
        for (axis, extent) in spec.shape.iter().enumerate() {
            // Kernels of 2D networks have no z axis in ONNX.
            let is_flat = spec.shape.len() == 5 && self.axes == 2 && axis == 2;
            if !is_flat {
                tensor.number(1, *extent as u64);
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensor.number(2, FLOAT).text(8, name).length_delimited(9, &bytes);
        self.message.message(5, &tensor);
        Ok(name.to_owned())
    }

    /// Adds the input (field 11) or output (12) of the graph, with a fixed number of channels and free other axes.
    fn value(&mut self, field: u64, name: &str, channels: usize) {
        let mut shape = Message::default();
        shape.message(1, Message::default().text(2, "n"));
        shape.message(1, Message::default().number(1, channels as u64));
        for axis in &["z", "y", "x"][3 - self.axes..] {
            shape.message(1, Message::default().text(2, axis));
        }
        let tensor = Message::default().number(1, FLOAT).message(2, &shape).clone();
        let kind = Message::default().message(1, &tensor).clone();
        self.message.message(field, Message::default().text(1, name).message(2, &kind));
    }
}

impl Attribute<'_> {
    fn message(&self) -> Message {
        let mut message = Message::default();
        // Field 20 is AttributeProto.AttributeType.
        match self {
            Self::Float(name, value) => message.text(1, name).float(2, *value).number(20, 1),
            Self::Number(name, value) => message.text(1, name).number(3, *value).number(20, 2),
            Self::Numbers(name, values) => {
                message.text(1, name);
                for value in values {
                    message.number(8, *value as u64);
                }
                message.number(20, 7)
            }
        };
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_data::plan::{NetworkShape, PLAIN_CONV_UNET};
    use nnunet_nn::model::ParameterSpec;

    fn tensor(name: &str, shape: &[usize]) -> TensorState {
        let spec = ParameterSpec { name: name.into(), shape: shape.to_vec() };
        TensorState { values: vec![0.0; spec.len()], spec }
    }

    /// Two stages; the second has two residual blocks.
    fn residual_weights() -> Vec<TensorState> {
        let mut weights = Vec::new();
        let mut block = |name: &str, to: usize, from: usize, extent: usize| {
            weights.push(tensor(&format!("{name}.conv.weight"), &[to, from, extent, extent, extent]));
            weights.push(tensor(&format!("{name}.norm.weight"), &[to]));
            weights.push(tensor(&format!("{name}.norm.bias"), &[to]));
        };
        block("encoder.stem.convs.0", 2, 1, 3);
        for (block_name, to, from) in [("0.blocks.0", 2, 2), ("1.blocks.0", 3, 2), ("1.blocks.1", 3, 3)] {
            block(&format!("encoder.stages.{block_name}.conv1"), to, from, 3);
            block(&format!("encoder.stages.{block_name}.conv2"), to, to, 3);
        }
        block("encoder.stages.1.blocks.0.skip.1", 3, 2, 1);
        block("decoder.stages.0.convs.0", 2, 4, 3);
        weights.push(tensor("decoder.transpconvs.0.weight", &[3, 2, 2, 2, 2]));
        weights.push(tensor("decoder.seg_layers.0.weight", &[2, 2, 1, 1, 1]));
        weights
    }

    fn spec(strides: Vec<[usize; 3]>) -> UNetSpec {
        let stages = strides.len();
        let shape = NetworkShape {
            network: &PLAIN_CONV_UNET,
            features: vec![2; stages],
            kernels: vec![[3; 3]; stages],
            strides,
            blocks_encoder: vec![1; stages],
            convs_decoder: vec![1; stages - 1],
            conv_bias: false,
            norm_eps: 1e-5,
        };
        UNetSpec { channels: 1, classes: 2, shape }
    }

    #[test]
    fn every_weight_of_a_residual_encoder_is_used_and_a_foreign_one_is_named() {
        let mut weights = residual_weights();
        let graph = Graph::unet(&spec(vec![[1; 3], [2; 3]]), &weights, 3).unwrap().finish();
        let count = |operator: &str| {
            let field = Message::default().text(4, operator).as_bytes().to_vec();
            graph.as_bytes().windows(field.len()).filter(|window| *window == field).count()
        };
        assert_eq!((count("Conv"), count("Add"), count("AveragePool"), count("LeakyRelu")), (10, 3, 1, 8));
        weights.push(tensor("encoder.attention.weight", &[1]));
        let error = Graph::unet(&spec(vec![[1; 3], [2; 3]]), &weights, 3).err().unwrap();
        assert!(error.contains("encoder.attention.weight"), "{error}");
    }
}
