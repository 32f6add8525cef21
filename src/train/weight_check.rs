//! Check that all ranks have identical weights.

use std::time::Instant;

use burn::tensor::backend::Backend;
use rayon::prelude::*;

use nnunet_comm::distributed::{CommError, Communicator, Fault, describe_mismatch, mismatched_ranks};
use nnunet_nn::model::UNet;

/// Compares all weights bitwise over the ranks. Ranks apply the same averaged gradients to the same weights in the same
/// order, so differences indicate corrupted memory or network data, or a bug. A collective.
///
/// # Errors
/// Returns an error on every rank, naming the ranks that differ from the majority (from rank 0 if there is no
/// majority).
pub fn check_weights<B: Backend>(network: &UNet<B>, step: u64, comm: &dyn Communicator) -> Result<(), CommError> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    let began = Instant::now();
    let states = network.state();
    let hashes: Vec<u8> = states.par_iter().map(|state| hash(&state.values)).flat_map_iter(u64::to_le_bytes).collect();
    let odd = mismatched_ranks(comm, "weights", &hashes)?;
    if odd.is_empty() {
        return Ok(());
    }
    Err(CommError {
        rank: comm.rank(),
        operation: format!("weight check after step {step}"),
        elapsed_s: began.elapsed().as_secs_f64(),
        fault: Fault::Desync,
        reason: format!(
            "{} in its weights from the other {}: its memory, its GPU or the network has corrupted a value; \
             resume from the last checkpoint, and exclude that host if it happens again",
            describe_mismatch(&odd),
            comm.world_size() - odd.len(),
        ),
    })
}

/// Computes a 64-bit FNV-1a hash over words instead of bytes, which is four times as fast and as sensitive to a flipped
/// bit.
fn hash(values: &[f32]) -> u64 {
    values.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, value| {
        (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_counts() {
        let values = [1.0f32, -2.0, 0.0, 3.5];
        for index in 0..values.len() {
            for bit in 0..32 {
                let mut other = values;
                other[index] = f32::from_bits(other[index].to_bits() ^ (1 << bit));
                assert_ne!(hash(&values), hash(&other), "{index}, {bit}");
            }
        }
    }
}
