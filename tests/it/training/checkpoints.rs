//! Checkpoints survive processes killed at any moment, damaged files and full disks.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::work::RunDir;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::disk::SmallDisk;
use crate::job;
use crate::work;
use crate::work::{Workshop, tensors_of};

/// Epochs of a run, with a checkpoint after each.
const EPOCHS: usize = 80;
/// Number of times that a run is killed.
const KILLS: usize = 20;

fn train(shop: &Workshop, run: &RunDir, epochs: usize, flags: &[&str]) -> Command {
    let mut command = shop.train(run);
    let settings = fs::read_to_string(shop.settings()).unwrap().replace("checkpoint_every = 2", "checkpoint_every = 1");
    fs::write(shop.settings(), settings).unwrap();
    command.args(["--epochs", &epochs.to_string(), "--iters-per-epoch", "2", "--val-iters", "1"]).args(flags);
    command
}

/// Returns the output of a command that must succeed.
#[track_caller]
fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{command:?}: {stderr}");
    stderr
}

#[test]
fn a_run_killed_at_any_moment_ends_with_the_same_weights() {
    let shop = Workshop::new();
    survives_kills(&shop, |run| train(&shop, run, EPOCHS, &["--resume=auto"]));
}

#[test]
fn a_run_under_mpirun_killed_at_any_moment_ends_with_the_same_weights() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Workshop::new();
    survives_kills(&shop, |run| {
        job::in_parallel(launcher, 2, &[], &train(&shop, run, EPOCHS, &["--resume=auto", "--batch-size", "1"]))
    });
}

/// Kills all processes of a run with SIGKILL, repeatedly, at moments drawn from a seed.
fn survives_kills(shop: &Workshop, command: impl Fn(&RunDir) -> Command) {
    let [whole, killed] = ["whole", "killed"].map(|name| shop.run_dir(name));
    let began = Instant::now();
    succeed(command(&whole));
    let usual = began.elapsed();
    let mut moments = Xoshiro256PlusPlus::seed_from_u64(17);
    let mut newest = None;
    let mut while_writing = 0;
    for number in 0..KILLS {
        // From the start to after the next checkpoint, so that the run makes progress in some rounds.
        let delay = usual.mul_f64(0.2 * moments.random::<f64>());
        let mut process = command(&killed);
        process.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = process.spawn().unwrap();
        thread::sleep(delay);
        kill_group(&mut process);
        while_writing += usize::from(has_partial(&killed.checkpoints()));
        let now = latest(&killed);
        assert!(now >= newest, "kill {number}: {now:?} after {newest:?}");
        newest = now;
        // A complete checkpoint is readable.
        if newest.is_some() {
            tensors_of(&killed.checkpoint_latest());
        }
    }
    println!("{KILLS} kills, {while_writing} of them while a checkpoint was written; the newest is {newest:?}");
    succeed(command(&killed));
    for path in [RunDir::checkpoint_latest, RunDir::checkpoint_best] {
        assert!(tensors_of(&path(&whole)) == tensors_of(&path(&killed)), "{:?}", path(&killed));
    }
    assert!(!has_partial(&killed.checkpoints()) && !has_partial(killed.root()), "no partial files remain");
}

fn kill_group(process: &mut Child) {
    // SAFETY: the process group belongs to the child, which has not been waited for.
    unsafe { libc::kill(-(process.id() as libc::pid_t), libc::SIGKILL) };
    process.wait().unwrap();
    // The ranks of `mpirun` have process groups of their own, and end when they notice that it is gone.
    thread::sleep(Duration::from_millis(300));
}

/// Path of the newest checkpoint.
fn latest(run: &RunDir) -> Option<PathBuf> {
    fs::read_link(run.checkpoint_latest()).ok()
}

fn has_partial(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(".partial-"))
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    succeed(train(&shop, &run, 4, &[]));
    let whole = shop.path("whole");
    copy(run.root(), &whole);
    let newest = run.checkpoint_latest();
    let cut = |name: &'static str| {
        let path = newest.join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    let flip = |name: &'static str| {
        let path = newest.join(name);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let remove = |name: &'static str| fs::remove_file(newest.join(name)).unwrap();
    let damages: [(&str, &dyn Fn()); 8] = [
        ("network.safetensors: is damaged", &|| cut("network.safetensors")),
        ("network.safetensors: is damaged", &|| flip("network.safetensors")),
        ("optimizer.safetensors: is damaged", &|| flip("optimizer.safetensors")),
        ("optimizer.safetensors: No such file", &|| remove("optimizer.safetensors")),
        ("checkpoint.json: is damaged", &|| flip("checkpoint.json")),
        ("SHA256SUMS", &|| cut("SHA256SUMS")),
        ("no SHA256SUMS", &|| remove("SHA256SUMS")),
        ("checkpoint_latest: does not exist", &|| fs::remove_dir_all(fs::canonicalize(&newest).unwrap()).unwrap()),
    ];
    for (words, damage) in damages {
        fs::remove_dir_all(run.root()).unwrap();
        copy(&whole, run.root());
        damage();
        let stderr = succeed(train(&shop, &run, 4, &["--resume"]));
        let warnings: Vec<&str> = stderr.lines().filter(|line| line.contains("falling back to")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{words}: {stderr}");
        assert!(stderr.contains("resuming at epoch 4, step 1"), "{stderr}");
        assert!(tensors_of(&newest) == tensors_of(&whole.join("checkpoint_latest")), "{words}");
    }

    // The other files are read by the same code.
    flip("network.safetensors");
    let mut predict = work::program();
    predict.args(["predict", "--no-tta", "-r"]).arg(run.root()).arg("-i").arg(shop.dataset().join("imagesTr"));
    let stderr = succeed_with(predict.arg("-o").arg(shop.path("predicted")));
    assert!(stderr.contains("falling back to"), "{stderr}");
    for step in fs::read_dir(run.checkpoints()).unwrap() {
        fs::write(step.unwrap().path().join("network.safetensors"), "").unwrap();
    }
    let mut resume = train(&shop, &run, 4, &["--resume"]);
    let output = resume.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.lines().last().unwrap().contains("checkpoint_latest/network.safetensors: is damaged"), "{stderr}");
}

#[track_caller]
fn succeed_with(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{command:?}: {stderr}");
    stderr
}

#[test]
fn the_newest_the_best_and_every_nth_are_kept() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let settings = fs::read_to_string(shop.settings()).unwrap();
    fs::write(shop.settings(), settings + "keep_checkpoints = 3\nkeep_every = 4\n").unwrap();
    // Checkpoints of an earlier run.
    succeed(train(&shop, &run, 12, &[]));
    succeed(train(&shop, &run, 10, &["--overwrite"]));
    let mut kept: Vec<String> =
        fs::read_dir(run.checkpoints()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    kept.sort();
    let best = fs::read_link(run.checkpoint_best()).unwrap();
    let mut expected: Vec<String> = [4, 8, 8, 9, 10].map(|epoch| format!("step_{:010}", epoch * 2)).to_vec();
    expected.push(best.file_name().unwrap().to_str().unwrap().to_owned());
    expected.sort();
    expected.dedup();
    assert_eq!(kept, expected);
    assert_eq!(latest(&run).unwrap(), Path::new("checkpoints").join(&expected[expected.len() - 1]));
}

#[test]
fn a_full_disk_does_not_end_a_training_and_the_next_checkpoint_is_written() {
    let shop = Workshop::new();
    let Some(disk) = SmallDisk::mount(shop.path("disk"), 4 << 20) else { return };
    let [run, whole] = [RunDir::new(disk.folder.join("run")), shop.run_dir("whole")];
    succeed(train(&shop, &whole, 200, &[]));
    let mut process = train(&shop, &run, 200, &[]);
    let process = process.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("a checkpoint", || latest(&run).is_some());
    let filler = disk.fill();
    let before = latest(&run);
    thread::sleep(Duration::from_millis(1500));
    // Possibly a checkpoint whose write began earlier.
    let full = latest(&run);
    fs::remove_file(filler).unwrap();
    wait_for("a checkpoint after the disk was full", || latest(&run) > full);
    let output = process.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{before:?}, {full:?}: {stderr}");
    assert!(
        stderr.contains("No space left on device") && stderr.contains("training continues and the write is retried"),
        "{stderr}"
    );
    assert!(stderr.contains("is written"), "{stderr}");
    assert!(tensors_of(&run.checkpoint_latest()) == tensors_of(&whole.checkpoint_latest()));
    assert_eq!(fs::read_to_string(run.log()).unwrap().lines().count(), 200, "the log has every epoch");
}

#[test]
fn a_run_goes_on_from_its_checkpoint_on_a_full_disk() {
    let shop = Workshop::new();
    let Some(disk) = SmallDisk::mount(shop.path("disk"), 4 << 20) else { return };
    let [run, whole] = [RunDir::new(disk.folder.join("run")), shop.run_dir("whole")];
    succeed(train(&shop, &whole, 200, &[]));
    let mut killed = train(&shop, &run, 200, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("a checkpoint", || latest(&run).is_some());
    killed.kill().unwrap();
    killed.wait().unwrap();
    let filler = disk.fill();
    let before = latest(&run);
    let mut process = train(&shop, &run, 200, &["--resume=auto"]);
    let mut process = process.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
    let is_full = |line: &String| {
        line.contains("No space left on device") && line.contains("training continues and the write is retried")
    };
    assert!(lines.any(|line| is_full(&line)), "the disk was never full");
    assert_eq!(latest(&run), before);
    fs::remove_file(filler).unwrap();
    let rest: Vec<String> = lines.collect();
    assert!(process.wait().unwrap().success(), "{rest:?}");
    assert!(tensors_of(&run.checkpoint_latest()) == tensors_of(&whole.checkpoint_latest()));
    assert_eq!(fs::read_to_string(run.log()).unwrap().lines().count(), 200, "the log has every epoch");
}

#[test]
fn a_training_that_cannot_save_anything_fails_at_its_end() {
    let shop = Workshop::new();
    let Some(disk) = SmallDisk::mount(shop.path("disk"), 4 << 20) else { return };
    let run = RunDir::new(disk.folder.join("run"));
    let mut process = train(&shop, &run, 100, &[]);
    let process = process.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the first epoch", || fs::metadata(run.log()).is_ok_and(|log| log.len() > 0));
    disk.fill();
    let output = process.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{stderr}");
    let error = stderr.lines().last().unwrap();
    assert!(error.starts_with("error: ") && error.contains("free disk space"), "{stderr}");
}

#[track_caller]
fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_there() {
        assert!(began.elapsed() < Duration::from_secs(60), "timed out waiting for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}
