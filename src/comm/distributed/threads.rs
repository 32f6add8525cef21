//! Number of threads per rank, chosen so that the ranks of a host do not compete for its cores.

use nnunet_core::host::host_name;
use std::env;
use std::fs;
use std::num::NonZero;
use std::thread;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{CommError, Communicator, Fault};

const OPERATION: &str = "division of CPU cores";

/// Machine and cores of a rank, exchanged to divide the cores.
#[derive(Debug, Serialize, Deserialize)]
struct RankCores {
    /// Identical for all processes under one kernel, also in containers, so core numbers mean the same to them.
    machine: String,
    /// Cores on which this process may run.
    cores: Vec<usize>,
}

/// Divides the CPU cores among the ranks of each host and limits this process to its share, which is returned.
///
/// A core that `k` ranks may use counts `1/k` for each of them. So ranks that a launcher has bound to separate cores
/// (as Open MPI does by default) keep them, and ranks that share an affinity mask (Slurm's allocation, a container, the
/// whole machine) divide it. A CPU quota of the control group is divided among the ranks of the host. Every rank gets
/// at least one thread.
///
/// The share becomes the size of rayon's global pool and `OMP_NUM_THREADS`, and `OMP_WAIT_POLICY` becomes `passive`: an
/// OpenMP thread that spins while it waits takes the core from another pool. Values that the user has set for these
/// variables or for `RAYON_NUM_THREADS` are kept. A collective.
///
/// [`init`](super::init) calls it; a command that never joins a job calls it with [`Single`](super::Single). It must
/// run before the OpenMP runtime is loaded (with oneDNN) and before rayon is used, since both read the settings only
/// once, and while this is the only thread, since it sets environment variables.
///
/// # Errors
///
/// Returns an error if the collective fails.
pub fn divide_threads(comm: &dyn Communicator) -> Result<usize, CommError> {
    let began = Instant::now();
    let here = RankCores { machine: machine(), cores: usable_cores() };
    let message = serde_json::to_vec(&here).expect("strings and integers can be written as JSON");
    let all_ranks: Result<Vec<RankCores>, _> =
        comm.all_gather_bytes(&message, OPERATION)?.iter().map(|message| serde_json::from_slice(message)).collect();
    let all_ranks = all_ranks.map_err(|error| CommError {
        rank: comm.rank(),
        operation: OPERATION.into(),
        elapsed_s: began.elapsed().as_secs_f64(),
        fault: Fault::Disagreement,
        reason: format!("another rank runs a different version of the program: {error}"),
    })?;
    let quota = thread::available_parallelism().map_or(usize::MAX, NonZero::get);
    let threads = share(&all_ranks, &here, quota, comm.local_size());
    limit_to(threads);
    Ok(threads)
}

/// Computes the number of threads for the rank at `here`. `quota` is the number of cores that affinity and control
/// group allow for this process; if it is below the affinity alone, the ranks of the host share it.
fn share(ranks: &[RankCores], here: &RankCores, quota: usize, local_size: usize) -> usize {
    let neighbours: Vec<_> = ranks.iter().filter(|rank| rank.machine == here.machine).collect();
    let users_of = |core: &usize| neighbours.iter().filter(|rank| rank.cores.contains(core)).count();
    let mut cores: f64 = here.cores.iter().map(|core| 1.0 / users_of(core).max(1) as f64).sum();
    if quota < here.cores.len() {
        cores = cores.min(quota as f64 / local_size as f64);
    }
    // Tolerance for rounding: three thirds must add up to one core.
    ((cores + 1e-6) as usize).max(1)
}

fn limit_to(threads: usize) {
    set_default("OMP_NUM_THREADS", &threads.to_string());
    set_default("OMP_WAIT_POLICY", "passive");
    if env::var_os("RAYON_NUM_THREADS").is_none()
        && let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()
    {
        tracing::debug!("the thread pool keeps its size: {error}");
    }
}

/// Sets an environment variable unless the user has set it.
fn set_default(name: &str, value: &str) {
    if env::var_os(name).is_none() {
        // SAFETY: none of our threads exists yet (see `divide_threads`), and the helper threads of MPI, if it runs,
        // read the environment only during initialization.
        unsafe { env::set_var(name, value) };
    }
}

/// Returns an ID of the running kernel, or the host name if it is not available.
fn machine() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_else(|_| host_name())
}

/// Returns the numbers of the cores in this process's affinity mask.
#[cfg(target_os = "linux")]
fn usable_cores() -> Vec<usize> {
    // SAFETY: `cpu_set_t` is plain bits, for which zero is valid; the kernel writes no more than the stated size.
    let (failed, set) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(0, size_of_val(&set), &mut set) != 0, set)
    };
    if failed {
        return all_cores();
    }
    // SAFETY: the numbers are below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

/// Returns all cores, on systems without affinity.
#[cfg(not(target_os = "linux"))]
fn usable_cores() -> Vec<usize> {
    all_cores()
}

fn all_cores() -> Vec<usize> {
    (0..thread::available_parallelism().map_or(1, NonZero::get)).collect()
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn on(machine: &str, cores: Range<usize>) -> RankCores {
        RankCores { machine: machine.into(), cores: cores.collect() }
    }

    /// Returns the shares of all ranks without a quota.
    fn shares(ranks: &[RankCores]) -> Vec<usize> {
        ranks.iter().map(|here| share(ranks, here, here.cores.len(), ranks.len())).collect()
    }

    #[test]
    fn ranks_that_share_a_mask_divide_it() {
        assert_eq!(shares(&[on("a", 0..8), on("a", 0..8)]), [4, 4]);
        assert_eq!(shares(&[on("a", 0..8), on("a", 0..8), on("a", 0..8)]), [2, 2, 2]);
    }

    #[test]
    fn ranks_bound_to_cores_of_their_own_keep_them() {
        assert_eq!(shares(&[on("a", 0..4), on("a", 4..8)]), [4, 4]);
        assert_eq!(shares(&[on("a", 0..3), on("a", 3..8)]), [3, 5]);
    }

    #[test]
    fn other_machines_do_not_count() {
        assert_eq!(shares(&[on("a", 0..8), on("b", 0..8), on("b", 0..8)]), [8, 4, 4]);
    }

    #[test]
    fn a_rank_has_at_least_one_thread_and_thirds_add_up() {
        assert_eq!(shares(&[on("a", 0..1), on("a", 0..1)]), [1, 1]);
        assert_eq!(shares(&[on("a", 0..3), on("a", 0..3), on("a", 0..3)]), [1, 1, 1]);
    }

    #[test]
    fn a_quota_is_divided_over_the_ranks_of_the_host() {
        let ranks = [on("a", 0..64), on("a", 0..64)];
        assert_eq!(share(&ranks, &ranks[0], 8, 2), 4);
        assert_eq!(share(&ranks[..1], &ranks[0], 8, 1), 8);
    }

    #[test]
    fn the_mask_of_this_process_is_found() {
        assert!(usable_cores().len() >= thread::available_parallelism().unwrap().get());
        assert!(!machine().is_empty() && !host_name().is_empty());
    }
}
