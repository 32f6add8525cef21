//! Assignment of cases to the positions of a global batch: random, or evenly partitioned.

use rand::seq::SliceRandom;

use nnunet_core::rng::{Purpose, stream};

/// Order in which cases are drawn for training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Shard {
    /// Draw each sample from all cases with replacement, as nnU-Net does; every rank sees all cases.
    #[default]
    Random,
    /// Partition the cases over the positions of the global batch; each position visits its own cases in an order
    /// reshuffled on every pass and epoch, so a rank sees only the cases of its positions.
    Epoch,
}

/// A partition of the cases over the positions of a global batch.
///
/// The number of ranks determines only the positions of each rank, not the cases of a position: the global batch is the
/// same for any number of ranks, and with `n` ranks each sees `1 / n` of the cases. The partition is fixed for a run,
/// so that a rank finds its cases where it cached them, in memory or on a local disk. A position visits its cases
/// equally often, up to a difference of one. If the cases cannot be divided evenly, the cases of positions with fewer
/// cases come up correspondingly more often. If there are fewer cases than positions, positions share cases.
pub(super) struct CasePartition {
    seed: u64,
    /// Case indices of each position.
    parts: Vec<Vec<usize>>,
}

impl CasePartition {
    /// Partitions `cases` cases over `positions` positions.
    pub(super) fn new(seed: u64, cases: usize, positions: usize) -> Self {
        let mut order: Vec<usize> = (0..cases).collect();
        order.shuffle(&mut stream(seed, Purpose::CaseOrder, u64::MAX, 0));
        let part = |position: usize| match cases < positions {
            true => vec![order[position % cases]],
            false => order.iter().copied().skip(position).step_by(positions).collect(),
        };
        Self { seed, parts: (0..positions).map(part).collect() }
    }

    /// Returns the case of a position in an iteration of an epoch.
    pub(super) fn case(&self, epoch: u64, iteration: u64, position: usize) -> usize {
        let part = &self.parts[position];
        let (turn, place) = (iteration / part.len() as u64, iteration as usize % part.len());
        let mut order: Vec<usize> = part.clone();
        // One random stream per pass: positions and passes per epoch are far below 2^32.
        let index = (position as u64) << 32 | turn;
        order.shuffle(&mut stream(self.seed, Purpose::CaseOrder, epoch, index));
        order[place]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_position_takes_each_of_its_cases_in_turn_in_changing_order() {
        let partition = CasePartition::new(7, 12, 3);
        for position in 0..3 {
            let turn = |epoch, turn: u64| -> Vec<usize> {
                (0..4).map(|place| partition.case(epoch, turn * 4 + place, position)).collect()
            };
            let sorted = |mut cases: Vec<usize>| {
                cases.sort_unstable();
                cases
            };
            assert_eq!(sorted(turn(0, 0)), sorted(partition.parts[position].clone()));
            assert_eq!(sorted(turn(0, 5)), sorted(turn(3, 1)));
            let orders: std::collections::BTreeSet<_> = (0..10).map(|number| turn(number / 5, number % 5)).collect();
            assert!(orders.len() > 3, "{orders:?}");
        }
        let mut all: Vec<usize> = partition.parts.into_iter().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, (0..12).collect::<Vec<_>>());
    }

    #[test]
    fn every_case_is_met_equally_often() {
        let partition = CasePartition::new(1, 20, 4);
        let mut counts = BTreeMap::<usize, usize>::new();
        for iteration in 0..53 {
            for position in 0..4 {
                *counts.entry(partition.case(2, iteration, position)).or_default() += 1;
            }
        }
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(counts.len() == 20 && most - least <= 1, "{counts:?}");
    }

    #[test]
    fn positions_share_cases_where_there_are_too_few() {
        let partition = CasePartition::new(1, 2, 5);
        let taken: std::collections::BTreeSet<_> = (0..5).map(|position| partition.case(0, 3, position)).collect();
        assert_eq!(taken.len(), 2);
    }
}
