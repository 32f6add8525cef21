//! Several hosts made of network namespaces: training over them gives the same result as on one host, faults end it in
//! time and are named, and the Slurm scripts work.
//!
//! A short form runs with all other tests; `make test-cluster` runs everything.

mod chaos;
mod equality;
mod faults;
mod hosts;
mod launch;
mod runs;
mod slurm;

use crate::small;

/// The module of the test that ranks run.
const MODULE: &str = module_path!();

/// The environment variable of a rank that must have different weights from the others.
const PART: &str = "NNUNET_TEST_PART";

/// Not a test: run by each rank of [`faults`] that must differ from the others.
#[test]
fn part_of_a_rank() {
    if std::env::var_os(PART).is_some() {
        small::differ(&*nnunet_dist::distributed::init().unwrap());
    }
}
