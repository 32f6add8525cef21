//! Clock synchronization between ranks.

use nnunet_comm::distributed::{CommError, Communicator};
use nnunet_core::trace;

/// Number of barriers whose end times are compared. The median excludes barriers that were delayed by a busy core.
const ROUNDS: usize = 21;

/// Offset of this process's clock from the clock of rank 0, in microseconds.
///
/// Every process counts time from its own origin. All ranks leave a barrier at about the same moment, so the difference
/// between the times at which they leave is the offset of their clocks, up to the latency of the barrier's last
/// message.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Clock {
    ahead_us: f64,
}

impl Clock {
    /// Measures the clock offset of all ranks. A collective.
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    pub fn compare(comm: &dyn Communicator) -> Result<Self, CommError> {
        let mut times = [0; ROUNDS * 8];
        for bytes in times.as_chunks_mut().0 {
            comm.barrier("comparison of the clocks")?;
            *bytes = trace::now_us().to_le_bytes();
        }
        let of_all = comm.all_gather_bytes(&times, "clocks")?;
        let first = of_all.first().map_or(&times[..], Vec::as_slice);
        let ends = |bytes: &[u8]| bytes.as_chunks().0.iter().copied().map(f64::from_le_bytes).collect::<Vec<_>>();
        Ok(Self { ahead_us: median(ends(&times).iter().zip(ends(first)).map(|(own, first)| own - first).collect()) })
    }

    /// Returns the offset in microseconds; positive if this clock is ahead of rank 0.
    pub fn ahead_us(self) -> f64 {
        self.ahead_us
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_barrier_does_not_move_the_clock() {
        assert_eq!(median(vec![5.0, 4.0, 900.0, 6.0, 5.0]), 5.0);
        assert_eq!(Clock::compare(&nnunet_comm::distributed::Single).unwrap(), Clock::default());
    }
}
