//! `report.md`: commands and results of the demo.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use indexmap::IndexMap;

use super::DemoFolders;
use super::steps::CompletedCommand;
use nnunet_core::fsio;
use nnunet_eval::{Metrics, Summary};

/// Collects the steps of a demo.
#[derive(Default)]
pub struct Report {
    steps: Vec<CompletedCommand>,
}

impl Report {
    /// Adds a finished step.
    pub fn add(&mut self, step: CompletedCommand) {
        self.steps.push(step);
    }

    /// Writes `report.md` into the demo's folder and returns its path.
    pub fn write(&self, layout: &DemoFolders) -> anyhow::Result<PathBuf> {
        let path = layout.root.join("report.md");
        let progress = layout.run_dir().progress();
        let progress = progress.strip_prefix(&layout.root).unwrap_or(&progress);
        let text = format!(
            "# nnunet-dist demo\n\n{}\n## Training\n\n![progress]({})\n\n## Commands\n\n{}",
            dice_table(&Summary::load(&layout.summary)?),
            progress.display(),
            self.commands(),
        );
        fsio::write_bytes(&path, text.as_bytes()).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    fn commands(&self) -> String {
        let lines = self.steps.iter().map(|step| format!("{:7.1} s  {}\n", step.elapsed.as_secs_f64(), step.command));
        format!("```\n{}```\n", lines.collect::<String>())
    }
}

/// Formats the Dice per test case and class as a Markdown table.
fn dice_table(summary: &Summary) -> String {
    let mut table = String::from("| case |");
    for class in summary.mean.keys() {
        let _ = write!(table, " class {class} |");
    }
    let _ = writeln!(table, "\n|---|{}", "---|".repeat(summary.mean.len()));
    for case in &summary.metric_per_case {
        let file = case.prediction_file.file_name().unwrap_or_default();
        table += &row(&file.to_string_lossy(), &case.metrics);
    }
    table += &row("**mean**", &summary.mean);
    format!("Mean Dice over all foreground classes: **{:.4}**\n\n{table}", summary.mean_dice())
}

fn row<Count>(name: &str, metrics: &IndexMap<String, Metrics<Count>>) -> String {
    let dice = metrics.values().map(|metrics| match metrics.dice {
        // The class is in neither map.
        dice if dice.is_nan() => " - |".to_owned(),
        dice => format!(" {dice:.4} |"),
    });
    format!("| {name} |{}\n", dice.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_eval::CaseResult;

    #[test]
    fn the_table_has_a_row_per_case_and_a_column_per_class() {
        let case = |file: &str, hits: u64| CaseResult {
            metrics: IndexMap::from([
                ("1".to_owned(), Metrics::from_counts(hits, 2, 0, 90)),
                ("2".to_owned(), Metrics::from_counts(0, 0, 0, 92 + hits)),
            ]),
            prediction_file: file.into(),
            reference_file: file.into(),
        };
        let table = dice_table(&Summary::new(vec![case("p/a.nii.gz", 1), case("p/b.nii.gz", 3)]));
        assert!(table.starts_with("Mean Dice over all foreground classes: **0.6250**\n"), "{table}");
        assert!(table.contains("| case | class 1 | class 2 |\n|---|---|---|\n"), "{table}");
        assert!(table.contains("| a.nii.gz | 0.5000 | - |\n| b.nii.gz | 0.7500 | - |\n| **mean** | 0.6250 | - |\n"));
    }
}
