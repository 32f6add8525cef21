//! `nnunet-dist demo`: the whole pipeline in a few minutes, on generated data.

mod report;
mod steps;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use self::report::Report;
use self::steps::{DemoCommand, Program};
use super::output::outln;
use nnunet_data::work::{ConfigError, FoldId, RunDir, WorkDir};

/// Generate a dataset, train on it with two processes, predict and evaluate; about five minutes on two cores.
///
/// Each step is an ordinary command of this program, printed before it runs and listed in the report.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nnunet-dist demo --dir demo")]
pub struct Demo {
    /// Folder for all files of the demo; an earlier demo there is replaced.
    #[arg(long, value_name = "DIR", default_value = "demo")]
    dir: PathBuf,
}

/// Marks a folder as created by the demo, so that a later demo may delete its contents.
const MARKER: &str = ".nnunet-dist-demo";
const CONFIGURATION: &str = "3d_fullres";
const SEED: u64 = 1;
const TRAIN_CASES: usize = 12;
const TEST_CASES: usize = 4;
const PROCESSES: usize = 2;

impl Demo {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let layout = DemoFolders::create(&self.dir)?;
        outln!("Generating {TRAIN_CASES} training and {TEST_CASES} test phantoms in {}", layout.dataset.display());
        nnunet_data::phantom::generate(&layout.dataset, TRAIN_CASES, TEST_CASES, SEED)?;

        let mut report = Report::default();
        for step in layout.steps(&Program::locate()?) {
            outln!("\n$ {step}");
            report.add(step.run()?);
        }
        let path = report.write(&layout)?;
        outln!("report: {}", path.display());
        Ok(())
    }
}

/// Folders of a demo.
struct DemoFolders {
    root: PathBuf,
    dataset: PathBuf,
    work: WorkDir,
    predictions: PathBuf,
    summary: PathBuf,
}

impl DemoFolders {
    /// Creates `root` as an empty demo folder; an earlier demo in it is deleted.
    fn create(root: &Path) -> anyhow::Result<Self> {
        let marker = root.join(MARKER);
        if root.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
            if !marker.is_file() {
                return Err(ConfigError::new(
                    root.display(),
                    "the folder is not empty and not an earlier demo; choose another --dir",
                )
                .into());
            }
            std::fs::remove_dir_all(root).with_context(|| root.display().to_string())?;
        }
        std::fs::create_dir_all(root).with_context(|| root.display().to_string())?;
        std::fs::write(&marker, b"").with_context(|| marker.display().to_string())?;
        Ok(Self {
            root: root.to_owned(),
            dataset: root.join("dataset"),
            work: WorkDir::new(root.join("work")),
            predictions: root.join("predictions"),
            summary: root.join("predictions").join("summary.json"),
        })
    }

    fn run_dir(&self) -> RunDir {
        self.work.run(CONFIGURATION, FoldId::Number(0))
    }

    /// Commands from the raw dataset to the Dice, in order.
    fn steps(&self, program: &Program) -> Vec<DemoCommand> {
        let (dataset, work) = (self.dataset.as_path(), self.work.root());
        let images = dataset.join("imagesTs");
        let labels = dataset.join("labelsTs");
        let plan = program.single("plan").path("-d", dataset).path("-w", work).args(["-c", CONFIGURATION]);
        let preprocess = program.single("preprocess").path("-w", work).args(["-c", CONFIGURATION]);
        let train = program
            .parallel(PROCESSES, "train")
            .path("-w", work)
            .args(["-c", CONFIGURATION, "-f", "0"])
            .args(["--epochs", "8", "--iters-per-epoch", "25", "--val-iters", "4"])
            .args(["--batch-size", if program.has_mpi() { "1" } else { "2" }]);
        let predict = program
            .single("predict")
            .path("-r", self.run_dir().root())
            .path("-i", &images)
            .path("-o", &self.predictions);
        let evaluate =
            program.single("evaluate").path("-p", &self.predictions).path("-g", &labels).path("-o", &self.summary);
        vec![plan, preprocess, train, predict, evaluate]
    }
}
