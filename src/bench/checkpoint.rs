//! Saving and loading what a checkpoint holds: a network's weights and their momentum.

use std::path::Path;

use burn::backend::Flex;

use super::{Row, Timings, Work, measure};
use crate::model::{TensorFileError, TensorState, UNet, UNetSpec, read_tensors, write_tensors};

/// Measures writing (atomically, to the disk itself) and reading of the file in `folder`, for such a network.
///
/// # Errors
/// The file cannot be written or read back.
pub fn checkpoint(network: &UNetSpec, folder: &Path, rounds: usize) -> Result<Vec<Row>, TensorFileError> {
    let path = folder.join("bench_checkpoint.safetensors");
    let tensors = tensors(network);
    let bytes = 4 * tensors.iter().map(|tensor| tensor.values.len()).sum::<usize>();
    let row = |name: &str, seconds: Timings| {
        let work = Work { items: 1.0, bytes: bytes as f64, ..Work::default() };
        Row { name: name.into(), unit: "files", work, seconds }
    };
    let written = measure(rounds, || write_tensors(&path, &(), &tensors))?;
    let read = measure(rounds, || read_tensors::<()>(&path).map(drop))?;
    std::fs::remove_file(&path).map_err(|error| TensorFileError::new(&path, error))?;
    Ok(vec![row("write", written), row("read", read)])
}

fn tensors(network: &UNetSpec) -> Vec<TensorState> {
    let network = UNet::<Flex>::new(network.clone(), 1, &Default::default());
    let weights: Vec<_> = network.parameters().iter().map(|parameter| parameter.state()).collect();
    let momenta = weights.iter().cloned().map(|mut tensor| {
        tensor.spec.name.insert_str(0, "optimizer.");
        tensor
    });
    momenta.chain(weights.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_momentum_are_written_and_the_file_is_gone_in_the_end() {
        let network = super::super::plain_network([8; 3], 1, 2, &[4, 8]);
        let folder = tempfile::tempdir().unwrap();
        let rows = checkpoint(&network, folder.path(), 2).unwrap();
        let weights: usize = tensors(&network).iter().map(|tensor| tensor.values.len()).sum();
        assert!(
            rows.iter()
                .map(|row| (row.name.as_str(), row.work.bytes as usize))
                .eq([("write", 4 * weights), ("read", 4 * weights)])
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
