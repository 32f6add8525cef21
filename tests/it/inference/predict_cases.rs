//! Selection of cases to predict, files written next to the label maps, and results that are kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use assert_cmd::Command;
use nnunet_dist::dataset::DatasetJson;
use nnunet_dist::image::{Geometry, write_volume};
use nnunet_dist::plan::Plans;
use predicates::str::{contains, starts_with};
use serde_json::json;
use tempfile::TempDir;

use crate::tiny_model::{image, model, oblique, write_checkpoint};

const CASES: [&str; 4] = ["a", "b", "c", "d"];

/// A checkpoint and four images.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        write_checkpoint(&desk.path("checkpoint"), &model("3d_fullres", |_, _| {}), 5);
        for (number, case) in CASES.iter().enumerate() {
            let volume = image([17, 18, 17 + number], 0, Geometry::default());
            write_volume(&desk.image(case), &volume).unwrap();
        }
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn image(&self, case: &str) -> PathBuf {
        self.path(&format!("images/{case}_0000.nii.gz"))
    }

    fn predict(&self, images: &[PathBuf], output: &str, flags: &[&str]) -> Command {
        let mut command = Command::cargo_bin("nnunet-dist").unwrap();
        command.env_remove("RUST_LOG").args(["predict", "--no-tta", "-r"]).arg(self.path("checkpoint"));
        command.arg("-o").arg(self.path(output)).args(flags).arg("-i").args(images);
        command
    }

    fn folder(&self) -> Vec<PathBuf> {
        vec![self.path("images")]
    }

    /// The results of cases, by file name.
    fn results(&self, output: &str) -> BTreeMap<String, Vec<u8>> {
        let files = fs::read_dir(self.path(output)).unwrap().map(|entry| entry.unwrap());
        let files = files.filter(|entry| !entry.file_name().to_string_lossy().ends_with(".json"));
        files.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
    }
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

#[test]
fn parts_equal_the_whole() {
    let desk = Desk::new();
    desk.predict(&desk.folder(), "whole", &[]).assert().success().stdout(starts_with("4 cases in "));
    desk.predict(&desk.folder(), "parts", &["--part", "0/2"]).assert().success().stdout(starts_with("2 cases in "));
    assert_eq!(desk.results("parts").into_keys().collect::<Vec<_>>(), ["a.nii.gz", "c.nii.gz"]);
    desk.predict(&desk.folder(), "parts", &["--num_parts", "2", "--part_id", "1"]).assert().success();
    assert_eq!(desk.results("parts"), desk.results("whole"));
    desk.predict(&desk.folder(), "parts", &["--part", "2/2"]).assert().code(2).stderr(contains("count from 0"));
    let beyond = ["--num-parts", "2", "--part-id", "2"];
    desk.predict(&desk.folder(), "parts", &beyond).assert().code(3).stderr(contains("count from 0"));
}

#[test]
fn lists_and_files_are_predicted_as_folders_are() {
    let desk = Desk::new();
    desk.predict(&desk.folder(), "whole", &[]).assert().success();
    let whole = desk.results("whole");
    let [c, a] = ["c", "a"].map(|case| desk.image(case));
    desk.predict(&[c.clone(), a.clone()], "files", &[]).assert().success().stdout(starts_with("2 cases in "));
    assert_eq!(desk.results("files").into_keys().collect::<Vec<_>>(), ["a.nii.gz", "c.nii.gz"]);
    assert!(desk.results("files").iter().all(|(name, bytes)| whole[name] == *bytes));

    fs::write(desk.path("list.json"), json!({"x": [c], "y": ["images/a_0000.nii.gz"]}).to_string()).unwrap();
    desk.predict(&[desk.path("list.json")], "list", &[]).assert().success();
    let list = desk.results("list");
    assert_eq!((&list["x.nii.gz"], &list["y.nii.gz"]), (&whole["c.nii.gz"], &whole["a.nii.gz"]));
    assert_eq!(list.len(), 2);
}

#[test]
fn complete_results_are_kept() {
    let desk = Desk::new();
    let keep = ["--save-probabilities", "--continue"];
    desk.predict(&desk.folder(), "out", &keep).assert().success().stdout(starts_with("4 cases in "));
    let whole = desk.results("out");
    assert_eq!(whole.len(), 12);

    let path = |name: &str| desk.path("out").join(name);
    let kept = modified(&path("a.nii.gz"));
    let shorten = |name: &str| fs::write(path(name), &whole[name][..whole[name].len() / 2]).unwrap();
    shorten("b.nii.gz");
    shorten("c.npz");
    fs::remove_file(path("d.pkl")).unwrap();
    let resumed = desk.predict(&desk.folder(), "out", &keep).assert().success();
    resumed.stdout(predicates::str::ends_with(", 1 of them kept from an earlier run\n"));
    assert_eq!(desk.results("out"), whole);
    assert_eq!(modified(&path("a.nii.gz")), kept);

    // Without probabilities nothing is left to predict; without the flag, everything is predicted again.
    let label_maps = ["--continue_prediction"];
    desk.predict(&desk.folder(), "out", &label_maps)
        .assert()
        .success()
        .stdout(contains("4 of them kept from an earlier run"));
    desk.predict(&desk.folder(), "out", &[]).assert().success();
    assert!(modified(&path("a.nii.gz")) > kept);
}

/// Files that nnU-Net's `ensemble` needs in the folder: `dataset.json`, `plans.json`, and a pickle for each `npz`.
#[test]
fn files_for_ensembling_are_written_next_to_the_label_maps() {
    let desk = Desk::new();
    write_volume(&desk.image("a"), &image([18, 20, 19], 1, oblique())).unwrap();
    desk.predict(&desk.folder(), "out", &["--save-probabilities"]).assert().success();
    let expected = model("3d_fullres", |_, _| {});
    let read = |name: &str| fs::read(desk.path("out").join(name)).unwrap();
    assert_eq!(serde_json::from_slice::<DatasetJson>(&read("dataset.json")).unwrap(), expected.dataset);
    assert_eq!(serde_json::from_slice::<Plans>(&read("plans.json")).unwrap(), expected.plans);
    let pickle = String::from_utf8(read("a.pkl")).unwrap();
    assert!(pickle.starts_with("(dVsitk_stuff\n(dVspacing\n(lF1.1"), "{pickle}");
    assert!(pickle.contains("Vbbox_used_for_cropping\n(l(lI1\naI19\naa(lI1\naI17\naa(lI1\naI18\naa"), "{pickle}");
    assert!(pickle.ends_with("s."), "{pickle}");
}
