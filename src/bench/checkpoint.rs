//! Benchmark of checkpoints: the copy that blocks training, the background write, and the read.

use std::path::Path;

use burn::backend::Flex;

use super::{Row, Timings, Work, measure};
use nnunet_nn::checkpoint::{HEADER, NETWORK, OPTIMIZER, read_folder, write_folder};
use nnunet_nn::model::{TensorFileError, TensorState, UNet, UNetSpec, parse_tensors, serialize_tensors};

/// Measures the copy of the network's weights and momentum, and writing (to disk, with checksums) and reading a
/// checkpoint of them in `folder`.
///
/// # Errors
/// Returns an error if the checkpoint cannot be written or read back.
pub fn checkpoint(network: &UNetSpec, folder: &Path, rounds: usize) -> Result<Vec<Row>, TensorFileError> {
    let path = folder.join("bench_checkpoint");
    let network = UNet::<Flex>::new(network.clone(), 1, &Default::default());
    let copy = || -> [Vec<TensorState>; 2] {
        let state = || network.parameters().iter().map(|parameter| parameter.state()).collect();
        [state(), state()]
    };
    let [weights, momentum] = copy();
    let bytes = 4 * weights.iter().chain(&momentum).map(|tensor| tensor.values.len()).sum::<usize>();
    let row = |name: &str, seconds: Timings| {
        let work = Work { items: 1.0, bytes: bytes as f64, ..Work::default() };
        Row { name: name.into(), unit: "checkpoints", work, seconds }
    };
    let pause = measure(rounds, || {
        drop(copy());
        Ok::<_, TensorFileError>(())
    })?;
    let written = measure(rounds, || {
        let files = [
            (HEADER, b"{}".to_vec()),
            (NETWORK, serialize_tensors(&path, &(), &weights)?),
            (OPTIMIZER, serialize_tensors(&path, &(), &momentum)?),
        ];
        write_folder(&path, &files).map_err(|error| TensorFileError::new(&path, error))
    })?;
    let read = measure(rounds, || {
        let (_, files) = read_folder(&path, [NETWORK, OPTIMIZER])?;
        files.iter().try_for_each(|bytes| parse_tensors::<()>(&path, bytes).map(drop))
    })?;
    std::fs::remove_dir_all(&path).map_err(|error| TensorFileError::new(&path, error))?;
    Ok(vec![row("pause", pause), row("write", written), row("read", read)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_weights_and_momentum_and_removes_the_checkpoint() {
        let network = super::super::plain_network([8; 3], 1, 2, &[4, 8]);
        let folder = tempfile::tempdir().unwrap();
        let rows = checkpoint(&network, folder.path(), 2).unwrap();
        let parameters = UNet::<Flex>::new(network.clone(), 1, &Default::default());
        let values: usize = parameters.parameters().iter().map(|parameter| parameter.spec.len()).sum();
        assert!(
            rows.iter()
                .map(|row| (row.name.as_str(), row.work.bytes as usize))
                .eq(["pause", "write", "read"].map(|name| (name, 2 * 4 * values)))
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
