//! The flag that names plans.

use clap::Args;

use nnunet_data::plan::Plans;
use nnunet_data::work::{ConfigError, WorkDir, check_plans_name};

/// `--plans NAME`.
#[derive(Clone, Debug, Args)]
pub struct PlansFlag {
    /// Plans in the work folder, as `plan` named them [default: nnUNetPlans].
    #[arg(short, long, value_name = "NAME", value_parser = name, requires = "work")]
    pub plans: Option<String>,
}

impl PlansFlag {
    /// The work folder with these plans.
    pub fn on(&self, work: WorkDir) -> WorkDir {
        match &self.plans {
            Some(name) => work.with_plans(name),
            None => work,
        }
    }
}

/// Reads the plans of a work folder.
///
/// # Errors
/// Where they are missing it says which there are; else those of [`Plans::load`].
pub fn load(work: &WorkDir) -> anyhow::Result<Plans> {
    let path = work.plans();
    if path.exists() {
        return Ok(Plans::load(&path)?);
    }
    let hint = match work.names_of_plans() {
        names if names.is_empty() => String::new(),
        names => format!("; -p takes {}", names.join(", ")),
    };
    Err(ConfigError::new(path.display(), format_args!("is not there; `nnunet-dist plan` makes it{hint}")).into())
}

/// Parses the name of plans.
pub fn name(text: &str) -> Result<String, String> {
    check_plans_name(text).map(|()| text.to_owned())
}
