//! Import and export of files of nnU-Net v2 and of inference runtimes.
//!
//! [`import`] and [`import_preprocessed`] read trained models and preprocessed data of nnU-Net; [`export`] and
//! [`write_onnx`] write networks for it and for other programs; [`load_pretrained`] initializes a network for training.
//! Pickles are only parsed (`pickle/`), never executed, so untrusted files cannot run code.
//!
//! Export of a trained network as ONNX:
//!
//! ```no_run
//! use std::path::Path;
//!
//! use nnunet_nn::checkpoint::SavedModel;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = SavedModel::read(Path::new("hippocampus/runs/3d_fullres/fold_0/checkpoint_latest"))?;
//! nnunet_interop::write_onnx(&model, Path::new("hippocampus.onnx"))?;
//! # Ok(())
//! # }
//! ```

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
pub use preprocessed::{Imported, PreprocessedSource, import_preprocessed};
pub use pretrained::{Pretrained, load_pretrained, read_weights};

use nnunet_nn::checkpoint::SavedModel;
use nnunet_nn::model::write_tensors;

/// Writes only the weights, with nnU-Net's names and shapes, as a safetensors file. The header describes the model:
/// plans, `dataset.json`, configuration and mirror axes, as JSON under the key `nnunet_dist`.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write_safetensors(model: &SavedModel, path: &Path) -> Result<(), InteropError> {
    let description = &model.description;
    let mut weights = model.weights.clone();
    if description.plans.configuration(&description.configuration)?.is_2d() {
        names::to_2d(&mut weights);
    }
    Ok(write_tensors(path, description, &weights)?)
}

/// Returns whether `name` is a plain file name, which cannot leave the folder it is joined to.
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
