//! The folders that the commands share: the work folder of a dataset and the run directories in it.
//!
//! [`WorkDir`] and [`RunDir`] are the only places that know the names of the files in them.

mod error;
mod fold;
mod run_dir;
mod source;
mod work_dir;

pub use error::{ConfigError, one_line};
pub use fold::FoldId;
pub use run_dir::RunDir;
pub use source::Source;
pub use work_dir::{DEFAULT_PLANS, WorkDir, check_plans_name};
