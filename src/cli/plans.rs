//! Flag that selects plans by name.

use clap::Args;

use nnunet_data::plan::Plans;
use nnunet_data::work::{ConfigError, WorkDir, check_plans_name};

/// `--plans NAME`.
#[derive(Clone, Debug, Args)]
pub struct PlansFlag {
    /// Name of the plans in the work folder, as given to `plan` [default: nnUNetPlans].
    #[arg(short, long, value_name = "NAME", value_parser = name, requires = "work")]
    pub plans: Option<String>,
}

impl PlansFlag {
    /// Returns the work folder with these plans selected.
    pub fn in_work(&self, work: WorkDir) -> WorkDir {
        match &self.plans {
            Some(name) => work.with_plans(name),
            None => work,
        }
    }
}

/// Reads the plans of a work folder.
///
/// # Errors
/// Returns an error that lists the available plans if the file does not exist, or an error of [`Plans::load`].
pub fn load(work: &WorkDir) -> anyhow::Result<Plans> {
    let path = work.plans();
    if path.exists() {
        return Ok(Plans::load(&path)?);
    }
    let hint = match work.names_of_plans() {
        names if names.is_empty() => String::new(),
        names => format!("; -p accepts {}", names.join(", ")),
    };
    Err(ConfigError::new(path.display(), format_args!("missing; create it with `nnunet-dist plan`{hint}")).into())
}

/// Parses a plans name.
pub fn name(text: &str) -> Result<String, String> {
    check_plans_name(text).map(|()| text.to_owned())
}
