//! Initial weights for training.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{InteropError, names, nnunet_model};
use nnunet_core::mapped::MappedFile;
use nnunet_nn::checkpoint::SavedModel;
use nnunet_nn::model::{ParameterSpec, TensorState};

/// Name part of the layers that map features to logits, the only ones that depend on the classes (nnU-Net's
/// `load_pretrained_weights.py` always skips them).
const HEADS: &str = ".seg_layers.";

/// First bytes of a zip archive, the container of PyTorch's files.
const ZIP: &[u8; 4] = b"PK\x03\x04";

/// Result of loading pretrained weights into a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pretrained {
    /// Number of tensors loaded from the file.
    pub taken: usize,
    /// Heads that keep their initial weights, because the file has another number of classes.
    pub kept: Vec<String>,
}

/// Reads weights by their canonical names: from a checkpoint of this program or of nnU-Net, or from a safetensors file
/// with PyTorch's names.
///
/// # Errors
/// Returns an error if the file is missing, damaged, or of another kind.
pub fn read_weights(path: &Path) -> Result<Vec<TensorState>, InteropError> {
    if path.is_dir() {
        return Ok(SavedModel::read(path)?.weights);
    }
    let fail = |error: std::io::Error| InteropError::new(path, error);
    let mut file = File::open(path).map_err(fail)?;
    let mut magic = [0; 4];
    // A shorter file is of neither kind.
    let is_zip = file.read_exact(&mut magic).is_ok() && magic == *ZIP;
    if is_zip { nnunet_model::read_weights(path) } else { read_safetensors(path, &file) }
}

/// Replaces the weights in `state`, the parameters of a network, by those of a file, matched by name.
///
/// # Errors
/// Returns an error if the file cannot be read or contains the weights of another network. Heads for another number of
/// classes are not an error.
pub fn load_pretrained(path: &Path, state: &mut [TensorState]) -> Result<Pretrained, InteropError> {
    let fail = |defect: String| InteropError::new(path, defect);
    let mut weights: std::collections::HashMap<_, _> =
        read_weights(path)?.into_iter().map(|tensor| (tensor.spec.name.clone(), tensor)).collect();
    let mut pretrained = Pretrained { taken: 0, kept: Vec::new() };
    for tensor in state {
        let (name, ours) = (&tensor.spec.name, &tensor.spec.shape);
        let found = weights.remove(name).ok_or_else(|| {
            fail(format!(
                "has no tensor {name}, which the network requires with shape {ours:?}; is it another network?"
            ))
        })?;
        let theirs = &found.spec.shape;
        if ours == theirs {
            tensor.values = found.values;
            pretrained.taken += 1;
        } else if name.contains(HEADS) && ours.get(1..) == theirs.get(1..) {
            pretrained.kept.push(name.clone());
        } else {
            return Err(fail(format!(
                "tensor {name} has shape {theirs:?}, the network requires {ours:?}; is it another network?"
            )));
        }
    }
    match weights.values().min_by_key(|tensor| &tensor.spec.name) {
        Some(TensorState { spec: ParameterSpec { name, shape }, .. }) => {
            Err(fail(format!("has an unexpected tensor {name} of shape {shape:?}; is it another network?")))
        }
        None => Ok(pretrained),
    }
}

fn read_safetensors(path: &Path, file: &File) -> Result<Vec<TensorState>, InteropError> {
    let fail = |defect: String| InteropError::new(path, defect);
    let bytes = MappedFile::from_file(file, path).map_err(|error| fail(error.to_string()))?;
    let contents = SafeTensors::deserialize(&bytes).map_err(|error| {
        fail(format!(
            "neither a checkpoint of nnunet-dist (a folder), nor a .pth of nnU-Net, nor a safetensors file: {error}"
        ))
    })?;
    let mut weights = Vec::new();
    for (name, view) in contents.iter() {
        let values = values(&view).ok_or_else(|| fail(format!("tensor {name} is {:?}, not a float", view.dtype())))?;
        let mut shape = view.shape().to_vec();
        names::to_3d(&mut shape);
        weights.push(TensorState { spec: ParameterSpec { name: name.to_owned(), shape }, values });
    }
    let named = weights.into_iter().filter_map(|mut tensor| {
        tensor.spec.name = names::canonical_name(&tensor.spec.name)?.to_owned();
        Some(tensor)
    });
    Ok(named.collect())
}

/// Converts a tensor to f32. Tensors may start at any byte offset, so the elements are copied one at a time.
fn values(view: &TensorView) -> Option<Vec<f32>> {
    let bytes = view.data();
    Some(match view.dtype() {
        Dtype::F32 => bytemuck::pod_collect_to_vec(bytes),
        Dtype::F64 => bytemuck::pod_collect_to_vec::<u8, f64>(bytes).into_iter().map(|value| value as f32).collect(),
        Dtype::F16 => bytemuck::pod_collect_to_vec::<u8, half::f16>(bytes).into_iter().map(f32::from).collect(),
        Dtype::BF16 => bytemuck::pod_collect_to_vec::<u8, half::bf16>(bytes).into_iter().map(f32::from).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn tensor(name: &str, shape: &[usize], value: f32) -> TensorState {
        let spec = ParameterSpec { name: name.into(), shape: shape.to_vec() };
        TensorState { values: vec![value; spec.len()], spec }
    }

    fn file(folder: &tempfile::TempDir, weights: &[TensorState]) -> PathBuf {
        let path = folder.path().join("weights.safetensors");
        nnunet_nn::model::write_tensors(&path, &0, weights).unwrap();
        path
    }

    const CONV: &str = "encoder.stages.0.0.convs.0.conv.weight";
    const HEAD: &str = "decoder.seg_layers.0.weight";

    #[test]
    fn weights_go_by_name_and_heads_of_other_classes_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path =
            file(&folder, &[tensor(&format!("module.{CONV}"), &[4, 1, 3, 3], 2.0), tensor(HEAD, &[3, 4, 1, 1], 2.0)]);
        let mut state = [tensor(CONV, &[4, 1, 1, 3, 3], 1.0), tensor(HEAD, &[5, 4, 1, 1, 1], 1.0)];
        let pretrained = load_pretrained(&path, &mut state).unwrap();
        assert_eq!(pretrained, Pretrained { taken: 1, kept: vec![HEAD.to_owned()] });
        assert_eq!(state, [tensor(CONV, &[4, 1, 1, 3, 3], 2.0), tensor(HEAD, &[5, 4, 1, 1, 1], 1.0)]);

        let mut state = [tensor(CONV, &[4, 1, 1, 3, 3], 1.0), tensor(HEAD, &[3, 4, 1, 1, 1], 1.0)];
        assert_eq!(load_pretrained(&path, &mut state).unwrap(), Pretrained { taken: 2, kept: Vec::new() });
    }

    #[test]
    fn what_does_not_fit_is_named_with_both_shapes() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, &[tensor(CONV, &[4, 1, 3, 3], 2.0)]);
        let error = |state: &mut [TensorState]| load_pretrained(&path, state).unwrap_err().to_string();
        let message = error(&mut [tensor(CONV, &[4, 2, 1, 3, 3], 1.0)]);
        assert!(
            message.contains(&format!("tensor {CONV} has shape [4, 1, 1, 3, 3], the network requires [4, 2, 1, 3, 3]")),
            "{message}"
        );
        let message = error(&mut [tensor(HEAD, &[3, 4, 1, 1, 1], 1.0)]);
        assert!(message.contains(&format!("no tensor {HEAD}")), "{message}");
        let message = error(&mut []);
        assert!(message.contains(&format!("unexpected tensor {CONV} of shape [4, 1, 1, 3, 3]")), "{message}");
        std::fs::write(&path, "no weights").unwrap();
        assert!(error(&mut []).contains("neither a checkpoint"));
    }
}
