//! Named tensors in a safetensors file, with a JSON description in its header.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Serialize, de::DeserializeOwned};

use super::{ParameterSpec, TensorState};
use nnunet_core::fsio;

/// The one key of the header's metadata: a second would make the bytes depend on the order of a hash map.
const KEY: &str = "nnunet_dist";

/// A weights or checkpoint file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {defect}")]
pub struct TensorFileError {
    /// The file in question.
    pub path: PathBuf,
    /// What is wrong with it and what to do.
    pub defect: String,
}

impl TensorFileError {
    /// A defect of the file at `path`.
    pub fn new(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), defect: defect.to_string() }
    }
}

/// Writes tensors and their description; the file is there wholly or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_tensors(
    path: &Path,
    description: &impl Serialize,
    tensors: &[TensorState],
) -> Result<(), TensorFileError> {
    let bytes = serialize_tensors(path, description, tensors)?;
    fsio::write_atomically(path, |file| file.write_all(&bytes))
        .map_err(|error| TensorFileError::new(path, format!("cannot be written: {error}")))
}

/// The contents of a file that [`write_tensors`] would write to `path`.
///
/// # Errors
/// The tensors have shapes that are not theirs.
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

/// Reads what [`write_tensors`] has written; tensors come sorted by name.
///
/// # Errors
/// The file is missing, damaged, or of another program.
pub fn read_tensors<D: DeserializeOwned>(path: &Path) -> Result<(D, Vec<TensorState>), TensorFileError> {
    let file = File::open(path).map_err(|error| TensorFileError::new(path, error))?;
    // SAFETY: the file is only read; files of this kind are replaced by a rename, never changed in place.
    let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| TensorFileError::new(path, error))?;
    parse_tensors(path, &bytes)
}

/// As [`read_tensors`], of the contents of the file at `path`.
///
/// # Errors
/// The contents are damaged, or of another program.
pub fn parse_tensors<D: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<(D, Vec<TensorState>), TensorFileError> {
    let fail = |defect: String| TensorFileError::new(path, defect);
    let damaged = |error: &dyn std::fmt::Display| fail(format!("not a whole safetensors file: {error}"));
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
                // Tensors lie at any byte offset, so they are copied out one value at a time.
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
