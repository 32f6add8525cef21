//! Measuring of time and memory.

use std::time::Instant;

use nnunet_nn::Device;
use serde::Serialize;

/// Seconds of each run, without the warm-up.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Timings(Vec<f64>);

impl Timings {
    /// Timings of at least one run.
    pub fn new(seconds: Vec<f64>) -> Self {
        assert!(!seconds.is_empty(), "at least one run is measured");
        Self(seconds)
    }

    /// Seconds per part, if each run consisted of `parts` equal parts.
    pub fn divided_by(self, parts: usize) -> Self {
        Self(self.0.into_iter().map(|seconds| seconds / parts as f64).collect())
    }

    /// Median; the mean of the two middle values for an even number.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
    }

    /// Fastest run.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Slowest run.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }
}

/// Times `rounds` runs after a warm-up run.
///
/// # Errors
/// Returns the first error of a run.
pub fn measure<E>(rounds: usize, mut run: impl FnMut() -> Result<(), E>) -> Result<Timings, E> {
    run()?;
    let mut seconds = Vec::with_capacity(rounds.max(1));
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        run()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok(Timings::new(seconds))
}

/// Peak resident memory of this process so far; `None` if the kernel does not report it (`VmHWM`, Linux).
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Bytes in use on a device: used by all processes on the first GPU; peak of this process on the CPU.
pub fn memory_in_use(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => peak_resident_bytes(),
        #[cfg(feature = "nccl")]
        Device::Cuda => nnunet_comm::cuda::memory_in_use(0),
        #[cfg(not(feature = "nccl"))]
        Device::Cuda => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle() {
        assert_eq!(Timings::new(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Timings::new(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
    }

    #[test]
    fn first_run_is_not_measured() {
        let mut runs = 0;
        let timings = measure::<()>(3, || {
            runs += 1;
            Ok(())
        });
        assert_eq!((runs, timings.unwrap().0.len()), (4, 3));
    }
}
