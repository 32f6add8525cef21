//! The loss's sums over all ranks.

use crate::dist::{CommError, Communicator, ReduceOp};
use crate::loss::LossSums;

/// Adds up the sums of every rank, in one all-reduce for all heads.
///
/// Without batch Dice every sample has sums of its own, which each rank writes into its place of the global list.
///
/// # Errors
/// Of the collective.
pub fn reduce_sums(heads: &[&LossSums], batch_dice: bool, comm: &dyn Communicator) -> Result<Vec<LossSums>, CommError> {
    let (slots, slot) = if batch_dice { (1, 0) } else { (comm.world_size(), comm.rank()) };
    let mut flat = Vec::new();
    for sums in heads {
        flat.extend([sums.cross_entropy, sums.count]);
        let begin = flat.len() + slot * 3 * sums.dice.len();
        flat.resize(flat.len() + slots * 3 * sums.dice.len(), 0.0);
        let dice = sums.dice.iter().flatten();
        flat[begin..].iter_mut().zip(dice).for_each(|(place, sum)| *place = *sum);
    }
    comm.all_reduce_f64(&mut flat, ReduceOp::Sum, "loss sums")?;
    let mut rest = flat.as_slice();
    let reduced = heads.iter().map(|sums| {
        let (sums, tail) = rest.split_at(2 + slots * 3 * sums.dice.len());
        rest = tail;
        let dice = sums[2..].as_chunks().0.to_vec();
        LossSums { dice, cross_entropy: sums[0], count: sums[1] }
    });
    Ok(reduced.collect())
}
