//! Assignment of GPUs to ranks.
//!
//! One process drives one GPU. Launchers number the ranks of a host, and most do nothing else: every rank sees all GPUs
//! and uses the one with its local rank as index. Some (Slurm with `--gpus-per-task`, wrapper scripts that set
//! `CUDA_VISIBLE_DEVICES`) bind each rank to one GPU, which is then the only one visible to the rank, with index 0.

use std::collections::BTreeMap;
use std::env;
use std::time::Instant;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{CommError, Communicator, Fault};
use nnunet_core::host::host_name;

/// Environment variable that allows several ranks to share one GPU if set to `1`. Slower than one rank; for tests.
const SHARE_GPUS: &str = "NNUNET_DIST_SHARE_GPUS";

/// Rank and number of ranks on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalRank {
    /// Local rank, in `0 .. size`.
    pub rank: usize,
    /// Number of ranks of the job on the host.
    pub size: usize,
}

/// Environment variables with the local rank, innermost launcher first as in [`init`](super::init): Open MPI, MPICH's
/// Hydra and Intel MPI, MVAPICH, HPE PALS, PMIx, Slurm.
const LOCAL_RANKS: [&str; 6] = [
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "PMIX_LOCAL_RANK",
    "SLURM_LOCALID",
];

/// Host and local rank of a rank, exchanged to compute local ranks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct RankHost {
    host: String,
    /// Local rank according to the launcher.
    local_rank: Option<usize>,
}

/// The GPU used by a rank.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct GpuClaim {
    host: String,
    gpu: String,
}

/// Returns this rank's position on its host. The launcher's local rank is used if it is set and unique on the host;
/// otherwise (for example when a launcher runs inside another launcher's allocation, so two ranks have the same number)
/// ranks are numbered in order among those with the same host name.
///
/// A collective.
///
/// # Errors
/// Returns an error if the collective fails.
pub fn local_rank_on_host(comm: &dyn Communicator) -> Result<LocalRank, CommError> {
    let variable = |name: &str| env::var(name).ok()?.parse().ok();
    let local_rank = LOCAL_RANKS.into_iter().find_map(variable);
    let here = RankHost { host: host_name(), local_rank };
    let ranks: Vec<RankHost> = gather(comm, &here, "places on hosts")?;
    Ok(local_ranks(&ranks)[comm.rank()])
}

/// Selects the index of the GPU for a rank that sees `visible` GPUs.
///
/// # Errors
/// Returns an error if there are fewer GPUs than ranks, unless `NNUNET_DIST_SHARE_GPUS=1`.
pub fn choose_gpu(comm: &dyn Communicator, local: LocalRank, visible: usize) -> Result<usize, CommError> {
    let began = Instant::now();
    let chosen = choose(local, visible, sharing_is_allowed());
    chosen.map_err(|reason| refusal(comm, "GPU selection", began, reason))
}

/// Checks that no two ranks use the same GPU, unless `NNUNET_DIST_SHARE_GPUS=1`. `uuid` is the UUID of this rank's GPU.
///
/// A collective; all ranks get the same result.
///
/// # Errors
/// Returns an error if the collective fails, or one that names two ranks with the same GPU.
pub fn check_gpus_not_shared(comm: &dyn Communicator, uuid: &str) -> Result<(), CommError> {
    const WHAT: &str = "GPUs of the ranks";
    let began = Instant::now();
    let here = GpuClaim { host: host_name(), gpu: uuid.to_owned() };
    let claims: Vec<GpuClaim> = gather(comm, &here, WHAT)?;
    match first_conflict(&claims) {
        Some(reason) if !sharing_is_allowed() => Err(refusal(comm, &format!("check of {WHAT}"), began, reason)),
        _ => Ok(()),
    }
}

/// Computes the positions of all ranks on their hosts.
fn local_ranks(ranks: &[RankHost]) -> Vec<LocalRank> {
    let mut hosts: BTreeMap<&str, Vec<Option<usize>>> = BTreeMap::new();
    for rank in ranks {
        hosts.entry(&rank.host).or_default().push(rank.local_rank);
    }
    let are_distinct = |numbers: &[Option<usize>]| {
        let mut numbers = numbers.to_vec();
        numbers.sort_unstable();
        numbers.windows(2).all(|pair| pair[0] != pair[1]) && numbers.iter().all(Option::is_some)
    };
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut local_ranks = Vec::with_capacity(ranks.len());
    for RankHost { host, local_rank } in ranks {
        let (numbers, count) = (&hosts[host.as_str()], counts.entry(host).or_default());
        let rank = local_rank.filter(|_| are_distinct(numbers)).unwrap_or(*count);
        local_ranks.push(LocalRank { rank, size: numbers.len() });
        *count += 1;
    }
    local_ranks
}

fn choose(local: LocalRank, visible: usize, share: bool) -> Result<usize, String> {
    match visible {
        0 => Err("the CUDA driver reports no GPU (run `nnunet-dist doctor` for the reason)".into()),
        // Either the launcher has bound the rank to a GPU, or there is only one; the comparison of UUIDs detects the
        // latter.
        1 => Ok(0),
        _ if local.rank < visible => Ok(local.rank),
        _ if share => Ok(local.rank % visible),
        _ => Err(format!(
            "local rank {} has no GPU: the host has only {visible} GPUs for {} ranks (start fewer with -np or \
             --ntasks-per-node, request more with --gres=gpu:{}, extend CUDA_VISIBLE_DEVICES, or set {SHARE_GPUS}=1)",
            local.rank,
            local.size,
            local.rank + 1
        )),
    }
}

/// Describes the first two ranks that use the same GPU, if any.
fn first_conflict(claims: &[GpuClaim]) -> Option<String> {
    let mut owners: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    claims.iter().enumerate().find_map(|(rank, claim)| {
        let (other, host) = owners.insert(&claim.gpu, (rank, &claim.host))?;
        Some(format!(
            "ranks {other} and {rank} would share the GPU {} of {host}: start one rank per GPU (-np), give each rank \
             its own (CUDA_VISIBLE_DEVICES, or Slurm's --gres=gpu:N), or set {SHARE_GPUS}=1 (with NCCL 2.30 or newer also \
             NCCL_MULTI_RANK_GPU_ENABLE=1; older versions report an error)",
            claim.gpu
        ))
    })
}

fn sharing_is_allowed() -> bool {
    env::var_os(SHARE_GPUS).is_some_and(|value| value == "1")
}

/// Gathers a JSON value from each rank, in rank order.
fn gather<T: Serialize + DeserializeOwned>(comm: &dyn Communicator, own: &T, what: &str) -> Result<Vec<T>, CommError> {
    let began = Instant::now();
    let message = serde_json::to_vec(own).expect("strings and integers can be written as JSON");
    let messages = comm.all_gather_bytes(&message, what)?;
    let read: Result<_, _> = messages.iter().map(|message| serde_json::from_slice(message)).collect();
    read.map_err(|error| CommError {
        fault: Fault::Disagreement,
        ..refusal(comm, what, began, format!("another rank runs a different version of the program: {error}"))
    })
}

fn refusal(comm: &dyn Communicator, operation: &str, began: Instant, reason: String) -> CommError {
    let elapsed_s = began.elapsed().as_secs_f64();
    CommError { rank: comm.rank(), operation: operation.into(), elapsed_s, fault: Fault::Unavailable, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::Single;

    fn local_ranks_of(ranks: &[(&str, Option<usize>)]) -> Vec<(usize, usize)> {
        let rank_host = |&(host, local_rank): &(&str, Option<usize>)| RankHost { host: host.into(), local_rank };
        let ranks: Vec<_> = ranks.iter().map(rank_host).collect();
        local_ranks(&ranks).into_iter().map(|local| (local.rank, local.size)).collect()
    }

    fn claims(gpus: &[&str]) -> Vec<GpuClaim> {
        gpus.iter().map(|&gpu| GpuClaim { host: "node".into(), gpu: gpu.into() }).collect()
    }

    #[test]
    fn uses_the_local_ranks_of_the_launcher() {
        assert_eq!(local_ranks_of(&[("a", Some(1)), ("a", Some(0)), ("b", Some(0))]), [(1, 2), (0, 2), (0, 1)]);
    }

    #[test]
    fn counts_ranks_per_host_without_a_launcher() {
        assert_eq!(
            local_ranks_of(&[("a", None), ("b", None), ("a", None), ("b", None)]),
            [(0, 2), (0, 2), (1, 2), (1, 2)]
        );
    }

    #[test]
    fn ignores_duplicate_or_incomplete_local_ranks() {
        // Slurm's variables of the batch script, inherited by ranks that another launcher starts.
        assert_eq!(local_ranks_of(&[("a", Some(0)), ("a", Some(0))]), [(0, 2), (1, 2)]);
        assert_eq!(local_ranks_of(&[("a", Some(1)), ("a", None), ("b", Some(3))]), [(0, 2), (1, 2), (3, 1)]);
    }

    #[test]
    fn selects_the_only_gpu_or_that_of_the_local_rank() {
        let local = LocalRank { rank: 3, size: 4 };
        assert_eq!(choose(local, 1, false), Ok(0));
        assert_eq!(choose(local, 4, false), Ok(3));
        assert_eq!(choose(local, 8, false), Ok(3));
    }

    #[test]
    fn too_few_gpus_are_an_error_with_a_remedy() {
        let local = LocalRank { rank: 3, size: 4 };
        let reason = choose(local, 2, false).unwrap_err();
        assert!(reason.contains("only 2 GPUs for 4 ranks") && reason.contains("--gres=gpu:4"), "{reason}");
        assert_eq!(choose(local, 2, true), Ok(1));
        let reason = choose(local, 0, true).unwrap_err();
        assert!(reason.contains("no GPU") && reason.contains("doctor"), "{reason}");
    }

    #[test]
    fn names_ranks_that_share_a_gpu() {
        assert_eq!(first_conflict(&claims(&["GPU-1", "GPU-2", "GPU-3"])), None);
        let reason = first_conflict(&claims(&["GPU-1", "GPU-2", "GPU-1"])).unwrap();
        assert!(reason.starts_with("ranks 0 and 2 would share the GPU GPU-1 of node"), "{reason}");
        for fix in ["-np", "CUDA_VISIBLE_DEVICES", "--gres", "NNUNET_DIST_SHARE_GPUS=1", "NCCL_MULTI_RANK_GPU_ENABLE=1"]
        {
            assert!(reason.contains(fix), "no {fix} in {reason}");
        }
    }

    #[test]
    fn a_single_process_shares_neither_host_nor_gpu() {
        assert_eq!(local_rank_on_host(&Single).unwrap().size, 1);
        check_gpus_not_shared(&Single, "GPU-1").unwrap();
    }
}
