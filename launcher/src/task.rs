//! Program that each rank runs.

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

#[cfg(test)]
mod tests {
    use super::*;

    fn task(line: &str) -> Task {
        Task::new(Some("p".into()), line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn a_restart_resumes_once() {
        assert_eq!(task("train -w x").resumed().arguments, ["train", "--resume=auto", "-w", "x"]);
        for line in ["train --resume -w x", "train -w x --resume=auto", "predict -w x"] {
            assert_eq!(task(line).resumed().arguments, task(line).arguments, "{line}");
        }
    }

    #[test]
    fn the_device_is_found_in_both_spellings() {
        assert!(task("train --device cuda -w x").wants_gpu());
        assert!(task("train -w x --device=cuda").wants_gpu());
        assert!(task("train --device cuda --device cpu").wants_cpu());
        assert!(!task("train -w cuda").wants_gpu() && !task("train -w --device").wants_cpu());
    }
}
