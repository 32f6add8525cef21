//! Which case each position of a global batch takes: drawn anew each time, or dealt out evenly.

use rand::seq::SliceRandom;

use nnunet_core::rng::{Purpose, stream};

/// In which order cases are trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Shard {
    /// Each sample takes any case, with replacement, as nnU-Net does: every rank meets all cases.
    #[default]
    Random,
    /// Each position of the global batch has cases of its own and takes them in turn, in an order that changes with every
    /// turn and every epoch: a rank meets only those of its positions.
    Epoch,
}

/// The cases dealt out over the positions of a global batch.
///
/// Which positions a rank has depends on the number of ranks, what a position takes does not: so the global batch is the
/// same for any number of ranks, and with `n` ranks each meets `1 / n` of the cases. The deal is made once for a run, so
/// that a rank finds its cases where it has put them: in memory or on a local disk. A position meets each of its cases
/// equally often, up to one; where the cases cannot be divided evenly, those of a position that has fewer come up more
/// often by that much. Where there are fewer cases than positions, positions share cases.
pub(super) struct Deal {
    seed: u64,
    /// Numbers of the cases of each position.
    parts: Vec<Vec<usize>>,
}

impl Deal {
    /// Deals out `cases` cases over `positions`.
    pub(super) fn new(seed: u64, cases: usize, positions: usize) -> Self {
        let mut order: Vec<usize> = (0..cases).collect();
        order.shuffle(&mut stream(seed, Purpose::CaseOrder, u64::MAX, 0));
        let part = |position: usize| match cases < positions {
            true => vec![order[position % cases]],
            false => order.iter().copied().skip(position).step_by(positions).collect(),
        };
        Self { seed, parts: (0..positions).map(part).collect() }
    }

    /// The case that a position takes in an iteration of an epoch.
    pub(super) fn case(&self, epoch: u64, iteration: u64, position: usize) -> usize {
        let part = &self.parts[position];
        let (turn, place) = (iteration / part.len() as u64, iteration as usize % part.len());
        let mut order: Vec<usize> = part.clone();
        // A stream per turn: positions are far fewer than 2³², turns of an epoch too.
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
        let deal = Deal::new(7, 12, 3);
        for position in 0..3 {
            let turn = |epoch, turn: u64| -> Vec<usize> {
                (0..4).map(|place| deal.case(epoch, turn * 4 + place, position)).collect()
            };
            let sorted = |mut cases: Vec<usize>| {
                cases.sort_unstable();
                cases
            };
            assert_eq!(sorted(turn(0, 0)), sorted(deal.parts[position].clone()));
            assert_eq!(sorted(turn(0, 5)), sorted(turn(3, 1)));
            let orders: std::collections::BTreeSet<_> = (0..10).map(|number| turn(number / 5, number % 5)).collect();
            assert!(orders.len() > 3, "{orders:?}");
        }
        let mut all: Vec<usize> = deal.parts.into_iter().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, (0..12).collect::<Vec<_>>());
    }

    #[test]
    fn every_case_is_met_equally_often() {
        let deal = Deal::new(1, 20, 4);
        let mut counts = BTreeMap::<usize, usize>::new();
        for iteration in 0..53 {
            for position in 0..4 {
                *counts.entry(deal.case(2, iteration, position)).or_default() += 1;
            }
        }
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(counts.len() == 20 && most - least <= 1, "{counts:?}");
    }

    #[test]
    fn positions_share_cases_where_there_are_too_few() {
        let deal = Deal::new(1, 2, 5);
        let taken: std::collections::BTreeSet<_> = (0..5).map(|position| deal.case(0, 3, position)).collect();
        assert_eq!(taken.len(), 2);
    }
}
