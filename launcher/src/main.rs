//! `nnunet-launch`: so far it only says how to start several processes without it.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!(
        "error: nnunet-launch cannot start processes yet; use `mpirun -np N nnunet-dist train …`, or srun under Slurm"
    );
    ExitCode::from(4)
}
