//! Typical errors and results of commands, compared with the transcripts in `snapshots/`.
//!
//! `INSTA_UPDATE=always cargo nextest run --test cli snapshots::` rewrites them; review the changes with `git diff`.

use std::fs;
use std::path::Path;
use std::process::Command;

use insta::{Settings, assert_snapshot};
use nnunet_dist::phantom::PhantomOptions;
use tempfile::TempDir;

use super::cli::nnunet_dist;

/// Commands that run in a folder of their own, and their output so far.
struct Session {
    folder: TempDir,
    transcript: String,
}

impl Session {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), transcript: String::new() }
    }

    /// A session whose folder has the directories `run` and `work` of a small training.
    fn with_run() -> Self {
        let session = Self::new();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/run_0_1");
        // `cp` keeps the links to checkpoints.
        let copied = Command::new("cp").arg("-a").arg(fixture.join(".")).arg(session.folder.path()).status().unwrap();
        assert!(copied.success());
        session
    }

    /// A session whose folder has a raw dataset `raw`.
    fn with_dataset() -> Self {
        let session = Self::new();
        let options = PhantomOptions { train_cases: 2, test_cases: 0, shape: [18, 20, 18], seed: 11 };
        options.generate(&session.folder.path().join("raw")).unwrap();
        session
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Runs `nnunet-dist LINE`; adds standard output, standard error and a failure's exit code to the transcript.
    fn run(&mut self, line: &str) -> &mut Self {
        let words = shlex::split(line).unwrap();
        let mut command = nnunet_dist(words.iter().map(String::as_str));
        command.env_remove("COLUMNS").env("NO_COLOR", "1").current_dir(&self.folder);
        let output = command.output().unwrap();
        self.transcript += &format!("$ nnunet-dist {line}\n");
        // `train` prints its configuration, in which the number of workers depends on the machine.
        let stdout: &[u8] = if words[0] == "train" { b"" } else { &output.stdout };
        for bytes in [stdout, &output.stderr] {
            let text = String::from_utf8_lossy(bytes).replace(&self.folder.path().display().to_string(), "FOLDER");
            text.lines().for_each(|line| self.transcript += &(without_times(line) + "\n"));
        }
        match output.status.code() {
            Some(0) => {}
            code => self.transcript += &format!("[exit code {}]\n", code.expect("the program exits")),
        }
        self.transcript.push('\n');
        self
    }

    /// Compares the transcript with the file `NAME.snap`.
    #[track_caller]
    fn matches(&self, name: &str) {
        let mut settings = Settings::clone_current();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| assert_snapshot!(name, self.transcript));
    }
}

/// Replaces what differs between two runs: the age in columns such as `3 days ago`, and durations such as `in 0.1 s`.
fn without_times(line: &str) -> String {
    // The time of a log line.
    let line = match line.split_once("Z ") {
        Some((time, rest)) if time.len() == 19 && time.starts_with("20") => format!("TIME {rest}"),
        _ => line.to_owned(),
    };
    let column = |column: &str| if column.ends_with(" ago") { "AGE ago".to_owned() } else { column.to_owned() };
    let line = line.split("   ").map(column).collect::<Vec<_>>().join("   ");
    match line.split_once(" cases in ").and_then(|(before, after)| Some((before, after.split_once(" s")?.1))) {
        Some((before, after)) => format!("{before} cases in TIME s{after}"),
        None => line,
    }
}

#[test]
fn usage() {
    let mut session = Session::new();
    session
        .run("trian")
        .run("train -w work")
        .run("train -w work -c 2d -f first")
        .run("plan -d raw -w work --gpu-memory x");
    session.run("predict -i images -o out").matches("usage");
}

#[test]
fn missing_inputs() {
    let mut session = Session::new();
    session.write("empty/readme.txt", "");
    session.run("plan -d nowhere -w work").run("plan -d empty -w work").run("preprocess -w work");
    session.run("train -w work -c 2d -f 0").run("predict -r nowhere -i images -o out").run("status nowhere");
    session.run("evaluate -p nowhere -g nowhere").run("import -i nowhere -o run").run("report nowhere");
    session.run("export -r nowhere --to onnx -o model.onnx").matches("missing_inputs");
}

#[test]
fn configuration_errors() {
    let mut session = Session::with_run();
    session.write("key.toml", "[training]\nepoch = 5\n");
    session.write("value.toml", "[optimizer]\nlr = 'fast'\n");
    session.write("syntax.toml", "[training\n");
    let train = "train -q -w work -c 3d_fullres -f 0";
    session.run("train -q -w work -c 3d -f 0").run(train);
    for file in ["key", "value", "syntax", "nowhere"] {
        session.run(&format!("{train} --config {file}.toml"));
    }
    session.matches("configuration_errors");
}

#[test]
fn checkpoint_errors() {
    let mut session = Session::with_run();
    let weights = session.folder.path().join("run/checkpoints/step_0000000008/network.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    fs::remove_file(session.folder.path().join("run/checkpoint_best")).unwrap();
    session.write("images/a_0000.nii.gz", "");
    session.run("predict -r run -i images -o out").run("predict -r run --checkpoint best -i images -o out");
    session.matches("checkpoint_errors");
}

#[test]
fn unreadable_images() {
    let mut session = Session::with_run();
    session.write("images/a_0000.nii.gz", "not an image");
    session.write("short/a_0000.nii", "not an image");
    session.write("none/a.txt", "");
    session.run("predict -r run -i images -o out").run("predict -r run -i short -o out");
    session.run("predict -r run -i none -o out").run("inspect images/a_0000.nii.gz");
    session.run("convert images/a_0000.nii.gz out.xyz").matches("unreadable_images");
}

#[test]
fn dataset_errors() {
    let mut session = Session::with_dataset();
    fs::remove_file(session.folder.path().join("raw/imagesTr/phantom_000_0000.nii.gz")).unwrap();
    session.write("raw/imagesTr/phantom_001_0000.nii.gz", "not an image");
    session.write("keys/dataset.json", "{\"labels\": {\"background\": 0}}");
    session.write("text/dataset.json", "{");
    session.run("plan -q -d raw -w work").run("plan -q -d keys -w work").run("plan -q -d text -w work");
    session.matches("dataset_errors");
}

#[test]
fn status_of_a_finished_run() {
    Session::with_run().run("status run").matches("status");
}

#[test]
fn results_of_commands() {
    let mut session = Session::with_dataset();
    session.run("plan -q -d raw -w work").run("preprocess -q -w work -c 3d_fullres");
    session.run("preprocess -q -w work -c 4d").run("train -q -w work -c 3d_fullres -f 7");
    session.run("inspect raw/imagesTr/phantom_000_0000.nii.gz");
    session.run("evaluate -q -p raw/labelsTr -g raw/labelsTr").matches("results");
}
