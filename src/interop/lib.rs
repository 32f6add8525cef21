//! Files of nnU-Net v2 and of what runs networks, there and back.
//!
//! [`import`] and [`import_preprocessed`] take over what nnU-Net has trained and preprocessed; [`export`] and
//! [`write_onnx`] write networks for it and for other programs; [`load_pretrained`] begins a training with weights from
//! anywhere. Pickles are only parsed (`pickle/`), so that a file from the Internet can do no harm.

mod error;
mod names;
mod nnunet_model;
mod onnx;
mod pickle;
mod preprocessed;
mod pretrained;
mod torch_file;

use std::ffi::OsStr;
use std::path::Path;

pub use error::InteropError;
pub use nnunet_model::{Destination, export, import, read_checkpoint};
pub use onnx::write_onnx;
pub use preprocessed::{Imported, Source, import_preprocessed};
pub use pretrained::{Pretrained, load_pretrained, read_weights};

use nnunet_nn::checkpoint::SavedModel;
use nnunet_nn::model::write_tensors;

/// Writes the weights alone, with nnU-Net's names and shapes, as a safetensors file whose header describes the model:
/// plans, `dataset.json`, configuration and the axes of mirroring, as JSON under the key `nnunet_dist`.
///
/// # Errors
/// The file cannot be written.
pub fn write_safetensors(model: &SavedModel, path: &Path) -> Result<(), InteropError> {
    let description = &model.description;
    let mut weights = model.weights.clone();
    if description.plans.configuration(&description.configuration)?.is_2d() {
        names::flatten(&mut weights);
    }
    Ok(write_tensors(path, description, &weights)?)
}

/// Whether a name from a file names something in the folder that it is joined to, not elsewhere.
fn is_file_name(name: &str) -> bool {
    Path::new(name).file_name() == Some(OsStr::new(name))
}

#[cfg(test)]
mod tests {
    use super::is_file_name;

    #[test]
    fn names_do_not_leave_their_folder() {
        assert!(is_file_name("nnUNetPlans_3d_fullres"));
        for name in ["", ".", "..", "../a", "a/b", "/a", "a/"] {
            assert!(!is_file_name(name), "{name}");
        }
    }
}
