//! Detection of the launcher from environment variables, and start of the communicator.

use std::env;
use std::time::Instant;

use super::{CommError, Communicator, Fault, Single, divide_threads};

/// Launcher information from the environment of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LauncherInfo {
    launcher: &'static str,
    rank: usize,
    /// World size; `None` if only MPI knows it.
    size: Option<usize>,
}

/// Launchers and their variables with rank and size, innermost first: Slurm's may surround any of the others.
const LAUNCHERS: [(&str, &str, &str); 4] = [
    ("mpirun (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mpirun (MPICH) or srun --mpi=pmi2", "PMI_RANK", "PMI_SIZE"),
    ("srun --mpi=pmix or prun", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
];

/// Joins the job that this process was started in, and divides the CPU cores among its ranks ([`divide_threads`]).
///
/// MPI is initialized only if a launcher started more than one process; otherwise the job is [`Single`]. In an MPI job,
/// a panic on any thread then ends all ranks, and dropping the communicator waits for them.
///
/// Must be called once, first thing on the main thread; see [`divide_threads`] for the reason.
///
/// # Errors
///
/// Returns an error if MPI fails, if this build has no MPI, or if the launcher belongs to a different MPI than this
/// build (each process would then be a job of its own, and all would write to the same files).
pub fn init() -> Result<Box<dyn Communicator>, CommError> {
    let variable = |name: &str| env::var(name).ok()?.parse().ok();
    let comm = match detect_launcher(variable) {
        Some(info) if info.size != Some(1) => join(&info)?,
        _ => Box::new(Single),
    };
    nnunet_core::mapped::set_rank(comm.rank());
    divide_threads(comm.as_ref())?;
    Ok(comm)
}

/// Returns name and version of the MPI library of this build, such as `Open MPI v4.1.4`, or `None` without MPI.
pub fn mpi_version() -> Option<String> {
    #[cfg(feature = "mpi")]
    return Some(super::mpi::library_version());
    #[cfg(not(feature = "mpi"))]
    None
}

/// Detects the launcher. Slurm sets the rank for a batch script, too, so a launcher counts only if both variables are
/// set, or if it never sets the size.
fn detect_launcher(variable: impl Fn(&str) -> Option<usize>) -> Option<LauncherInfo> {
    LAUNCHERS.into_iter().find_map(|(launcher, rank, size)| {
        let info = LauncherInfo { launcher, rank: variable(rank)?, size: variable(size) };
        (info.size.is_some() || rank == "PMIX_RANK").then_some(info)
    })
}

#[cfg(feature = "mpi")]
fn join(info: &LauncherInfo) -> Result<Box<dyn Communicator>, CommError> {
    use super::{failure, mpi};

    let began = Instant::now();
    let comm = mpi::MpiComm::start(info.rank)?;
    if let Some(size) = info.size
        && size != comm.world_size()
    {
        let version = mpi::library_version();
        let reason = format!(
            "the launcher started {size} processes, but {version}, which this program was built with, finds {} (use \
             the launcher of that MPI, or build with the mpicc of the launcher's MPI: MPICC=mpicc.mpich cargo build)",
            comm.world_size()
        );
        return Err(info.refused(began, reason));
    }
    failure::end_job_on_panic(comm.rank(), mpi::end_job);
    comm.start_heartbeats()?;
    // Launchers that report a dead process only by its number (MPICH's) rely on this line to identify the rank.
    tracing::info!("rank {} of {} is process {}", comm.rank(), comm.world_size(), std::process::id());
    Ok(Box::new(comm))
}

#[cfg(not(feature = "mpi"))]
fn join(info: &LauncherInfo) -> Result<Box<dyn Communicator>, CommError> {
    Err(info.refused(Instant::now(), "this program was built without MPI (build with `--features mpi`)".into()))
}

impl LauncherInfo {
    fn refused(&self, began: Instant, reason: String) -> CommError {
        let (operation, elapsed_s) = (format!("start under {}", self.launcher), began.elapsed().as_secs_f64());
        CommError { rank: self.rank, operation, elapsed_s, fault: Fault::Unavailable, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the rank and size detected when exactly these variables are set.
    fn found(variables: &[(&str, usize)]) -> Option<(usize, Option<usize>)> {
        let variable = |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| *value);
        detect_launcher(variable).map(|info| (info.rank, info.size))
    }

    #[test]
    fn detects_each_launcher() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("OMPI_COMM_WORLD_RANK", 1), ("OMPI_COMM_WORLD_SIZE", 2)]), Some((1, Some(2))));
        assert_eq!(found(&[("PMI_RANK", 2), ("PMI_SIZE", 3)]), Some((2, Some(3))));
        assert_eq!(found(&[("PMIX_RANK", 1)]), Some((1, None)));
        assert_eq!(found(&[("SLURM_PROCID", 3), ("SLURM_STEP_NUM_TASKS", 4)]), Some((3, Some(4))));
    }

    #[test]
    fn a_slurm_batch_script_is_a_single_process() {
        assert_eq!(found(&[("SLURM_PROCID", 0), ("SLURM_NTASKS", 4)]), None);
    }

    #[cfg(not(feature = "mpi"))]
    #[test]
    fn a_build_without_mpi_refuses_to_join_a_job() {
        let info = LauncherInfo { launcher: "mpirun", rank: 1, size: Some(2) };
        let error = join(&info).err().expect("there is no MPI");
        assert_eq!((error.rank, error.fault), (1, Fault::Unavailable));
        assert!(error.to_string().contains("built without MPI"), "{error}");
    }

    #[test]
    fn mpirun_inside_a_slurm_step_takes_precedence() {
        let step = [("SLURM_PROCID", 0), ("SLURM_STEP_NUM_TASKS", 1)];
        let mpirun = [("OMPI_COMM_WORLD_RANK", 5), ("OMPI_COMM_WORLD_SIZE", 8)];
        assert_eq!(found(&[step, mpirun].concat()), Some((5, Some(8))));
    }
}
