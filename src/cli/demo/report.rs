//! `report.md`: what the demo ran and what came of it.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;

use super::Layout;
use super::steps::Done;
use crate::fsio;

/// Collects the steps of a demo.
#[derive(Default)]
pub struct Report {
    steps: Vec<Done>,
}

impl Report {
    /// Adds a finished step.
    pub fn add(&mut self, step: Done) {
        self.steps.push(step);
    }

    /// Writes `report.md` into the demo's folder and gives its path.
    pub fn write(&self, layout: &Layout) -> anyhow::Result<PathBuf> {
        let path = layout.root.join("report.md");
        let summary = std::fs::read(&layout.summary).with_context(|| layout.summary.display().to_string())?;
        let summary = serde_json::from_slice(&summary).with_context(|| layout.summary.display().to_string())?;
        let progress = layout.run_dir().progress();
        let progress = progress.strip_prefix(&layout.root).unwrap_or(&progress);
        let text = format!(
            "# nnunet-dist demo\n\n{}\n## Training\n\n![progress]({})\n\n## Commands\n\n{}",
            dice_table(&summary),
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

/// Dice per test case and class from a `summary.json`, as a Markdown table.
fn dice_table(summary: &Value) -> String {
    let classes: Vec<&String> = summary["mean"].as_object().into_iter().flat_map(|mean| mean.keys()).collect();
    let row = |name: &str, metrics: &Value| {
        let dice = classes.iter().map(|class| match metrics[class.as_str()]["Dice"].as_f64() {
            Some(dice) => format!(" {dice:.4} |"),
            // nnU-Net's schema leaves it out, or NaN, where neither map has the class.
            None => " - |".to_owned(),
        });
        format!("| {name} |{}\n", dice.collect::<String>())
    };
    let mut table = String::from("| case |");
    for class in &classes {
        let _ = write!(table, " class {class} |");
    }
    let _ = writeln!(table, "\n|---|{}", "---|".repeat(classes.len()));
    for case in summary["metric_per_case"].as_array().into_iter().flatten() {
        let file = case["prediction_file"].as_str().unwrap_or_default();
        table += &row(file.rsplit('/').next().unwrap_or_default(), &case["metrics"]);
    }
    table += &row("**mean**", &summary["mean"]);
    let mean = summary["foreground_mean"]["Dice"].as_f64().unwrap_or(f64::NAN);
    format!("Mean Dice over all foreground classes: **{mean:.4}**\n\n{table}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_per_case_and_a_column_per_class() {
        let case = |file: &str, a: f64| serde_json::json!({"prediction_file": file, "metrics": {"1": {"Dice": a}, "2": {"Dice": null}}});
        let summary = serde_json::json!({
            "metric_per_case": [case("p/a.nii.gz", 0.5), case("p/b.nii.gz", 0.75)],
            "mean": {"1": {"Dice": 0.625}, "2": {"Dice": null}},
            "foreground_mean": {"Dice": 0.625},
        });
        let table = dice_table(&summary);
        assert!(table.contains("| case | class 1 | class 2 |\n|---|---|---|\n"), "{table}");
        assert!(table.contains("| a.nii.gz | 0.5000 | - |\n| b.nii.gz | 0.7500 | - |\n| **mean** | 0.6250 | - |\n"));
    }
}
