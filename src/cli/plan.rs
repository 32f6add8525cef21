//! `nnunet-dist plan`

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::output::outln;
use super::plans;
use super::ranks::abort_on_error;
use super::{LOCK, same_folder};
use nnunet_comm::distributed;
use nnunet_core::fsio;
use nnunet_core::lock::FolderLock;
use nnunet_data::dataset::{self, Dataset, Splits};
use nnunet_data::plan::{self, Planner, PlannerOptions, Plans};
use nnunet_data::work::{ConfigError, Source, WorkDir};

/// Maximum number of cases in a message.
const LISTED: usize = 10;

/// Validate a dataset and plan its configurations: spacing, patch size, network, batch size.
///
/// Reads a raw dataset in the layout of nnU-Net v2 or of the Medical Segmentation Decathlon, reports all problems at
/// once, and writes source.toml, dataset.json, dataset_fingerprint.json, nnUNetPlans.json and splits_final.json into
/// the work folder. An existing splits_final.json is kept. Another planner writes plans under another name beside them;
/// select them with `-p` in the other commands.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist plan -d Task04_Hippocampus -w hippocampus -c 2d,3d_fullres
  nnunet-dist plan -d Dataset007_Liver --init --channels CT --labels liver,tumour    # writes dataset.json
  nnunet-dist plan -d Task04_Hippocampus -w hippocampus --planner resenc-l
  nnunet-dist plan -d Task04_Hippocampus -w hippocampus --planner resenc-l --gpu-memory 80 --plans-name resenc_80GB")]
pub struct Plan {
    /// Raw dataset: a folder with dataset.json, imagesTr and labelsTr.
    #[arg(short, long, value_name = "DIR")]
    dataset: PathBuf,

    /// Work folder; created if missing [default: none; optional with --init, which then only writes dataset.json].
    #[arg(short, long, value_name = "DIR", required_unless_present = "init")]
    work: Option<PathBuf>,

    /// Write the dataset's dataset.json, which must not exist, from --channels, --labels and the files in imagesTr.
    #[arg(long, requires = "channels", requires = "labels")]
    init: bool,

    /// Channels of the images for --init, separated by commas, such as CT or T1,T2 [default: none].
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "init")]
    channels: Vec<String>,

    /// Labels 1, 2, … for --init, separated by commas, without the background, such as liver,tumour [default: none].
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "init")]
    labels: Vec<String>,

    /// Planner, by this name or by the name of nnU-Net's class.
    #[arg(long, value_enum, default_value_t = Planner::Default)]
    planner: Planner,

    /// Memory budget of one GPU in GB for patch and batch size [default: 8, resenc-l: 24, resenc-xl: 40].
    #[arg(long, value_name = "GB", value_parser = super::positive)]
    gpu_memory: Option<f64>,

    /// Full-resolution spacing in mm, in the stored axis order of the images [default: the median's].
    #[arg(long, value_name = "Z,Y,X", value_parser = spacing)]
    overwrite_target_spacing: Option<[f64; 3]>,

    /// Name of the plans [default: nnUNetPlans, and nnUNetResEncUNetMPlans, …LPlans, …XLPlans].
    #[arg(long, value_name = "NAME", value_parser = plans::name)]
    plans_name: Option<String>,

    /// Configurations to plan, separated by commas [default: all that apply to the dataset].
    #[arg(short, long, value_name = "NAMES", value_delimiter = ',')]
    configurations: Vec<String>,

    /// Plan a low-resolution configuration and a cascade even if a full-resolution patch covers enough of the image.
    #[arg(long)]
    force_lowres: bool,
}

impl Plan {
    /// Plans on rank 0; the other ranks wait.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let comm = distributed::init()?;
        comm.enter_unbounded("planning");
        if comm.rank() == 0 {
            abort_on_error(self.plan(), &*comm)?;
        }
        Ok(comm.barrier("the plans")?)
    }

    fn plan(self) -> anyhow::Result<()> {
        if self.init {
            let written = dataset::write_description(&self.dataset, &self.channels, &self.labels)?;
            outln!("{}", written.display());
        }
        let Some(work) = &self.work else { return Ok(()) };
        check_work_folder(&self.dataset, work)?;
        let dataset = open_valid(&self.dataset)?;
        let planner = PlannerOptions::for_planner(self.planner);
        let options = PlannerOptions {
            gpu_memory_gb: self.gpu_memory.unwrap_or(planner.gpu_memory_gb),
            configurations: self.configurations,
            plans_name: self.plans_name.unwrap_or(planner.plans_name),
            target_spacing: self.overwrite_target_spacing,
            force_lowres: self.force_lowres,
            planner: self.planner,
        };
        let work = WorkDir::new(work).with_plans(&options.plans_name);
        tracing::info!("fingerprint of {} cases", dataset.cases.len());
        let fingerprint = dataset::extract_fingerprint(&dataset)?;
        let plans = plan::plan(&dataset.name, &dataset.json, &fingerprint, &options)?;
        for name in plans.configurations.keys() {
            plans.configuration(name)?;
        }
        let splits = own_or_new_splits(&dataset, &work.splits())?;

        let _lock = FolderLock::acquire(work.root(), LOCK)?;
        // Written only after everything that can fail except the disk, so the files of a work folder are consistent.
        Source::new(&self.dataset)?.save(&work)?;
        write(&work.dataset_json(), &dataset.json)?;
        write(&work.fingerprint(), &fingerprint)?;
        plans.save(&work.plans())?;
        if let Some(splits) = splits {
            splits.save(&work.splits())?;
        }

        print_plans(&plans)?;
        outln!("work folder: {}, plans: {}", work.root().display(), options.plans_name);
        Ok(())
    }
}

/// Checks that the plans do not replace the description of a raw dataset.
fn check_work_folder(dataset: &Path, work: &Path) -> Result<(), ConfigError> {
    let holds_raw = |folder: &Path| folder.join("imagesTr").exists() || folder.join("labelsTr").exists();
    let is_work = work.join("source.toml").exists();
    if same_folder(dataset, work) || (work.join("dataset.json").exists() && (holds_raw(work) || !is_work)) {
        let defect = "holds a raw dataset, whose dataset.json would be replaced; choose another work folder";
        return Err(ConfigError::new(work.display(), defect));
    }
    Ok(())
}

/// Opens a dataset and prints all its problems.
fn open_valid(folder: &Path) -> anyhow::Result<Dataset> {
    let dataset = Dataset::open(folder)?;
    if let Some(files) = dataset::left_out_of(&dataset) {
        tracing::warn!("{}: left out {files}", folder.display());
    }
    tracing::info!("checking {} cases", dataset.cases.len());
    let problems = dataset::validate(&dataset);
    for problem in &problems {
        eprintln!("{problem}");
    }
    match problems.len() {
        0 => Ok(dataset),
        count => Err(ConfigError::new(folder.display(), format_args!("problems found: {count}, listed above")).into()),
    }
}

/// Generates splits, or returns `None` if the file exists: the user's own splits are kept.
fn own_or_new_splits(dataset: &Dataset, path: &Path) -> anyhow::Result<Option<Splits>> {
    let cases: Vec<String> = dataset.cases.iter().map(|case| case.id.clone()).collect();
    if path.exists() {
        let splits = Splits::load(path)?;
        splits.check_cases(&cases).with_context(|| path.display().to_string())?;
        outln!("splits: kept those in {}", path.display());
        let unused = splits.unused(&cases);
        if !unused.is_empty() {
            let more = if unused.len() > LISTED { ", …" } else { "" };
            tracing::warn!(
                "{}: {} cases are in no fold and take no part: {}{more}; add them, or delete the file for new splits",
                path.display(),
                unused.len(),
                unused[..unused.len().min(LISTED)].join(", ")
            );
        }
        return Ok(None);
    }
    Ok(Some(Splits::generate(&cases)?))
}

fn print_plans(plans: &Plans) -> anyhow::Result<()> {
    outln!("{:20} {:>6}  {:16} {:24} features", "configuration", "batch", "patch", "spacing (mm)");
    for name in plans.configurations.keys() {
        let configuration = plans.configuration(name)?;
        let spacing: Vec<String> = configuration.spacing.iter().map(|mm| format!("{mm:.3}")).collect();
        let patch: Vec<String> = configuration.patch_size.iter().map(ToString::to_string).collect();
        let features = configuration.network_shape()?.features;
        let (batch, patch, spacing) = (configuration.batch_size, patch.join(" x "), spacing.join(" x "));
        outln!("{name:20} {batch:6}  {patch:16} {spacing:24} {features:?}");
    }
    Ok(())
}

fn write(path: &Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
    fsio::write_json(path, value).with_context(|| path.display().to_string())
}

/// Parses three spacings in mm.
fn spacing(text: &str) -> Result<[f64; 3], String> {
    let lengths: Result<Vec<f64>, _> = text.split(',').map(|length| super::positive(length.trim())).collect();
    lengths
        .and_then(|lengths| <[f64; 3]>::try_from(lengths).map_err(|_| String::new()))
        .map_err(|_| "must be three numbers above 0, as in 3,0.8,0.8".into())
}
