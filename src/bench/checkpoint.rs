//! Saving and loading what a checkpoint holds: a network's weights and their momentum.

use std::path::Path;

use burn::backend::Flex;

use super::{Row, StepBench, Timings, Work, measure};
use crate::model::{TensorFileError, TensorState, UNet, read_tensors, write_tensors};

/// Measures writing (atomically, to the disk itself) and reading of the file in `folder`, for the network of `step`.
///
/// # Errors
/// The file cannot be written or read back.
pub fn checkpoint(step: &StepBench, folder: &Path, rounds: usize) -> Result<Vec<Row>, TensorFileError> {
    let path = folder.join("bench_checkpoint.safetensors");
    let tensors = tensors(step);
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

fn tensors(step: &StepBench) -> Vec<TensorState> {
    let network = UNet::<Flex>::new(step.spec(), 1, &Default::default());
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
    use crate::ops::Precision;

    #[test]
    fn weights_and_momentum_are_written_and_the_file_is_gone_in_the_end() {
        let step = StepBench {
            patch: [8; 3],
            batch_size: 1,
            channels: 1,
            classes: 2,
            features: vec![4, 8],
            precision: Precision::Fp32,
        };
        let folder = tempfile::tempdir().unwrap();
        let rows = checkpoint(&step, folder.path(), 2).unwrap();
        let weights: usize = tensors(&step).iter().map(|tensor| tensor.values.len()).sum();
        assert!(
            rows.iter()
                .map(|row| (row.name.as_str(), row.work.bytes as usize))
                .eq([("write", 4 * weights), ("read", 4 * weights)])
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
