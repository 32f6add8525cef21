//! All-reduce of the loss sums.

use nnunet_comm::distributed::{CommError, Communicator, ReduceOp};
use nnunet_nn::loss::{LossSums, SegmentationLoss, select_hardest};

/// Sums over all ranks.
pub struct Reduced {
    /// Sums of each head.
    pub heads: Vec<LossSums>,
    /// Whether any rank has been asked to stop. It is sent with the sums, so that all ranks learn it at the same step
    /// without a separate exchange.
    pub stop_requested: bool,
}

/// Adds up the sums of all ranks, in one all-reduce for all heads. For a loss on the hardest voxels, first selects
/// those over all ranks and completes the heads' own sums.
///
/// Without batch Dice, every sample has its own sums, which each rank writes to its section of the global list.
///
/// # Errors
/// Returns an error if the collective fails.
pub fn reduce_sums(
    loss: &SegmentationLoss,
    heads: &mut [&mut LossSums],
    stop_requested: bool,
    comm: &dyn Communicator,
) -> Result<Reduced, CommError> {
    select_hardest(loss, heads, |counts| comm.all_reduce_f64(counts, ReduceOp::Sum, "counts of the hardest voxels"))?;
    let (slots, slot) = if loss.batch_dice { (1, 0) } else { (comm.world_size(), comm.rank()) };
    let mut flat = vec![f64::from(u8::from(stop_requested))];
    for sums in &*heads {
        flat.extend([sums.cross_entropy, sums.count]);
        let begin = flat.len() + slot * 3 * sums.dice.len();
        flat.resize(flat.len() + slots * 3 * sums.dice.len(), 0.0);
        let dice = sums.dice.iter().flatten();
        flat[begin..].iter_mut().zip(dice).for_each(|(place, sum)| *place = *sum);
    }
    comm.all_reduce_f64(&mut flat, ReduceOp::Sum, "loss sums")?;
    let stop_requested = flat[0] > 0.0;
    let mut rest = &flat[1..];
    let reduced = heads.iter().map(|sums| {
        let (sums, tail) = rest.split_at(2 + slots * 3 * sums.dice.len());
        rest = tail;
        let dice = sums[2..].as_chunks().0.to_vec();
        LossSums { dice, cross_entropy: sums[0], count: sums[1], hardest: None }
    });
    Ok(Reduced { heads: reduced.collect(), stop_requested })
}
