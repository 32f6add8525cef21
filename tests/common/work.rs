//! A small dataset, planned and preprocessed, and the program to train on it.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::phantom::PhantomOptions;
use nnunet_dist::work::{RunDir, WorkDir};
use serde_json::{Value, json};
use tempfile::TempDir;

pub const CONFIGURATION: &str = "3d_fullres";

/// Settings of a training of a few seconds in one process. Flags override them.
const SETTINGS: &str = r#"
configuration = "3d_fullres"
fold = "0"

[training]
epochs = 3
iterations_per_epoch = 4
validation_iterations = 2
batch_size = 2
checkpoint_every = 2
"#;

/// Five phantoms in a temporary folder, with plans for a network that trains in seconds; fold 0 holds one of them out.
pub struct Workshop {
    folder: TempDir,
    pub work: WorkDir,
}

impl Workshop {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// As [`Workshop::new`], with a dataset changed by `edit` before planning.
    pub fn with(edit: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let work = WorkDir::new(folder.path().join("work"));
        let dataset = folder.path().join("dataset");
        let phantoms = PhantomOptions { train_cases: 5, test_cases: 0, shape: [20, 24, 20], seed: 7 };
        phantoms.generate(&dataset).unwrap();
        edit(&dataset);
        let workshop = Self { folder, work };
        workshop.make("plan", &["-d", dataset.to_str().unwrap()]);
        workshop.edit_plans(shrink);
        workshop.make("preprocess", &[]);
        fs::write(workshop.settings(), SETTINGS).unwrap();
        workshop
    }

    /// The raw dataset.
    pub fn dataset(&self) -> PathBuf {
        self.path("dataset")
    }

    /// A path for any other file of a test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn run_dir(&self, name: &str) -> RunDir {
        RunDir::new(self.path(name))
    }

    /// The file given with `--config`.
    pub fn settings(&self) -> PathBuf {
        self.path("settings.toml")
    }

    /// `nnunet-dist train` into a run folder.
    pub fn train(&self, run: &RunDir) -> Command {
        self.train_on(&self.work, run)
    }

    /// As [`Workshop::train`], on another work folder.
    pub fn train_on(&self, work: &WorkDir, run: &RunDir) -> Command {
        let mut command = program();
        command.args(["train", "-c", CONFIGURATION, "-f", "0", "-w"]).arg(work.root());
        command.arg("--config").arg(self.settings()).arg("--run-dir").arg(run.root());
        command
    }

    /// Changes the configuration in the plans.
    pub fn edit_plans(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.work.plans();
        let mut plans: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut plans["configurations"][CONFIGURATION]);
        fs::write(path, plans.to_string()).unwrap();
    }

    /// The folder of the preprocessed cases.
    pub fn store(&self) -> PathBuf {
        self.work.preprocessed(&format!("nnUNetPlans_{CONFIGURATION}"))
    }

    /// Copies the work folder.
    pub fn copy(&self, name: &str) -> WorkDir {
        let path = self.path(name);
        copy_folder(self.work.root(), &path);
        WorkDir::new(path)
    }

    fn make(&self, subcommand: &str, flags: &[&str]) {
        let mut command = program();
        command.arg(subcommand).args(["-c", CONFIGURATION, "-w"]).arg(self.work.root()).args(flags);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{subcommand}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The bytes of a checkpoint's network and optimizer files.
pub fn tensors_of(checkpoint: &Path) -> [Vec<u8>; 2] {
    ["network.safetensors", "optimizer.safetensors"].map(|name| fs::read(checkpoint.join(name)).unwrap())
}

/// The built program, without environment variables that change its behavior.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nnunet-dist"));
    for variable in ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "RAYON_NUM_THREADS", "RUST_BACKTRACE", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command
}

/// Three stages and patches of 16³.
pub fn shrink(configuration: &mut Value) {
    configuration["patch_size"] = json!([16, 16, 16]);
    let network = &mut configuration["architecture"]["arch_kwargs"];
    network["n_stages"] = json!(3);
    network["features_per_stage"] = json!([8, 16, 32]);
    network["kernel_sizes"] = json!([[3, 3, 3], [3, 3, 3], [3, 3, 3]]);
    network["strides"] = json!([[1, 1, 1], [2, 2, 2], [2, 2, 2]]);
    network["n_conv_per_stage"] = json!([2, 2, 2]);
    network["n_conv_per_stage_decoder"] = json!([2, 2]);
}

/// Waits until a run has logged this many epochs.
pub fn wait_for_epochs(run: &RunDir, epochs: usize) {
    let began = Instant::now();
    while fs::read_to_string(run.log()).map_or(0, |log| log.lines().count()) < epochs {
        assert!(began.elapsed() < Duration::from_secs(60), "{}: not {epochs} epochs in time", run.log().display());
        thread::sleep(Duration::from_millis(2));
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
