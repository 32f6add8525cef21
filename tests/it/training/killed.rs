//! Commands that are killed at any moment: no visible file is torn, and the same command, run again, leaves what an
//! undisturbed run leaves, and nothing else.
//!
//! `NNUNET_KILLS` sets the number of moments per command (two by default).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::disk::SmallDisk;
use crate::work::{CONFIGURATION, Workshop, program};

/// A command to kill.
struct Victim {
    name: &'static str,
    arguments: &'static str,
    /// Files and folders removed before the command.
    without: &'static [&'static str],
}

const RUN: &str = "work/runs/3d_fullres/fold_0";

const VICTIMS: [Victim; 12] = [
    Victim { name: "plan", arguments: "plan -d dataset -w planned -c 3d_fullres", without: &[] },
    Victim { name: "preprocess", arguments: "preprocess -w work -c 3d_fullres", without: &["work/preprocessed"] },
    Victim { name: "preprocess again", arguments: "preprocess -w work -c 3d_fullres", without: &[] },
    Victim {
        name: "train",
        arguments: "train -w work -c 3d_fullres -f 1 --config settings.toml --resume=auto",
        without: &[],
    },
    Victim {
        name: "train --val",
        arguments: "train -w work -c 3d_fullres -f 0 --config settings.toml --val",
        without: &["work/runs/3d_fullres/fold_0/validation"],
    },
    Victim {
        name: "predict",
        arguments: "predict -r work/runs/3d_fullres/fold_0 -i dataset/imagesTr -o predicted --save-probabilities",
        without: &[],
    },
    Victim {
        name: "predict --continue",
        arguments: "predict -r work/runs/3d_fullres/fold_0 -i dataset/imagesTr -o predicted --no-tta --continue",
        without: &[],
    },
    Victim {
        name: "ensemble",
        arguments: "ensemble -i work/runs/3d_fullres/fold_0/validation work/runs/3d_fullres/fold_0/validation -o merged --dataset-json dataset/dataset.json",
        without: &[],
    },
    Victim {
        name: "evaluate",
        arguments: "evaluate -p work/runs/3d_fullres/fold_0/validation -g dataset/labelsTr --chill -o scores.json",
        without: &[],
    },
    Victim {
        name: "postprocess",
        arguments: "postprocess -i work/runs/3d_fullres/fold_0/validation --determine -g dataset/labelsTr",
        without: &[],
    },
    Victim { name: "export", arguments: "export -r work/runs/3d_fullres/fold_0 --to pth -o exported", without: &[] },
    Victim { name: "phantom", arguments: "phantom -o phantoms --train 20 --test 2", without: &[] },
];

#[test]
fn commands_that_are_killed_can_be_run_again() {
    let moments = std::env::var("NNUNET_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(2);
    let base = TempDir::new().unwrap();
    prepare(base.path());
    let mut report = String::new();
    for victim in &VICTIMS {
        let whole = copy(base.path(), victim);
        let began = Instant::now();
        run(victim.arguments, whole.path());
        let length = began.elapsed();
        let expected = files(whole.path());
        let mut killed = 0;
        for moment in 0..moments {
            let folder = copy(base.path(), victim);
            let before = files(folder.path());
            let mut child = program();
            child.args(victim.arguments.split(' ')).current_dir(folder.path());
            let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            thread::sleep(length.mul_f64((f64::from(moment) + 0.5) / f64::from(moments)));
            child.kill().unwrap();
            killed += u32::from(child.wait().unwrap().signal().is_some());
            for (path, bytes) in files(folder.path()) {
                let is_whole = is_partial(&path)
                    || expected.get(&path) == Some(&bytes)
                    || before.get(&path) == Some(&bytes)
                    // Only in a run that is not over: an earlier checkpoint, and links to it.
                    || path.to_string_lossy().contains("/checkpoint");
                assert!(is_whole, "{}, moment {moment}: {} is torn", victim.name, path.display());
            }
            run(victim.arguments, folder.path());
            let found = files(folder.path());
            let differing: Vec<_> = expected
                .keys()
                .chain(found.keys())
                .filter(|path| expected.get(*path) != found.get(*path))
                .map(|path| path.display().to_string())
                .collect();
            assert!(differing.is_empty(), "{}, moment {moment}: differs in {differing:?}", victim.name);
        }
        report += &format!("{}: {killed} of {moments} killed within {:.2} s\n", victim.name, length.as_secs_f64());
    }
    print!("{report}");
}

/// A dataset, planned, preprocessed and trained in one fold, with probabilities of its held-out case.
fn prepare(base: &Path) {
    let shop = Workshop::new();
    copy_folder(&shop.dataset(), &base.join("dataset"));
    copy_folder(shop.work.root(), &base.join("work"));
    fs::copy(shop.settings(), base.join("settings.toml")).unwrap();
    fs::write(base.join("work/source.toml"), format!("dataset = {:?}\n", base.join("dataset"))).unwrap();
    run(&format!("preprocess -w work -c {CONFIGURATION}"), base);
    run(&format!("train -w work -c {CONFIGURATION} -f 0 --config settings.toml --npz"), base);
    assert!(base.join(RUN).join("checkpoint_latest").exists());
}

fn run(arguments: &str, folder: &Path) {
    let output = program().args(arguments.split(' ')).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Copies the prepared folder, without the files that the command makes.
fn copy(base: &Path, victim: &Victim) -> TempDir {
    let folder = TempDir::new().unwrap();
    copy_into(base, folder.path(), victim);
    folder
}

fn copy_into(base: &Path, folder: &Path, victim: &Victim) {
    copy_folder(base, folder);
    for path in victim.without {
        fs::remove_dir_all(folder.join(path)).unwrap();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&path).unwrap(), &target).unwrap();
        } else if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            // With its modification time, by which changed files are recognized.
            fs::copy(&path, &target).unwrap();
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            fs::File::options().append(true).open(&target).unwrap().set_modified(time).unwrap();
        }
    }
}

/// All files below a folder, except those that contain times or the path of the folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    const VARYING: [&str; 5] = ["log.jsonl", "status.json", "train.log", "progress.png", "source.toml"];
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let relative = path.strip_prefix(folder).unwrap().to_owned();
            if path.is_symlink() {
                found.insert(relative, fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
            } else if path.is_dir() {
                left.push(path);
            } else if !VARYING.contains(&name.as_str()) {
                found.insert(relative, fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn is_partial(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // The lock of the killed process.
    name.contains(".lock") || path.components().any(|part| part.as_os_str().to_string_lossy().starts_with(".partial-"))
}

#[test]
fn a_full_disk_is_a_temporary_failure_of_every_command() {
    let base = TempDir::new().unwrap();
    prepare(base.path());
    for victim in &VICTIMS {
        let mount = TempDir::new().unwrap();
        let Some(disk) = SmallDisk::mount(mount.path().join("disk"), 256 << 20) else { return };
        copy_into(base.path(), &disk.folder, victim);
        let before = files(&disk.folder);
        let filler = disk.fill();
        let output = program().args(victim.arguments.split(' ')).current_dir(&disk.folder).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or_default();
        assert_eq!(output.status.code(), Some(75), "{}: {stderr}", victim.name);
        assert!(last.starts_with("error: ") && last.contains("(os error 28)"), "{}: {stderr}", victim.name);
        fs::remove_file(filler).unwrap();
        for (path, bytes) in files(&disk.folder) {
            // A training keeps what it can: its configuration, empty files.
            let is_new = before.get(&path) != Some(&bytes);
            assert!(!is_new || victim.name == "train" || bytes.is_empty(), "{}: {}", victim.name, path.display());
        }
        run(victim.arguments, &disk.folder);
    }
}

#[test]
fn new_files_have_the_mode_of_the_umask() {
    let base = TempDir::new().unwrap();
    prepare(base.path());
    for victim in &VICTIMS {
        let folder = copy(base.path(), victim);
        let before: Vec<PathBuf> = files(folder.path()).into_keys().collect();
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask 077; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_nnunet-dist")]);
        let output = shell.args(victim.arguments.split(' ')).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}: {}", victim.name, String::from_utf8_lossy(&output.stderr));
        for path in files(folder.path()).into_keys().filter(|path| !before.contains(path)) {
            let path = folder.path().join(path);
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mode = metadata.permissions().mode();
            let is_private = metadata.is_symlink() || mode & 0o077 == 0;
            assert!(is_private, "{}: {} has mode {mode:o}", victim.name, path.display());
        }
    }
}

/// A dead process does not hold a folder for ever.
#[test]
fn a_killed_training_does_not_lock_its_run() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let mut command = shop.train(&run);
    command.args(["--iters-per-epoch", "100000"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let began = Instant::now();
    while !run.status().exists() {
        assert!(child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(shop.train(&run).arg("--resume=auto").output().unwrap().status.success());
}
