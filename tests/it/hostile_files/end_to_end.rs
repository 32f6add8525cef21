//! Whole commands on changed inputs: an image is predicted, changed plans are preprocessed and trained, a changed
//! dataset is planned and preprocessed. Every command ends with a documented exit code, in bounded time and memory, and
//! without a file outside of its output folder.
//!
//! The time per chain of commands is `NNUNET_FUZZ_SECONDS`, as for the other files.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::image::{read_volume, write_volume};
use nnunet_dist::phantom::PhantomOptions;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{change, plans::shrink, tiny_model};

/// Documented exit codes of failures that a file can cause, besides 0.
const EXPECTED: [i32; 4] = [2, 3, 4, 75];
/// Largest resident memory of a command.
const MAX_RESIDENT: u64 = 3 << 30;
/// Address space of a command; an allocation beyond it aborts the command.
const ADDRESS_SPACE: u64 = 16 << 30;
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// The result of a command.
struct Ended {
    status: ExitStatus,
    stderr: String,
    resident: u64,
}

/// Runs the program with limited memory and time.
#[expect(clippy::zombie_processes, reason = "wait4 waits for the child and returns its memory usage")]
fn run(arguments: &[&str], folder: &Path) -> Result<Ended, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nnunet-dist"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1").env_remove("RUST_BACKTRACE");
    // SAFETY: `setrlimit` is async-signal-safe, and its argument is on the stack.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: ADDRESS_SPACE, rlim_max: ADDRESS_SPACE };
            libc::setrlimit(libc::RLIMIT_AS, &limit);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stderr.take().unwrap();
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        pipe.read_to_end(&mut text).map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    });
    let began = Instant::now();
    let (mut status, pid) = (0, child.id() as libc::pid_t);
    // SAFETY: all-zero bytes are a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers are to values on the stack, and the child is waited for only here.
    while unsafe { libc::wait4(pid, &mut status, libc::WNOHANG, &mut usage) } == 0 {
        if began.elapsed() > TIME_LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("{arguments:?} does not end"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    let stderr = reader.join().unwrap();
    Ok(Ended { status: ExitStatus::from_raw(status), stderr, resident: usage.ru_maxrss as u64 * 1024 })
}

/// Runs commands until one fails; returns a defect of the program, if any.
fn defect(commands: &[Vec<&str>], folder: &Path, may_write: &[&str]) -> Option<String> {
    let before = files(folder);
    for arguments in commands {
        let Ended { status, stderr, resident } = match run(arguments, folder) {
            Ok(ended) => ended,
            Err(defect) => return Some(defect),
        };
        let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        match status.code() {
            Some(code) if code == 0 || EXPECTED.contains(&code) => {}
            _ => return Some(format!("{arguments:?}: {status}: {stderr}")),
        }
        if !status.success() && !last.starts_with("error: ") {
            return Some(format!("{arguments:?}: {status} without an error line: {stderr}"));
        }
        if resident > MAX_RESIDENT {
            return Some(format!("{arguments:?}: {} MiB", resident >> 20));
        }
        let is_allowed = |path: &&PathBuf| may_write.iter().any(|root| path.starts_with(folder.join(root)));
        if let Some(stray) = files(folder).difference(&before).find(|path| !is_allowed(path)) {
            return Some(format!("{arguments:?} wrote {}", stray.display()));
        }
        if !status.success() {
            break;
        }
    }
    None
}

/// All files below a folder.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => left.push(entry.path()),
                false => drop(found.insert(entry.path())),
            }
        }
    }
    found
}

/// Repeats `attempt` with another random stream each time until the time is over. It prepares a folder and returns the
/// commands to run in it, and the folders that they may write to.
fn repeat<'a>(name: &str, attempt: impl Fn(&Path, &mut Xoshiro256PlusPlus) -> (Vec<Vec<&'a str>>, Vec<&'a str>)) {
    let seconds = std::env::var("NNUNET_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(1.0);
    let seed: u64 = std::env::var("NNUNET_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let (began, mut count) = (Instant::now(), 0u64);
    let mut defects = Vec::new();
    while began.elapsed() < Duration::from_secs_f64(seconds) && defects.len() < 5 {
        let folder = TempDir::new().unwrap();
        let root = folder.path().join("outer/inner");
        fs::create_dir_all(&root).unwrap();
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed + count);
        let (commands, may_write) = attempt(&root, &mut random);
        // A path such as `../../x` in a file would end up in one of the outer folders.
        let outside = files(folder.path()).len() - files(&root).len();
        let mut found = defect(&commands, &root, &may_write);
        if found.is_none() && files(folder.path()).len() - files(&root).len() != outside {
            found = Some("a file outside of the folder".to_owned());
        }
        if let Some(defect) = found {
            let kept = std::env::temp_dir().join(format!("end_to_end_{name}_{}", seed + count));
            let _ = fs::remove_dir_all(&kept);
            fs::rename(folder.keep(), &kept).unwrap();
            defects.push(format!("{}: {defect}", kept.display()));
        }
        count += 1;
    }
    println!("{name}: {count} inputs");
    assert!(defects.is_empty(), "{} of {count}:\n{}", defects.len(), defects.join("\n"));
}

/// Changes one to three values of a JSON document.
fn change_json(value: &mut Value, random: &mut Xoshiro256PlusPlus) {
    for _ in 0..random.random_range(1..=3) {
        let place = random_place(value, random);
        let numbers = [0.0, -1.0, 0.5, 1.0, 2.0, 3.0, 7.0, 1e-300, 1e300, -0.0, 32767.0, 40000.0, 1e6, 1e9, 1e12, 4e18];
        *place = match random.random_range(0..8) {
            0 => json!(numbers[random.random_range(0..numbers.len())]),
            1 => json!(numbers[random.random_range(0..numbers.len())] as i64),
            2 => Value::Null,
            3 => json!(
                ["", ".", "..", "../../../evil", "/tmp/evil", "a/b", "a\u{0}b", ".nii.gz", "CT", "rescale_to_0_1"]
                    [random.random_range(0..10)]
            ),
            4 => json!([]),
            5 => json!({}),
            6 => json!(random.random_bool(0.5)),
            _ => match place.take() {
                Value::Array(mut list) => {
                    let copy = list.first().cloned().unwrap_or(Value::Null);
                    list.push(copy);
                    Value::Array(list)
                }
                Value::Number(number) => {
                    let factor = [0.1, 0.5, 2.0, 3.0, 10.0, 1000.0][random.random_range(0..6)];
                    json!(number.as_f64().unwrap_or(1.0) * factor)
                }
                Value::String(text) => json!(text.clone() + &text),
                other => json!([other]),
            },
        };
    }
}

/// Returns a random leaf of a JSON document, or now and then a container.
fn random_place<'a>(value: &'a mut Value, random: &mut Xoshiro256PlusPlus) -> &'a mut Value {
    let count = value.as_array().map(Vec::len).or(value.as_object().map(|keys| keys.len())).unwrap_or(0);
    if count == 0 || random.random_bool(0.05) {
        return value;
    }
    let index = random.random_range(0..count);
    match value {
        Value::Array(list) => random_place(&mut list[index], random),
        Value::Object(keys) => random_place(keys.values_mut().nth(index).unwrap(), random),
        leaf => leaf,
    }
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn phantoms(folder: &Path) {
    PhantomOptions { train_cases: 5, test_cases: 0, shape: [16, 20, 16], seed: 7 }.generate(folder).unwrap();
}

fn ok(arguments: &[&str], folder: &Path) {
    let ended = run(arguments, folder).unwrap();
    assert!(ended.status.success(), "{arguments:?}: {}", ended.stderr);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn images_are_predicted() {
    let prepared = TempDir::new().unwrap();
    let model = tiny_model::model("3d_fullres", |_, _| {});
    tiny_model::write_checkpoint(&prepared.path().join("run/checkpoint_latest"), &model, 1);
    phantoms(&prepared.path().join("d"));
    let image = fs::read_dir(prepared.path().join("d/imagesTr")).unwrap().next().unwrap().unwrap().path();
    let plain = prepared.path().join("plain.nii");
    write_volume(&plain, &read_volume(&image).unwrap()).unwrap();
    let plain = fs::read(plain).unwrap();
    repeat("predict", |root, random| {
        copy(&prepared.path().join("run"), &root.join("run"));
        fs::create_dir(root.join("in")).unwrap();
        let bytes = if random.random_bool(0.7) {
            // Only the header, so that most files can be read.
            let mut bytes = change(&plain[..352], random);
            bytes.resize(352, 0);
            [&bytes, &plain[352..]].concat()
        } else {
            change(&plain, random)
        };
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, &bytes).unwrap();
        fs::write(root.join("in/a_0000.nii.gz"), packed.finish().unwrap()).unwrap();
        (vec![vec!["predict", "-r", "run", "-i", "in", "-o", "out"]], vec!["out"])
    });
}

#[test]
fn plans_are_preprocessed_and_trained() {
    let prepared = TempDir::new().unwrap();
    phantoms(&prepared.path().join("d"));
    ok(&["plan", "-d", "d", "-w", "w", "-c", "3d_fullres"], prepared.path());
    edit_json(&prepared.path().join("w/nnUNetPlans.json"), |plans| shrink(&mut plans["configurations"]["3d_fullres"]));
    repeat("plans", |root, random| {
        copy(prepared.path(), root);
        fs::write(root.join("w/source.toml"), format!("dataset = {:?}\n", root.join("d"))).unwrap();
        edit_json(&root.join("w/nnUNetPlans.json"), |plans| change_json(plans, random));
        let train = "train -w w -c 3d_fullres -f 0 --epochs 1 --iters-per-epoch 1 --val-iters 1 --batch-size 1";
        let commands = vec![vec!["preprocess", "-w", "w", "-c", "3d_fullres"], train.split(' ').collect()];
        (commands, vec!["w"])
    });
}

#[test]
fn datasets_are_planned_and_preprocessed() {
    let prepared = TempDir::new().unwrap();
    phantoms(&prepared.path().join("d"));
    repeat("dataset", |root, random| {
        copy(prepared.path(), root);
        edit_json(&root.join("d/dataset.json"), |dataset| change_json(dataset, random));
        let commands = vec![vec!["plan", "-d", "d", "-w", "w"], vec!["preprocess", "-w", "w"]];
        (commands, vec!["w"])
    });
}
