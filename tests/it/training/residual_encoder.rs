//! A residual-encoder U-Net from planning to prediction: its plans are stored next to the default ones and selected by
//! name; training, resuming, data parallelism and prediction need no other option.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nnunet_dist::checkpoint::SavedModel;
use nnunet_dist::config::RunConfig;
use nnunet_dist::eval::Summary;
use nnunet_dist::phantom::PhantomOptions;
use nnunet_dist::plan::Plans;
use nnunet_dist::work::{FoldId, RunDir, WorkDir};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::job;
use crate::work;
use crate::work::{CONFIGURATION, wait_for_epochs};

const PLANS: &str = "nnUNetResEncUNetMPlans";

/// Settings of a training of a few seconds in one process. Flags override them.
const SETTINGS: &str = r#"
plans = "nnUNetResEncUNetMPlans"

[training]
epochs = 2
iterations_per_epoch = 4
validation_iterations = 2
batch_size = 2
checkpoint_every = 2
"#;

/// Phantoms with plans of both kinds in one work folder.
struct Shop {
    folder: TempDir,
    work: WorkDir,
}

impl Shop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let phantoms = PhantomOptions { train_cases: 5, test_cases: 1, shape: [20, 24, 20], seed: 7 };
        phantoms.generate(&folder.path().join("dataset")).unwrap();
        fs::write(folder.path().join("settings.toml"), SETTINGS).unwrap();
        let work = WorkDir::new(folder.path().join("work"));
        let shop = Self { folder, work };
        shop.plan(&[]);
        shop.plan(&["--planner", "nnUNetPlannerResEncM"]);
        shop.edit_plans(shrink);
        succeed(shop.command("preprocess").args(["-c", CONFIGURATION, "-p", PLANS]));
        shop
    }

    fn plan(&self, flags: &[&str]) {
        let dataset = self.path("dataset");
        succeed(self.command("plan").arg("-d").arg(dataset).args(["-c", CONFIGURATION]).args(flags));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn plans(&self) -> PathBuf {
        self.work.clone().with_plans(PLANS).plans()
    }

    fn edit_plans(&self, edit: impl FnOnce(&mut Value)) {
        let mut plans: Value = serde_json::from_slice(&fs::read(self.plans()).unwrap()).unwrap();
        edit(&mut plans["configurations"][CONFIGURATION]);
        fs::write(self.plans(), plans.to_string()).unwrap();
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = work::program();
        command.arg(subcommand).arg("-w").arg(self.work.root());
        command
    }

    fn train(&self) -> Command {
        let mut command = self.command("train");
        command.args(["-c", CONFIGURATION, "-f", "0", "--config"]).arg(self.path("settings.toml"));
        command
    }

    fn train_into(&self, run: &RunDir) -> Command {
        let mut command = self.train();
        command.arg("--run-dir").arg(run.root());
        command
    }
}

/// Three stages; the last one halves the patch without more feature maps.
fn shrink(configuration: &mut Value) {
    configuration["patch_size"] = json!([16, 16, 16]);
    let network = &mut configuration["architecture"]["arch_kwargs"];
    network["n_stages"] = json!(3);
    network["features_per_stage"] = json!([4, 8, 8]);
    network["kernel_sizes"] = json!([[1, 3, 3], [3, 3, 3], [3, 3, 3]]);
    network["strides"] = json!([[1, 1, 1], [1, 2, 2], [2, 2, 2]]);
    network["n_blocks_per_stage"] = json!([1, 2, 1]);
    network["n_conv_per_stage_decoder"] = json!([1, 1]);
}

#[test]
fn it_trains_and_predicts_like_any_other_network() {
    let shop = Shop::new();
    let [default, residual] = ["nnUNetPlans", PLANS].map(|name| shop.work.clone().with_plans(name).plans());
    let class = |path| Plans::load(path).unwrap().configurations[CONFIGURATION].clone();
    let class = |path| serde_json::to_value(class(path)).unwrap()["architecture"]["network_class_name"].clone();
    let module = "dynamic_network_architectures.architectures.unet";
    assert_eq!(class(&default), format!("{module}.PlainConvUNet"));
    assert_eq!(class(&residual), format!("{module}.ResidualEncoderUNet"));
    assert!(shop.work.preprocessed(&format!("nnUNetPlans_{CONFIGURATION}")).is_dir(), "the data are shared");

    // Its runs are in another folder than those of the default plans.
    succeed(&mut shop.train());
    let run = shop.work.clone().with_plans(PLANS).run(CONFIGURATION, FoldId::Number(0));
    assert_eq!(RunConfig::load(&run.config()).unwrap().plans, PLANS);
    assert!(!shop.work.run(CONFIGURATION, FoldId::Number(0)).root().exists());
    let names: Vec<_> = weights(&run).into_iter().map(|(name, _)| name).collect();
    for name in ["encoder.stem.convs.0.conv.weight", "encoder.stages.1.blocks.0.skip.1.norm.weight"] {
        assert!(names.iter().any(|known| known == name), "no {name} in {names:?}");
    }
    let summary = Summary::load(&run.validation().join("summary.json")).unwrap();
    assert!((0.0..=1.0).contains(&summary.mean_dice()), "{summary:?}");

    let out = shop.path("predictions");
    let mut predict = work::program();
    predict.arg("predict").arg("-r").arg(run.root()).arg("-i").arg(shop.path("dataset/imagesTs")).arg("-o").arg(&out);
    succeed(&mut predict);
    let maps = fs::read_dir(&out)
        .unwrap()
        .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().ends_with(".nii.gz"));
    assert_eq!(maps.count(), 1);
}

#[test]
fn a_killed_run_resumes_with_the_same_weights() {
    let shop = Shop::new();
    let [whole, broken] = ["whole", "broken"].map(|name| RunDir::new(shop.path(name)));
    let train = |run: &RunDir| {
        let mut command = shop.train_into(run);
        command.args(["--epochs", "8"]);
        command
    };
    succeed(&mut train(&whole));
    let mut killed = train(&broken).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_epochs(&broken, 3);
    killed.kill().unwrap();
    assert!(!killed.wait().unwrap().success(), "it was over before it could be killed");
    succeed(train(&broken).arg("--resume"));
    assert!(weights(&whole) == weights(&broken));
}

/// Each layer's gradients are sent as soon as they are ready, in both branches of a block.
#[test]
fn two_processes_under_mpirun_train_as_one_with_twice_the_batch() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Shop::new();
    let [one, two] = ["one", "two"].map(|name| RunDir::new(shop.path(name)));
    succeed(&mut shop.train_into(&one));
    let mut rank = shop.train_into(&two);
    rank.args(["--batch-size", "1", "--bucket-mb", "0.01"]);
    let job = job::observe(job::in_parallel(launcher, 2, &[], &rank));
    assert!(job.status.success(), "{}\n{}", job.status, job.output);
    for ((name, one), (_, two)) in weights(&one).into_iter().zip(weights(&two)) {
        let largest = one.iter().fold(1e-2f32, |largest, value| largest.max(value.abs()));
        for (one, two) in one.into_iter().zip(two) {
            assert!((one - two).abs() < 1e-2 * largest, "{name}: {one} and {two}");
        }
    }
}

#[test]
fn plans_that_are_missing_or_do_not_fit_the_data_are_named() {
    let shop = Shop::new();
    let stderr = refused(shop.train().args(["-p", "nnUNetResEncUNetLPlans"]));
    let known = format!(
        "nnUNetResEncUNetLPlans.json: missing; create it with `nnunet-dist plan`; -p accepts nnUNetPlans, {PLANS}"
    );
    assert!(stderr.contains(&known), "{stderr}");
    // The plans share data with the default ones; with another spacing they may not.
    shop.edit_plans(|configuration| configuration["spacing"][0] = json!(2.5));
    let stderr = refused(&mut shop.train());
    assert!(stderr.contains("the plans say [2.5") && stderr.contains("preprocess again"), "{stderr}");

    let mut plan = shop.command("plan");
    plan.arg("-d").arg(shop.path("dataset")).args(["--plans-name", "dataset"]);
    assert_eq!(plan.output().unwrap().status.code(), Some(2));
}

/// Names and values of a run's weights.
fn weights(run: &RunDir) -> Vec<(String, Vec<f32>)> {
    let model = SavedModel::read(&run.checkpoint_latest()).unwrap();
    model.weights.into_iter().map(|tensor| (tensor.spec.name, tensor.values)).collect()
}

#[track_caller]
fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    let arguments: Vec<&OsStr> = command.get_args().collect();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The standard error of a command that must exit with code 3.
#[track_caller]
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    stderr
}
