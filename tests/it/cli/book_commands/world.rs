//! The things a page assumes: datasets, images, trained networks. Made once, small, and copied for each page.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nnunet_dist::phantom::PhantomOptions;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::commands::program;
use crate::pages as book;
use crate::plans::shrink;
use crate::series::Series;

/// The things in the folder of a page that is not listed below.
const USUAL: &[&str] = &["Task04_Hippocampus", "hippocampus", "images", "imagesTs=images", "labels"];

/// The same for pages that need other things: names in the folder of the page, `NAME=THING` if the thing has another
/// name in the world.
const GIVEN: &[(&str, &[&str])] = &[
    ("README.md", &["Task04_Hippocampus"]),
    ("docs/tutorial.md", &[]),
    ("docs/benchmarks/hippocampus.md", &["Task04_Hippocampus", "images", "MODEL=nnunet_model"]),
    ("docs/how-to/benchmarks.md", &["Task04_Hippocampus", "WORK=hippocampus", "RUN=run", "IMAGES=images", "scratch"]),
    (
        "docs/how-to/best-configuration.md",
        &[
            "hippocampus=untrained",
            "INPUT_FOLDER=images",
            "held_out_predictions=predicted",
            "labels",
            "predictions=predicted",
        ],
    ),
    ("docs/how-to/cascade.md", &["DATASET=Task04_Hippocampus", "images", "lowres_predictions=labels"]),
    (
        "docs/how-to/data.md",
        &["Task04_Hippocampus", "Task05_Prostate", "image.nii.gz", "prediction.nii.gz", "scan.nrrd", "dicom"],
    ),
    (
        "docs/how-to/import-nnunet.md",
        &["nnUNet_results", "nnUNet_preprocessed", "hippocampus", "images", "checkpoint_final.pth"],
    ),
    ("docs/reference/cli.md#nnunet-dist-convert", &["Task05_Prostate", "ct.nrrd=scan.nrrd", "dicom"]),
    (
        "docs/reference/cli.md",
        &[
            "Task04_Hippocampus",
            "hippocampus",
            "WORK=cascade",
            "runs/old=run",
            "images",
            "imagesTs=images",
            "image.nii.gz",
            "ct.nii.gz=image.nii.gz",
            "case_0000.nii.gz=image.nii.gz",
            "case_0001.nii.gz=image.nii.gz",
            "case.nii.gz=prediction.nii.gz",
            "prediction.nii.gz",
            "predictions=predicted",
            "held_out_predictions=predicted",
            "labels",
            "nnUNet_results",
            "nnUNet_preprocessed",
            "checkpoint_final.pth",
            "scratch",
            ".local/share/bash-completion/completions=empty",
            ".zfunc=empty",
            ".config/fish/completions=empty",
        ],
    ),
    ("docs/how-to/planners.md", &["Task04_Hippocampus", "images"]),
    (
        "docs/how-to/serve.md",
        &["hippocampus", "brats", "image.nii.gz", "flair.nii.gz=image.nii.gz", "t1.nii.gz=image.nii.gz"],
    ),
];

/// All things that pages may need, in one folder.
pub struct World {
    folder: TempDir,
}

impl World {
    /// Makes the raw datasets and images.
    pub fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        for (name, channels) in [("Dataset004_Hippocampus", ["MR"].as_slice()), ("Dataset005_Prostate", &["T2", "ADC"])]
        {
            world.dataset(name, channels);
        }
        world.convert(&["--to-msd", "Dataset004_Hippocampus", "-o", "Task04_Hippocampus"]);
        world.convert(&["--to-msd", "Dataset005_Prostate", "-o", "Task05_Prostate"]);
        copy(&world.path("Dataset004_Hippocampus/imagesTs"), &world.path("images"));
        copy(&world.path("Dataset004_Hippocampus/labelsTs"), &world.path("labels"));
        copy(&world.path("images/hippocampus_006_0000.nii.gz"), &world.path("image.nii.gz"));
        copy(&world.path("labels/hippocampus_006.nii.gz"), &world.path("prediction.nii.gz"));
        world.convert(&["image.nii.gz", "scan.nrrd"]);
        fs::create_dir_all(world.path("dicom/patient_1")).unwrap();
        Series::default().write(&world.path("dicom/patient_1"));
        fs::create_dir(world.path("scratch")).unwrap();
        fs::create_dir(world.path("empty")).unwrap();
        // As `predict` leaves a folder.
        copy(&world.path("labels"), &world.path("predicted"));
        copy(&world.path("Dataset004_Hippocampus/dataset.json"), &world.path("predicted/dataset.json"));
        world
    }

    /// Makes the raw datasets and images, and trains networks on them.
    pub fn with_networks() -> Self {
        let world = Self::new();
        world.plan("Task04_Hippocampus", "hippocampus", &[], &["2d", "3d_fullres"]);
        copy(&world.path("hippocampus"), &world.path("untrained"));
        for configuration in ["2d", "3d_fullres"] {
            for fold in ["0", "1", "2", "3", "4", "all"] {
                world.train("hippocampus", configuration, fold, &["--npz"]);
            }
        }
        world.succeeds(&["plan", "-d", "Task04_Hippocampus", "-w", "hippocampus", "--planner", "resenc-l"]);
        world.nan_dump("hippocampus/runs/3d_fullres/fold_0");
        copy(&world.path("hippocampus/runs/3d_fullres/fold_0"), &world.path("run"));
        world.succeeds(&["export", "-r", "run", "--to", "pth", "-o", "exported"]);
        copy(&world.path("exported/fold_0/checkpoint_final.pth"), &world.path("checkpoint_final.pth"));

        world.plan("Dataset005_Prostate", "brats", &[], &["3d_fullres"]);
        world.train("brats", "3d_fullres", "0", &[]);

        let stages = ["3d_lowres", "3d_fullres", "3d_cascade_fullres"];
        world.plan("Task04_Hippocampus", "cascade", &["--force-lowres"], &stages);
        for configuration in ["3d_lowres", "3d_cascade_fullres"] {
            for fold in ["0", "1", "2", "3", "4"] {
                world.train("cascade", configuration, fold, &[]);
            }
        }

        // Files written by nnU-Net itself.
        let files = book::root().join("tests/nnunet_files");
        let name = "Dataset004_Hippocampus";
        copy(&files.join("3d_fullres"), &world.path("nnunet_model"));
        let trained = format!("nnUNet_results/{name}/nnUNetTrainer__nnUNetPlans__3d_fullres");
        copy(&files.join("3d_fullres"), &world.path(&trained));
        copy(&files.join("preprocessed"), &world.path(&format!("nnUNet_preprocessed/{name}")));
        world
    }

    /// Makes the folder of a page: copies of the things it assumes, and links to files of the checkout.
    pub fn folder_for(&self, page: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for entry in ["benches", "configs", "docs", "slurm", "src", "tests"] {
            symlink(book::root().join(entry), folder.path().join(entry)).unwrap();
        }
        let given_to = |page: &str| GIVEN.iter().find(|(name, _)| *name == page).map(|(_, given)| *given);
        // A section has the things of its page, unless listed itself.
        let of_page = || given_to(page.split('#').next().unwrap());
        let given = given_to(page).or_else(of_page).unwrap_or(USUAL);
        for name in given {
            let (name, thing) = name.split_once('=').unwrap_or((name, name));
            copy(&self.path(thing), &folder.path().join(name));
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Five training cases and two test cases in nnU-Net's layout; all channels are equal.
    fn dataset(&self, name: &str, channels: &[&str]) {
        let folder = self.path(name);
        let case = name.rsplit('_').next().unwrap().to_lowercase();
        PhantomOptions { train_cases: 5, test_cases: 2, shape: [20, 24, 20], seed: 7 }.generate(&folder).unwrap();
        for part in ["imagesTr", "labelsTr", "imagesTs", "labelsTs"] {
            for entry in fs::read_dir(folder.join(part)).unwrap() {
                let path = entry.unwrap().path();
                let phantom = path.file_name().unwrap().to_str().unwrap().to_owned();
                // Numbered from 1.
                let number: usize = phantom["phantom_".len()..][..3].parse().unwrap();
                let rest = &phantom["phantom_000".len()..];
                for channel in 1..channels.len() {
                    if let Some(ending) = rest.strip_prefix("_0000") {
                        fs::copy(&path, path.with_file_name(format!("{case}_{:03}_{channel:04}{ending}", number + 1)))
                            .unwrap();
                    }
                }
                fs::rename(&path, path.with_file_name(format!("{case}_{:03}{rest}", number + 1))).unwrap();
            }
        }
        edit(&folder.join("dataset.json"), |dataset| {
            let names = channels.iter().enumerate().map(|(index, name)| (index.to_string(), json!(name)));
            dataset["channel_names"] = Value::Object(names.collect());
        });
    }

    /// Plans small networks and preprocesses for them.
    fn plan(&self, dataset: &str, work: &str, more: &[&str], configurations: &[&str]) {
        self.succeeds(&[&["plan", "-d", dataset, "-w", work], more].concat());
        edit(&self.path(work).join("nnUNetPlans.json"), |plans| {
            // The second stage of a cascade inherits its architecture.
            let own = |name: &&&str| plans["configurations"][**name].get("architecture").is_some();
            let own: Vec<&&str> = configurations.iter().filter(own).collect();
            own.into_iter().for_each(|name| shrink(&mut plans["configurations"][name]));
        });
        self.succeeds(&[&["preprocess", "-w", work, "-c"], configurations].concat());
    }

    fn train(&self, work: &str, configuration: &str, fold: &str, more: &[&str]) {
        let train = ["train", "-w", work, "-c", configuration, "-f", fold];
        let short = ["--epochs", "1", "--iters-per-epoch", "2", "--val-iters", "1", "--batch-size", "2"];
        self.succeeds(&[&train[..], &short, more].concat());
    }

    /// Writes a dump of a training step with a NaN loss, as if it were step 123 of a run.
    fn nan_dump(&self, run: &str) {
        let train = ["train", "-w", "hippocampus", "-c", "3d_fullres", "-f", "0", "--run-dir", "diverged"];
        let short =
            ["--epochs", "1", "--iters-per-epoch", "9", "--val-iters", "0", "--batch-size", "2", "--lr", "1e37"];
        let output = self.program(&[&train[..], &short].concat());
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
        let dump = fs::read_dir(self.path("diverged/nan_dumps")).unwrap().next().unwrap().unwrap();
        let place = self.path(run).join("nan_dumps/step_0000000123");
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::rename(dump.path(), place).unwrap();
    }

    fn convert(&self, arguments: &[&str]) {
        self.succeeds(&[&["convert"], arguments].concat());
    }

    fn succeeds(&self, arguments: &[&str]) {
        let output = self.program(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn program(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(program());
        command.current_dir(self.folder.path()).args(arguments).env_remove("RUST_LOG").output().unwrap()
    }
}

/// Edits a JSON file.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Copies a file or a folder with its contents; symbolic links stay links.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "{} cannot be copied", from.display());
}
