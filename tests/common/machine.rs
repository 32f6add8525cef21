//! A machine with NVIDIA's libraries as mocks (tests/mock), which are compiled here and loaded like the real ones.
// Each test program uses a part of this module.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::job::{self, Job, observe};

use super::skip::skip;

/// The environment variable with the task of a rank.
pub const PART: &str = "NNUNET_TEST_PART";
const LIBRARIES: &str = "LD_LIBRARY_PATH";

/// A folder with mock libraries.
pub struct Machine {
    /// The module of the test that ranks run.
    module: &'static str,
    pub folder: TempDir,
}

impl Machine {
    /// Compiles the mocks: source, library name, compiler flags. Returns `None` and prints a line if there is no C
    /// compiler.
    pub fn with(module: &'static str, libraries: &[(&str, &str, &[&str])]) -> Option<Self> {
        if !job::is_installed("cc") {
            skip("no C compiler for the mocks");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for (source, library, flags) in libraries {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mock").join(source);
            let mut cc = Command::new("cc");
            cc.args(["-shared", "-fPIC", "-o"]).arg(folder.path().join(library)).args(*flags).arg(source).arg("-ldl");
            assert!(cc.status().unwrap().success(), "{cc:?}");
        }
        Some(Self { module, folder })
    }

    /// One rank that runs `part`.
    pub fn rank(&self, part: &str, settings: &[(&str, &str)]) -> Command {
        let mut rank = job::me(self.module, PART, part);
        let others = ["NNUNET_DIST_NCCL", "NNUNET_DIST_CUDNN", "NNUNET_DIST_CACHE", "NNUNET_DIST_SHARE_GPUS"];
        for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().chain(others) {
            rank.env_remove(variable);
        }
        rank.env(LIBRARIES, self.folder.path()).env("MOCK_LOG", self.log_file()).envs(settings.iter().copied());
        rank
    }

    pub fn run(&self, part: &str, settings: &[(&str, &str)]) -> Job {
        observe(self.rank(part, settings))
    }

    /// The calls made to the mocks.
    pub fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.log_file()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    pub fn forget_calls(&self) {
        let _ = fs::remove_file(self.log_file());
    }

    #[track_caller]
    pub fn was_called(&self, call: &str, times: usize) {
        let calls = self.calls();
        assert_eq!(calls.iter().filter(|line| line.starts_with(call)).count(), times, "{call} in {calls:#?}");
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}
