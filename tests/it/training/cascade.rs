//! The cascade: a first stage at low resolution, whose segmentations are an input of a second stage at full resolution.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ndarray::{Array3, Array4};
use nnunet_dist::augment::Pipeline;
use nnunet_dist::augment::cascade::PreviousStage;
use nnunet_dist::checkpoint::SavedModel;
use nnunet_dist::distributed::Single;
use nnunet_dist::eval::{FolderOptions, Summary, evaluate_folder};
use nnunet_dist::image::{read_labels, write_labels};
use nnunet_dist::loader::{Batch, Loader, LoaderOptions, Oversampling, Sampler, SamplerOptions, Shard};
use nnunet_dist::phantom::PhantomOptions;
use nnunet_dist::plan::Plans;
use nnunet_dist::rng::Purpose;
use nnunet_dist::store::{CachedStore, CaseStore, NativeStore, label_map, stage_label_maps, write_label_map};
use nnunet_dist::work::{RunDir, WorkDir};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::job;
use crate::work;

const FIRST: &str = "3d_lowres";
const SECOND: &str = "3d_cascade_fullres";

/// Settings of a training of a few seconds in one process. Flags override them.
const SETTINGS: &str = r#"
[training]
epochs = 1
iterations_per_epoch = 2
validation_iterations = 1
batch_size = 2
"#;

/// Five phantoms in two folds, with plans for a cascade of small networks, preprocessed for both stages.
struct Cascade {
    folder: TempDir,
    work: WorkDir,
}

impl Cascade {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let work = WorkDir::new(folder.path().join("work"));
        let dataset = folder.path().join("dataset");
        PhantomOptions { train_cases: 5, test_cases: 2, shape: [24, 28, 24], seed: 7 }.generate(&dataset).unwrap();
        let cascade = Self { folder, work };
        let flags = ["-c", SECOND, "--force-lowres", "-d", dataset.to_str().unwrap()];
        cascade.run("plan", &flags);
        cascade.edit_plans(|configurations| [FIRST, "3d_fullres"].map(|name| work::shrink(&mut configurations[name])));
        let splits = json!([
            {"train": ["phantom_000", "phantom_001", "phantom_002"], "val": ["phantom_003", "phantom_004"]},
            {"train": ["phantom_003", "phantom_004"], "val": ["phantom_000", "phantom_001", "phantom_002"]},
        ]);
        fs::write(cascade.work.splits(), splits.to_string()).unwrap();
        fs::write(cascade.path("settings.toml"), SETTINGS).unwrap();
        cascade.run("preprocess", &["-c", FIRST, SECOND]);
        cascade
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn edit_plans<T>(&self, edit: impl FnOnce(&mut Value) -> T) {
        let path = self.work.plans();
        let mut plans: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut plans["configurations"]);
        fs::write(path, plans.to_string()).unwrap();
    }

    fn command(&self, subcommand: &str, flags: &[&str]) -> Command {
        let mut command = work::program();
        command.arg(subcommand).arg("-w").arg(self.work.root()).args(flags);
        command
    }

    fn run(&self, subcommand: &str, flags: &[&str]) -> String {
        succeed(self.command(subcommand, flags))
    }

    fn train(&self, stage: &str, fold: &str, flags: &[&str]) -> Command {
        let mut command = self.command("train", &["-c", stage, "-f", fold]);
        command.arg("--config").arg(self.path("settings.toml")).args(flags);
        command
    }

    fn run_dir(&self, stage: &str, fold: &str) -> RunDir {
        self.work.run(stage, fold.parse().unwrap())
    }

    /// `nnunet-dist predict` on the test images with a run of either stage.
    fn predict(&self, run: &RunDir, output: &str, flags: &[&str]) -> Command {
        let mut command = work::program();
        command.arg("predict").arg("-r").arg(run.root()).arg("-i").arg(self.path("dataset/imagesTs"));
        command.arg("-o").arg(self.path(output)).arg("--no-tta").args(flags);
        command
    }

    /// The folder with the preprocessed cases of the second stage.
    fn store(&self) -> PathBuf {
        self.work.preprocessed("nnUNetPlans_3d_fullres")
    }

    /// Writes the true labels of each case as predictions of the first stage.
    fn truth(&self) -> BTreeMap<String, PathBuf> {
        (0..5)
            .map(|number| format!("phantom_{number:03}"))
            .map(|id| (id.clone(), label_map(&self.store(), &id)))
            .collect()
    }
}

#[test]
fn both_stages_are_trained_resumed_and_predicted() {
    let cascade = Cascade::new();
    let second = cascade.run_dir(SECOND, "0");
    refused(
        cascade.train(SECOND, "0", &[]),
        &["no segmentations from 3d_lowres for 5 of 5 cases", "-c 3d_lowres -f 0", "-c 3d_lowres -f 1"],
    );
    succeed(cascade.train(FIRST, "0", &[]));
    refused(cascade.train(SECOND, "0", &[]), &["3 of 5 cases: phantom_000, phantom_001, phantom_002;", "-f 1"]);
    assert!(!second.root().exists(), "a run that never began leaves no folder");
    succeed(cascade.train(FIRST, "1", &[]));

    // The predictions of the first stage are in the folds that hold the cases out, at the second stage's spacing.
    let store = NativeStore::open(&cascade.store()).unwrap();
    let left =
        |fold: &str, case: &str| cascade.run_dir(FIRST, fold).predicted_next_stage(SECOND).join(format!("{case}.npy"));
    for (case, fold) in [("phantom_000", "1"), ("phantom_003", "0"), ("phantom_004", "0")] {
        let [z, y, x] = store.info(case).unwrap().shape;
        let labels: Array4<i16> = ndarray_npy::read_npy(left(fold, case)).unwrap();
        assert_eq!(labels.dim(), (1, z, y, x));
        assert!(labels.iter().all(|label| (0..3).contains(label)));
        let other = if fold == "0" { "1" } else { "0" };
        assert!(!left(other, case).exists());
    }

    succeed(cascade.train(SECOND, "0", &[]));
    let model = SavedModel::read(&second.checkpoint_latest()).unwrap().description;
    assert_eq!(model.network_spec().unwrap().channels, 3, "the image, and two classes of the first stage");
    succeed(cascade.train(SECOND, "0", &["--epochs", "2", "--resume"]));
    assert_eq!(fs::read_to_string(second.log()).unwrap().lines().count(), 2);
    let summary = Summary::load(&second.validation().join("summary.json")).unwrap();
    assert_eq!(summary.metric_per_case.len(), 2);

    // The input can be the first stage's label maps or the run that predicts them.
    let first = cascade.run_dir(FIRST, "0");
    succeed(cascade.predict(&first, "first", &[]));
    let given = cascade.path("first");
    succeed(cascade.predict(&second, "given", &["--prev-stage-predictions", given.to_str().unwrap()]));
    succeed(cascade.predict(&second, "made", &["--prev-stage", first.root().to_str().unwrap()]));
    for case in ["phantom_005.nii.gz", "phantom_006.nii.gz"] {
        let read = |folder: &str| read_labels(&cascade.path(folder).join(case)).unwrap();
        assert_eq!(read("made").data, read("given").data);
        assert_eq!(read("made/previous_stage").data, read("first").data);
    }
    evaluate_folder(&cascade.path("made"), &cascade.path("dataset/labelsTs"), &FolderOptions::default()).unwrap();

    refused(cascade.predict(&second, "none", &[]), &["3d_lowres", "--prev-stage-predictions", "--prev-stage"]);
    let flags = ["--prev-stage-predictions", given.to_str().unwrap()];
    refused(cascade.predict(&first, "none", &flags), &["not the second stage of a cascade"]);
    let flags = ["--prev-stage", second.root().to_str().unwrap()];
    refused(cascade.predict(&second, "none", &flags), &["trained as 3d_cascade_fullres", "requires 3d_lowres"]);
    fs::remove_file(given.join("phantom_006.nii.gz")).unwrap();
    let flags = ["--prev-stage-predictions", given.to_str().unwrap()];
    refused(cascade.predict(&second, "none", &flags), &[given.to_str().unwrap(), "phantom_006"]);
    assert!(!cascade.path("none").exists());
}

/// With a perfect first stage, the second stage learns in a few steps; without its input, it fails.
#[test]
fn the_second_stage_learns_to_use_the_first_ones_segmentation() {
    let cascade = Cascade::new();
    let first = RunDir::new(cascade.path("perfect"));
    for (case, file) in cascade.truth() {
        let target = first.predicted_next_stage(SECOND).join(format!("{case}.npy"));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
    let flags = ["--prev-stage", first.root().to_str().unwrap(), "--iters-per-epoch", "150", "--optimizer", "adam"];
    succeed(cascade.train(SECOND, "0", &[&flags[..], &["--lr", "0.005"]].concat()));
    let second = cascade.run_dir(SECOND, "0");
    let dice = Summary::load(&second.validation().join("summary.json")).unwrap().mean_dice();
    assert!(dice > 0.9, "mean Dice of the held-out cases {dice}");

    let truth = cascade.path("dataset/labelsTs");
    let blank = cascade.path("blank");
    for case in ["phantom_005.nii.gz", "phantom_006.nii.gz"] {
        let mut labels = read_labels(&truth.join(case)).unwrap();
        labels.data.fill(0);
        write_labels(&blank.join(case), &labels).unwrap();
    }
    let dice = |output: &str, previous: &Path| {
        succeed(cascade.predict(&second, output, &["--prev-stage-predictions", previous.to_str().unwrap()]));
        evaluate_folder(&cascade.path(output), &truth, &FolderOptions::default()).unwrap().mean_dice()
    };
    let (helped, lost) = (dice("helped", &truth), dice("lost", &blank));
    assert!(helped > 0.9 && lost < 0.5, "mean Dice {helped} with the true labels and {lost} without any");
}

#[test]
fn two_processes_under_mpirun_train_and_predict_a_cascade_as_one() {
    let Some(launcher) = job::launcher() else { return };
    let cascade = Cascade::new();
    let run = |command: Command| {
        let job = job::observe(job::in_parallel(launcher, 2, &[], &command));
        assert!(job.status.success(), "{}\n{}", job.status, job.output);
    };
    run(cascade.train(FIRST, "all", &["--batch-size", "1"]));
    let left = cascade.run_dir(FIRST, "all").predicted_next_stage(SECOND);
    assert_eq!(fs::read_dir(left).unwrap().count(), 5, "each rank has written its part");

    let [one, two] = ["one", "two"].map(|name| RunDir::new(cascade.path(name)));
    let train = |run: &RunDir, batch: &str, flags: &[&str]| {
        let flags = [&["--epochs", "2", "--batch-size", batch, "--run-dir", run.root().to_str().unwrap()], flags];
        cascade.train(SECOND, "0", &flags.concat())
    };
    succeed(train(&one, "2", &[]));
    let disk = cascade.path("disk");
    run(train(&two, "1", &["--cache-gb", "0.1", "--local-cache-dir", disk.to_str().unwrap()]));
    let losses = |run: &RunDir| -> Vec<f64> {
        let log = fs::read_to_string(run.log()).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.flat_map(|line| ["train_loss", "val_loss"].map(|key| line[key].as_f64().unwrap())).collect()
    };
    let (one_losses, two_losses) = (losses(&one), losses(&two));
    assert_eq!((one_losses.len(), two_losses.len()), (4, 4));
    for (one, two) in one_losses.iter().zip(&two_losses) {
        assert!((one - two).abs() < 1e-3, "{one_losses:?} and {two_losses:?}");
    }

    let first = cascade.run_dir(FIRST, "all");
    let flags = ["--prev-stage", first.root().to_str().unwrap()];
    succeed(cascade.predict(&one, "by_one", &flags));
    run(cascade.predict(&one, "by_two", &flags));
    for case in ["phantom_005.nii.gz", "phantom_006.nii.gz"] {
        let read = |folder: &str| read_labels(&cascade.path(folder).join(case)).unwrap().data;
        assert_eq!(read("by_one"), read("by_two"));
    }
}

#[test]
fn any_number_of_ranks_draws_the_same_samples_with_the_same_channels() {
    let cascade = Cascade::new();
    let store = Arc::new(NativeStore::open(&cascade.store()).unwrap().with_previous_stage(&cascade.truth()).unwrap());
    let one = batches(&store, 1, 0).into_iter().flat_map(samples);
    let [first, second] = [0, 1].map(|rank| batches(&store, 2, rank));
    let two = first.into_iter().zip(second).flat_map(|(first, second)| [samples(first), samples(second)].concat());
    let (one, two): (Vec<_>, Vec<_>) = (one.collect(), two.collect());
    assert_eq!(one.len(), 24);
    assert!(one == two);
    // The channels are the classes of the labels, except where they are augmented.
    let is_class = |sample: &(Array4<f32>, Array3<i16>), class: i16| {
        let channel = sample.0.index_axis(ndarray::Axis(0), class as usize);
        channel.iter().zip(&sample.1).all(|(value, label)| *value == f32::from(u8::from(*label == class)))
    };
    let same = one.iter().filter(|sample| is_class(sample, 1) && is_class(sample, 2)).count();
    assert!((8..24).contains(&same), "{same} of 24");
}

/// Twelve steps with a global batch of two.
fn batches(store: &Arc<NativeStore>, world_size: usize, rank: usize) -> Vec<Batch> {
    let pipeline = Pipeline::nnunet([16; 3], &[0, 1, 2], &[false]);
    let pipeline = Arc::new(pipeline.with_previous_stage(PreviousStage::nnunet(vec![1, 2])));
    let options = SamplerOptions {
        seed: 1234,
        purpose: Purpose::TrainSample,
        patch_size: pipeline.read_patch_size(),
        final_patch_size: pipeline.patch_size(),
        global_batch_size: 2,
        oversample_foreground: 0.33,
        oversampling: Oversampling::Deterministic,
        shard: Shard::Random,
    };
    let sampler = Sampler::new(store.clone(), store.case_ids().to_vec(), options).unwrap();
    let options = LoaderOptions {
        rank,
        world_size,
        batch_per_rank: 2 / world_size,
        workers: 2,
        prefetch: 2,
        epochs: 0..1,
        first_iteration: 0,
        iterations_per_epoch: 12,
    };
    let mut loader = Loader::start(store.clone(), sampler, pipeline, options).unwrap();
    (0..12).map(|_| loader.next().unwrap()).collect()
}

/// Image, previous stage and labels of each sample.
fn samples(batch: Batch) -> Vec<(Array4<f32>, Array3<i16>)> {
    let samples = batch.images.outer_iter().zip(batch.labels.outer_iter());
    samples.map(|(image, labels)| (image.to_owned(), labels.to_owned())).collect()
}

#[test]
fn the_previous_stage_is_read_cached_and_staged_with_its_case() {
    let cascade = Cascade::new();
    let truth = cascade.truth();
    let open = || NativeStore::open(&cascade.store()).unwrap();
    let store: Arc<dyn CaseStore> = Arc::new(open().with_previous_stage(&truth).unwrap());
    let disk = cascade.path("disk");
    let staged = stage_label_maps(&truth, &disk, &Single).unwrap();
    assert!(staged.values().all(|file| file.starts_with(&disk)));
    let staged = open().with_previous_stage(&staged).unwrap();
    let cached = CachedStore::new(store.clone(), 1 << 30);
    let info = store.info("phantom_002").unwrap().clone();
    let read = |store: &dyn CaseStore| {
        let mut patch = info.blank_patch([20, 40, 20]);
        store.read_patch("phantom_002", [-3, -5, 6], &mut patch).unwrap();
        patch
    };
    let patch = read(&*store);
    assert_eq!(patch.previous.as_ref(), Some(&patch.labels));
    assert!(patch == read(&cached) && patch == read(&staged));
    assert_eq!(cached.bytes(), info.shape.iter().product::<usize>() * 8);

    let wrong = cascade.path("wrong.npy");
    write_label_map(&wrong, Array3::zeros((3, 4, 5)).view()).unwrap();
    let refused = |case: &str, file: &Path| {
        let maps = BTreeMap::from([(case.to_owned(), file.to_owned())]);
        open().with_previous_stage(&maps).err().unwrap().to_string()
    };
    let error = refused("phantom_002", &wrong);
    assert!(error.contains("wrong.npy") && error.contains("[1, 3, 4, 5]"), "{error}");
    assert!(refused("phantom_999", &wrong).contains("no case phantom_999"));
    assert!(refused("phantom_002", &cascade.path("none.npy")).contains("none.npy: cannot open"));
}

#[test]
fn stages_missing_from_the_plans_are_named_before_the_training() {
    let cascade = Cascade::new();
    cascade.edit_plans(|configurations| configurations[FIRST]["next_stage"] = json!(["3d_highres"]));
    refused(cascade.train(FIRST, "0", &[]), &["\"3d_highres\"", "available: 3d_lowres, 3d_fullres"]);
    cascade.edit_plans(|configurations| configurations[FIRST]["next_stage"] = json!(7));
    refused(cascade.train(FIRST, "0", &[]), &["3d_lowres", "next_stage must be"]);
    cascade.edit_plans(|configurations| configurations[SECOND]["previous_stage"] = json!(["3d_lowres"]));
    refused(cascade.train(SECOND, "0", &[]), &["3d_cascade_fullres", "previous_stage must be"]);
    // As nnU-Net's own tests add it.
    cascade.edit_plans(|configurations| {
        configurations["3d_half"] = json!({"inherits_from": "3d_fullres", "data_identifier": "nnUNetPlans_3d_half",
                                           "spacing": [2.0, 2.0, 2.0], "next_stage": SECOND});
        configurations[SECOND]["previous_stage"] = json!("3d_half");
    });
    let plans = Plans::load(&cascade.work.plans()).unwrap();
    assert_eq!(plans.configuration("3d_half").unwrap().next_stage_names(), [SECOND]);
    refused(cascade.train(SECOND, "0", &[]), &["no segmentations from 3d_half", "-c 3d_half -f 0"]);
}

/// Runs a command that must succeed, and returns its standard output.
#[track_caller]
fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must exit with code 3 and one error line with all of `words`.
#[track_caller]
fn refused(mut command: Command, words: &[&str]) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && stderr.lines().last() == Some(errors[0]), "{stderr}");
    words.iter().for_each(|word| assert!(errors[0].contains(word), "no `{word}` in {stderr}"));
}
