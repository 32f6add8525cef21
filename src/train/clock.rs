//! One clock for all ranks.

use nnunet_comm::distributed::{CommError, Communicator};
use nnunet_core::trace;

/// Barriers whose ends are compared; the median of so many leaves out those that a busy core has delayed.
const ROUNDS: usize = 21;

/// How far this process's times are ahead of rank 0's, in microseconds.
///
/// Every process counts time from an origin of its own. All leave a barrier at about the same moment, so the difference of
/// the times at which they do is the difference of their clocks, to within the time that a barrier's last message takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Clock {
    ahead_us: f64,
}

impl Clock {
    /// Compares the clocks of all ranks. A collective.
    ///
    /// # Errors
    /// A rank is gone.
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

    /// By how many microseconds rank 0's clock is behind this one.
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
