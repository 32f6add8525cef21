//! Safetensors files of named tensors with a JSON description in the header.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Serialize, de::DeserializeOwned};

use super::{ParameterSpec, TensorState};
use nnunet_core::fsio;
use nnunet_core::mapped::MappedFile;

/// The only key of the header's metadata. A second one would make the bytes depend on hash map order.
const KEY: &str = "nnunet_dist";

/// A tensor file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {defect}")]
pub struct TensorFileError {
    /// Path of the file.
    pub path: PathBuf,
    /// Defect and remedy.
    pub defect: String,
}

impl TensorFileError {
    /// Creates an error about the file at `path`.
    pub fn new(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), defect: defect.to_string() }
    }
}

/// Writes tensors and their description atomically.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write_tensors(
    path: &Path,
    description: &impl Serialize,
    tensors: &[TensorState],
) -> Result<(), TensorFileError> {
    let bytes = serialize_tensors(path, description, tensors)?;
    fsio::write_atomically(path, |file| file.write_all(&bytes))
        .map_err(|error| TensorFileError::new(path, format!("cannot be written: {error}")))
}

/// Serializes tensors and their description into the bytes that [`write_tensors`] writes. `path` is used in errors
/// only.
///
/// # Errors
/// Returns an error if a tensor's number of values does not match its shape.
pub fn serialize_tensors(
    path: &Path,
    description: &impl Serialize,
    tensors: &[TensorState],
) -> Result<Vec<u8>, TensorFileError> {
    let fail = |error: &dyn std::fmt::Display| TensorFileError::new(path, format!("cannot be written: {error}"));
    let description = serde_json::to_string(description).map_err(|error| fail(&error))?;
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(Dtype::F32, tensor.spec.shape.clone(), bytemuck::cast_slice(&tensor.values));
        view.map(|view| (tensor.spec.name.as_str(), view)).map_err(|error| fail(&error))
    });
    let views = views.collect::<Result<Vec<_>, _>>()?;
    let metadata = HashMap::from([(KEY.to_owned(), description)]);
    safetensors::serialize(views, Some(metadata)).map_err(|error| fail(&error))
}

/// Reads a file written by [`write_tensors`]; tensors are returned sorted by name.
///
/// # Errors
/// Returns an error if the file is missing, damaged or was written by another program.
pub fn read_tensors<D: DeserializeOwned>(path: &Path) -> Result<(D, Vec<TensorState>), TensorFileError> {
    let bytes = MappedFile::open(path).map_err(|error| TensorFileError::new(path, error))?;
    parse_tensors(path, &bytes)
}

/// Like [`read_tensors`], for the contents of the file at `path`.
///
/// # Errors
/// Returns an error if the contents are damaged or were written by another program.
pub fn parse_tensors<D: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<(D, Vec<TensorState>), TensorFileError> {
    let fail = |defect: String| TensorFileError::new(path, defect);
    let damaged = |error: &dyn std::fmt::Display| fail(format!("not a valid safetensors file: {error}"));
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| damaged(&error))?;
    let foreign = || fail("has no description; was it written by nnunet-dist?".into());
    let description = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY)).ok_or_else(foreign)?;
    let description = serde_json::from_str(description).map_err(|error| fail(format!("description: {error}")))?;

    let contents = SafeTensors::deserialize(bytes).map_err(|error| damaged(&error))?;
    let mut tensors = contents
        .iter()
        .map(|(name, view)| match view.dtype() {
            Dtype::F32 => Ok(TensorState {
                spec: ParameterSpec { name: name.to_owned(), shape: view.shape().to_vec() },
                // Tensors may start at any byte offset, so values are copied one at a time.
                values: bytemuck::pod_collect_to_vec(view.data()),
            }),
            other => Err(fail(format!("tensor {name} is {other:?}, not F32"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    Ok((description, tensors))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize], values: &[f32]) -> TensorState {
        TensorState { spec: ParameterSpec { name: name.into(), shape: shape.to_vec() }, values: values.to_vec() }
    }

    #[test]
    fn what_is_written_is_read_and_the_bytes_are_reproducible() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let tensors = [tensor("a", &[2, 2], &[1.0, -2.0, f32::MIN_POSITIVE, 4.0]), tensor("b", &[1], &[0.5])];
        write_tensors(&path, &("description", 7), &tensors).unwrap();
        let (description, read): ((String, i32), _) = read_tensors(&path).unwrap();
        assert_eq!((description, read), (("description".to_owned(), 7), tensors.to_vec()));

        let first = std::fs::read(&path).unwrap();
        write_tensors(&path, &("description", 7), &tensors).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        write_tensors(&path, &1, &[tensor("a", &[64], &[1.0; 64])]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 7, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = read_tensors::<i32>(&path).unwrap_err().to_string();
            assert!(error.contains("weights"), "{error}");
        }
        std::fs::write(&path, &whole).unwrap();
        assert!(read_tensors::<String>(&path).unwrap_err().to_string().contains("description"));
    }
}
