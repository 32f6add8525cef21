//! `nnunet-dist evaluate`

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::output::{out, outln};
use super::positive;
use nnunet_core::protect::Inputs;
use nnunet_data::dataset::LabelValue;
use nnunet_data::work::ConfigError;
use nnunet_eval::{self as eval, Classes, FolderOptions, Measure, Measures, Summary, Tolerance};

/// Compare predicted label maps with the reference: Dice, IoU, voxel counts and optional metrics per class and case.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist evaluate -p predictions -g labels
  nnunet-dist evaluate -p predictions -g labels --metrics all --tolerance 1 --tolerance 2=0.5 --csv cases.csv
  nnunet-dist evaluate -p predictions -g labels -l 1 2 1,2 --ignore-label 3 --chill")]
pub struct Evaluate {
    /// Folder of predicted label maps.
    #[arg(short, long, value_name = "DIR")]
    predictions: PathBuf,

    /// Folder of reference label maps with the same file names.
    #[arg(short, long, value_name = "DIR")]
    ground_truth: PathBuf,

    /// Result file in nnU-Net's schema [default: PREDICTIONS/summary.json].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// dataset.json with the classes or regions [default: dataset.json in or beside the reference label maps, else
    /// beside the predictions; without one, all labels that occur].
    #[arg(long, value_name = "FILE", conflicts_with = "labels")]
    dataset_json: Option<PathBuf>,

    /// Classes to evaluate instead, or regions as 1,2 [default: those of dataset.json].
    #[arg(short, long, value_name = "LABEL", num_args = 1.., value_parser = label_or_region)]
    labels: Vec<LabelValue>,

    /// Exclude voxels with this reference label [default: none].
    #[arg(long, value_name = "LABEL", requires = "labels", allow_negative_numbers = true)]
    ignore_label: Option<i16>,

    /// Skip reference label maps without a prediction.
    #[arg(long)]
    chill: bool,

    /// Compare voxel by voxel, with a warning, where a prediction has another spacing, origin or direction than its
    /// reference.
    #[arg(long)]
    allow_other_geometry: bool,

    /// Additional metrics: sensitivity, precision, specificity, avd, rvd, nsd, hd95, assd, or all; the surface metrics
    /// nsd, hd95 and assd take longer [default: none].
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = metrics)]
    metrics: Vec<MetricSelection>,

    /// Surface distance tolerance of nsd in mm; CLASS=MM sets it for one class or region of summary.json [default: 1].
    #[arg(long, value_name = "[CLASS=]MM", value_parser = tolerance)]
    tolerance: Vec<(Option<String>, f64)>,

    /// Also write the results as comma-separated values, one line per case and class [default: none].
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Bootstrap resamples of the cases for 95 % confidence intervals of the means; 0 disables them.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    bootstrap: usize,

    /// Random seed of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 1234)]
    seed: u64,
}

/// Metrics selected by one name.
type MetricSelection = Vec<Measure>;

impl Evaluate {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let classes = match (&self.dataset_json, self.labels.is_empty()) {
            (Some(path), _) => Some(Classes::read(path)?),
            (None, true) => None,
            (None, false) => Some(Classes { foreground: self.labels.clone(), ignore_label: self.ignore_label }),
        };
        let options = FolderOptions {
            classes,
            allow_missing: self.chill,
            measures: self.measures(),
            allow_other_geometry: self.allow_other_geometry,
        };
        let output = self.output.clone().unwrap_or_else(|| self.predictions.join("summary.json"));
        self.check_outputs(&output)?;
        let summary = eval::evaluate_folder(&self.predictions, &self.ground_truth, &options)?;
        let summary = summary.with_confidence(self.bootstrap, self.seed);
        summary.save(&output)?;
        if let Some(path) = &self.csv {
            summary.save_csv(path)?;
        }
        out!("{}", summary.table());
        if summary.confidence.is_some() {
            out!("\n{}\n", summary.confidence_table());
        }
        outln!("mean Dice {:.4}", summary.mean_dice());
        Ok(())
    }

    /// Checks that the results replace no label map and nothing else but a summary.
    fn check_outputs(&self, output: &Path) -> anyhow::Result<()> {
        let summary = self.predictions.join("summary.json");
        let files = [&self.predictions, &self.ground_truth].map(|folder| fs::read_dir(folder).into_iter().flatten());
        let files = files.into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| *path != summary);
        let mut inputs = Inputs::new(files);
        inputs.extend(&self.dataset_json);
        [Some(output), self.csv.as_deref()].into_iter().flatten().try_for_each(|output| inputs.check(output))?;
        if output.exists() && Summary::load(output).is_err() {
            let defect = "exists and is not a summary of `evaluate`; choose another output";
            return Err(ConfigError::new(output.display(), defect).into());
        }
        Ok(())
    }

    fn measures(&self) -> Measures {
        let mut tolerance = Tolerance::default();
        for (class, mm) in &self.tolerance {
            match class {
                Some(class) => tolerance.per_class.push((class.clone(), *mm)),
                None => tolerance.general = *mm,
            }
        }
        let is_named = |measure: &Measure| self.metrics.iter().flatten().any(|named| named == measure);
        Measures { chosen: Measure::ALL.into_iter().filter(is_named).collect(), tolerance }
    }
}

fn metrics(name: &str) -> Result<MetricSelection, String> {
    if name == "all" {
        return Ok(Measure::ALL.to_vec());
    }
    let known = Measure::ALL.map(|measure| measure.key().to_lowercase()).join(", ");
    let measure = Measure::from_str(name, true).map_err(|_| format!("must be all or one of {known}"))?;
    Ok(vec![measure])
}

fn label_or_region(text: &str) -> Result<LabelValue, String> {
    let labels = text.split(',').map(|label| label.trim().parse()).collect::<Result<Vec<i16>, _>>();
    match labels.map_err(|_| "must be a label or several labels separated by commas")?.as_slice() {
        [label] => Ok(LabelValue::Class(*label)),
        labels => Ok(LabelValue::Region(labels.to_vec())),
    }
}

fn tolerance(text: &str) -> Result<(Option<String>, f64), String> {
    match text.rsplit_once('=') {
        Some((class, mm)) => Ok((Some(class.to_owned()), positive(mm)?)),
        None => Ok((None, positive(text)?)),
    }
}
