//! Program that each rank runs, its arguments and its environment variables.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Program and its arguments.
#[derive(Debug, Clone)]
pub struct Task {
    /// Path of the program, `nnunet-dist` by default.
    pub program: PathBuf,
    /// Arguments, starting with the command.
    pub arguments: Vec<OsString>,
}

impl Task {
    /// Creates the task of a command line. The default program is the `nnunet-dist` beside this one, or in the PATH.
    pub fn new(program: Option<PathBuf>, arguments: Vec<OsString>) -> Self {
        Self { program: program.or_else(beside_us).unwrap_or_else(|| "nnunet-dist".into()), arguments }
    }

    /// Returns whether the command is `train`, which can be stopped, resumed and monitored.
    pub fn is_training(&self) -> bool {
        self.arguments.first().is_some_and(|word| word == "train")
    }

    /// Returns whether the arguments contain `--device cuda`.
    pub fn wants_gpu(&self) -> bool {
        self.device().is_some_and(|device| device == "cuda")
    }

    /// Returns whether the arguments contain `--device cpu`.
    pub fn wants_cpu(&self) -> bool {
        self.device().is_some_and(|device| device == "cpu")
    }

    /// Returns the same task, continued from the latest checkpoint if there is one.
    pub fn resumed(&self) -> Self {
        let mut task = self.clone();
        if self.is_training() && !self.says_resume() {
            task.arguments.insert(1, "--resume=auto".into());
        }
        task
    }

    fn says_resume(&self) -> bool {
        self.arguments.iter().any(|word| word == "--resume" || word.to_string_lossy().starts_with("--resume="))
    }

    fn device(&self) -> Option<String> {
        let mut words = self.arguments.iter().map(|word| word.to_string_lossy());
        let mut device = None;
        while let Some(word) = words.next() {
            if word == "--device" {
                device = words.next().map(Into::into);
            } else if let Some(value) = word.strip_prefix("--device=") {
                device = Some(value.to_owned());
            }
        }
        device
    }
}

fn beside_us() -> Option<PathBuf> {
    let program = env::current_exe().ok()?.parent().map(|folder: &Path| folder.join("nnunet-dist"))?;
    program.is_file().then_some(program)
}

/// Marks every process of a job on all hosts, for cleanup.
pub const MARKER: &str = "NNUNET_LAUNCH_JOB";

/// Number of earlier attempts; not set in the first attempt.
const RESTARTS: &str = "NNUNET_LAUNCH_RESTARTS";

const NAMES: [&str; 9] = [
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PATH",
    "PYTHONPATH",
    "RAYON_NUM_THREADS",
    "RUST_BACKTRACE",
    "RUST_LOG",
];
const PREFIXES: [&str; 3] = ["NCCL_", "NNUNET_", "UCX_"];

/// Environment variables that a job sets for its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings(Vec<(String, String)>);

impl Settings {
    /// Sets the marker, permission for Open MPI to run as root, and NCCL's interface unless the user has set it.
    pub fn new(marker: &str, is_root: bool, interface: Option<&str>) -> Self {
        let mut settings = vec![(MARKER.to_owned(), marker.to_owned())];
        if is_root {
            settings.push(("OMPI_ALLOW_RUN_AS_ROOT".into(), "1".into()));
            settings.push(("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM".into(), "1".into()));
        }
        // MPI also accepts networks such as 10.0.0.0/24; NCCL only accepts names, with `=` for an exact match.
        if let Some(name) = interface.filter(|name| !name.contains('/') && env::var_os("NCCL_SOCKET_IFNAME").is_none())
        {
            settings.push(("NCCL_SOCKET_IFNAME".into(), format!("={name}")));
        }
        Self(settings)
    }

    /// Sets the number of earlier attempts for the ranks.
    pub fn restarted(&mut self, times: usize) {
        self.0.retain(|(name, _)| name != RESTARTS);
        self.0.push((RESTARTS.to_owned(), times.to_string()));
    }

    /// Iterates over names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Returns the sorted names of the variables to export to the ranks: selected inherited ones and those set for the job.
pub fn exported(settings: &Settings) -> Vec<String> {
    let inherited = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    select(inherited.chain(settings.iter().map(|(name, _)| name.to_owned())))
}

/// Selects the names that are relevant for nnunet-dist and the libraries that it loads.
fn select(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = names
        .filter(|name| NAMES.contains(&name.as_str()) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(line: &str) -> Task {
        Task::new(Some("p".into()), line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn adds_resume_once() {
        assert_eq!(task("train -w x").resumed().arguments, ["train", "--resume=auto", "-w", "x"]);
        for line in ["train --resume -w x", "train -w x --resume=auto", "predict -w x"] {
            assert_eq!(task(line).resumed().arguments, task(line).arguments, "{line}");
        }
    }

    #[test]
    fn finds_the_device_in_both_spellings() {
        assert!(task("train --device cuda -w x").wants_gpu());
        assert!(task("train -w x --device=cuda").wants_gpu());
        assert!(task("train --device cuda --device cpu").wants_cpu());
        assert!(!task("train -w cuda").wants_gpu() && !task("train -w --device").wants_cpu());
    }

    #[test]
    fn exports_only_relevant_variables() {
        let names = ["HOME", "NCCL_DEBUG", "PATH", "NNUNET_X", "PATH", "RUST_LOG", "OMPI_COMM_WORLD_RANK", "SECRET"];
        assert_eq!(select(names.into_iter().map(str::to_owned)), ["NCCL_DEBUG", "NNUNET_X", "PATH", "RUST_LOG"]);
    }

    #[test]
    fn keeps_only_the_last_number_of_restarts() {
        let mut settings = Settings::new("7", false, None);
        settings.restarted(1);
        settings.restarted(2);
        assert_eq!(settings.iter().collect::<Vec<_>>(), [(MARKER, "7"), (RESTARTS, "2")]);
    }

    #[test]
    fn always_exports_the_marker() {
        let settings = Settings::new("7", false, None);
        assert_eq!(settings.iter().collect::<Vec<_>>(), [(MARKER, "7")]);
        assert!(exported(&settings).iter().any(|name| name == MARKER));
        assert!(Settings::new("7", true, None).iter().any(|pair| pair == ("OMPI_ALLOW_RUN_AS_ROOT", "1")));
        assert!(Settings::new("7", false, Some("10.0.0.0/24")).iter().count() == 1);
    }
}
