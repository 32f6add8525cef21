//! Detection of slow ranks and their cost.

use serde::{Deserialize, Serialize};

use nnunet_comm::distributed::{CommError, Communicator};

/// Times of a training step on one rank, in seconds, averaged over an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankTimes {
    /// Total time.
    pub total: f64,
    /// Time waiting for data.
    pub data_wait: f64,
    /// Time waiting in collectives.
    pub communication: f64,
}

impl RankTimes {
    /// Returns the time for which other ranks have to wait: all but the time waiting in collectives.
    fn busy(&self) -> f64 {
        self.total - self.communication
    }
}

/// Times of a step over all ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct JobTimes {
    /// Means over the ranks.
    pub mean: RankTimes,
    /// Difference between the busy time of the slowest rank and the mean, in seconds: the part of the waiting in
    /// collectives that a faster network would not save.
    pub straggling: f64,
    /// Number of the slowest rank, busy time of the median rank, busy time of the slowest rank.
    pub slowest: (usize, f64, f64),
}

/// Minimum cost of a slow rank to be reported, as a fraction of the step time.
const WORTH_NAMING: f64 = 0.1;

impl JobTimes {
    /// Gathers the times of all ranks. A collective.
    ///
    /// # Errors
    /// Returns an error if the collective fails.
    pub fn gather(own: RankTimes, comm: &dyn Communicator) -> Result<Self, CommError> {
        let message: Vec<u8> =
            [own.total, own.data_wait, own.communication].into_iter().flat_map(f64::to_le_bytes).collect();
        let ranks: Vec<RankTimes> = comm
            .all_gather_bytes(&message, "times of the steps")?
            .iter()
            .map(|message| {
                let value =
                    |index: usize| message.as_chunks::<8>().0.get(index).copied().map_or(0.0, f64::from_le_bytes);
                RankTimes { total: value(0), data_wait: value(1), communication: value(2) }
            })
            .collect();
        Ok(Self::of(&ranks))
    }

    fn of(ranks: &[RankTimes]) -> Self {
        let mean = |value: fn(&RankTimes) -> f64| ranks.iter().map(value).sum::<f64>() / ranks.len() as f64;
        let mut order: Vec<usize> = (0..ranks.len()).collect();
        order.sort_by(|&a, &b| ranks[a].busy().total_cmp(&ranks[b].busy()));
        let (median, slowest) = (order[(order.len() - 1) / 2], order[order.len() - 1]);
        let busy = ranks[slowest].busy();
        Self {
            mean: RankTimes {
                total: mean(|times| times.total),
                data_wait: mean(|times| times.data_wait),
                communication: mean(|times| times.communication),
            },
            straggling: busy - mean(RankTimes::busy),
            slowest: (slowest, ranks[median].busy(), busy),
        }
    }

    /// Returns a warning about the slowest rank, if its cost is high enough.
    pub fn complaint(&self) -> Option<String> {
        let (rank, median, slowest) = self.slowest;
        let cost = (slowest - median) / self.mean.total;
        (cost > WORTH_NAMING).then(|| {
            format!(
                "rank {rank} is the slowest: busy for {:.3} s per step, median rank {:.3} s; the others wait \
                 for it {:.0} % of the time",
                slowest,
                median,
                100.0 * cost
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(total: f64, communication: f64) -> RankTimes {
        RankTimes { total, data_wait: 0.0, communication }
    }

    #[test]
    fn the_rank_that_waits_least_is_the_slowest() {
        let times = JobTimes::of(&[rank(10.0, 5.0), rank(10.0, 1.0), rank(10.0, 5.0)]);
        assert_eq!(times.slowest, (1, 5.0, 9.0));
        assert!((times.straggling - (9.0 - 19.0 / 3.0)).abs() < 1e-12);
        let complaint = times.complaint().unwrap();
        assert!(complaint.starts_with("rank 1 is the slowest: busy for 9.000 s"), "{complaint}");
        assert!(complaint.contains("40 % of the time"), "{complaint}");
    }

    #[test]
    fn ordinary_differences_are_not_worth_a_line() {
        assert_eq!(JobTimes::of(&[rank(10.0, 2.0), rank(10.0, 1.5)]).complaint(), None);
        assert_eq!(JobTimes::of(&[rank(10.0, 0.0)]).complaint(), None);
    }
}
