//! Export of a network as an ONNX graph, for ONNX Runtime, TensorRT and other runtimes.
//!
//! The input `image` is `(n, channel, z, y, x)` and the output `logits` `(n, class, z, y, x)`, without z in 2D. Batch
//! size and spatial extents are free; the latter must be multiples of the product of the strides. Preprocessing,
//! windows and mirroring are not part of the graph; the model's plans are in its metadata.

mod graph;
mod message;

use std::io::Write;
use std::path::Path;

use self::graph::Graph;
use self::message::Message;
use super::InteropError;
use nnunet_core::fsio;
use nnunet_nn::checkpoint::SavedModel;

/// Format version of ONNX 1.12, the first with [`OPSET`].
const IR_VERSION: u64 = 8;
/// Operator set supported by all runtimes since 2022; the newest operator used (leaky ReLU) needs 16.
const OPSET: u64 = 17;
/// Maximum length of a protocol buffer.
const MAX_LEN: usize = i32::MAX as usize;

/// Writes the network with its highest-resolution head.
///
/// # Errors
/// Returns an error if the network has an unsupported layer or exceeds the size of a protocol buffer, or if the file
/// cannot be written.
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
        return Err(fail(format!("{} MB exceed the size limit of an ONNX file", bytes.len() >> 20)));
    }
    fsio::write_atomically(path, |file| file.write_all(bytes)).map_err(|error| fail(error.to_string()))
}
