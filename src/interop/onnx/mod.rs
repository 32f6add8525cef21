//! A network as an ONNX graph, for ONNX Runtime, TensorRT and what else reads it.
//!
//! The input `image` is `(n, channel, z, y, x)` and the output `logits` `(n, class, z, y, x)`, in 2D without z; batch and
//! spatial extents are free, the latter multiples of the product of the strides. Preprocessing, windows and mirroring are
//! not part of the graph; the model's plans are in its metadata.

mod graph;
mod message;

use std::io::Write;
use std::path::Path;

use self::graph::Graph;
use self::message::Message;
use super::InteropError;
use nnunet_core::fsio;
use nnunet_nn::checkpoint::SavedModel;

/// ONNX 1.12's format, the first with [`OPSET`].
const IR_VERSION: u64 = 8;
/// Of all operators used, 6 (leaky ReLU: 16) is the newest version; every runtime since 2022 has 17.
const OPSET: u64 = 17;
/// A protocol buffer cannot be longer.
const MAX_LEN: usize = i32::MAX as usize;

/// Writes the network with its highest-resolution head.
///
/// # Errors
/// The network has a layer that is not known here, is larger than a protocol buffer may be, or the file cannot be written.
pub fn write_onnx(model: &SavedModel, path: &Path) -> Result<(), InteropError> {
    let fail = |defect: String| InteropError::new(path, format!("cannot be written: {defect}"));
    let description = &model.description;
    let configuration = description.plans.configuration(&description.configuration)?;
    let axes = configuration.patch_size.len();
    let graph = Graph::unet(&description.network_spec()?, &model.weights, axes).map_err(fail)?;
    let metadata = serde_json::to_string(description).map_err(|error| fail(error.to_string()))?;

    let mut file = Message::default();
    file.number(1, IR_VERSION).text(2, "nnunet-dist").text(3, nnunet_core::VERSION);
    file.message(7, &graph.finish());
    file.message(8, Message::default().text(1, "").number(2, OPSET));
    file.message(14, Message::default().text(1, "nnunet_dist").text(2, &metadata));
    let bytes = file.as_bytes();
    if bytes.len() > MAX_LEN {
        return Err(fail(format!("{} MB are more than an ONNX file can hold", bytes.len() >> 20)));
    }
    fsio::write_atomically(path, |file| file.write_all(bytes)).map_err(|error| fail(error.to_string()))
}
