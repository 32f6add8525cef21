//! A summary as text.

use std::path::Path;

use super::{Confidence, Measure, Metrics, Summary};

impl Summary {
    /// One line per case and class and one per mean, in aligned columns.
    pub fn table(&self) -> String {
        let scores: Vec<&str> = self.foreground_mean.scores().map(|(name, _)| name).collect();
        let header = ["case", "class"].into_iter().chain(scores).chain(["TP", "FP", "FN", "TN"]);
        let mut rows = vec![header.map(str::to_owned).collect()];
        for case in &self.metric_per_case {
            let name = case_name(&case.prediction_file);
            rows.extend(case.metrics.iter().map(|(class, metrics)| row(&name, class, metrics, |n| n.to_string())));
        }
        let mean_count = |count: &f64| format!("{count:.1}");
        rows.extend(self.mean.iter().map(|(class, metrics)| row("mean", class, metrics, mean_count)));
        rows.push(row("mean", "all", &self.foreground_mean, mean_count));
        align(&rows, 2)
    }

    /// One line per class and metric with its mean, its confidence interval and the number of cases in which it is
    /// defined; empty if there are no intervals.
    pub fn confidence_table(&self) -> String {
        let Some(Confidence { level, foreground_mean, mean, .. }) = &self.confidence else { return String::new() };
        let heading = format!("{:.0} % interval", level * 100.0);
        let mut rows = vec![["class", "metric", "mean", &heading, "cases"].map(str::to_owned).to_vec()];
        let classes = self.mean.iter().map(|(class, metrics)| (class.as_str(), metrics, mean.get(class)));
        for (class, metrics, intervals) in classes.chain([("all", &self.foreground_mean, Some(foreground_mean))]) {
            for (metric, mean) in metrics.scores() {
                let Some(interval) = intervals.and_then(|intervals| intervals.get(metric)) else { continue };
                let range = match interval.lower.is_nan() {
                    true => "-".to_owned(),
                    false => format!("{} to {}", number(metric, interval.lower), number(metric, interval.upper)),
                };
                let cells = [class, metric, &number(metric, mean), &range, &interval.cases.to_string()];
                rows.push(cells.map(str::to_owned).to_vec());
            }
        }
        align(&rows, 2)
    }
}

/// File name without its ending (`.nii.gz` is one ending).
pub fn case_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned()
}

fn row<Count>(case: &str, class: &str, metrics: &Metrics<Count>, count: impl Fn(&Count) -> String) -> Vec<String> {
    let names = [case.to_owned(), class.to_owned()];
    let scores = metrics.scores().map(|(name, score)| number(name, score));
    let counts = [&metrics.tp, &metrics.fp, &metrics.fn_, &metrics.tn].map(count);
    names.into_iter().chain(scores).chain(counts).collect()
}

/// Formats a value with the precision of its metric.
fn number(metric: &str, score: f64) -> String {
    match metric {
        _ if score.is_nan() => "-".to_owned(),
        _ if metric == Measure::Avd.key() => format!("{score:.1}"),
        _ if [Measure::Hd95, Measure::Assd].iter().any(|measure| measure.key() == metric) => format!("{score:.3}"),
        _ => format!("{score:.4}"),
    }
}

/// Aligns columns: the first `names` columns to the left, numbers to the right.
fn align(rows: &[Vec<String>], names: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column < names {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        text += &cells.collect::<Vec<_>>().join("  ");
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;

    use super::*;
    use crate::CaseResult;

    fn summary() -> Summary {
        let case = |name: &str, metrics| CaseResult {
            metrics: IndexMap::from([("1".to_owned(), metrics)]),
            prediction_file: format!("pred/{name}.nii.gz").into(),
            reference_file: format!("labels/{name}.nii.gz").into(),
        };
        Summary::new(vec![
            case("liver_1.5mm", Metrics::from_counts(30, 10, 10, 1000)),
            case("b", Metrics::from_counts(0, 0, 0, 1050)),
        ])
    }

    #[test]
    fn columns_are_aligned_and_undefined_overlap_is_a_dash() {
        assert_eq!(
            summary().table(),
            "\
case         class    Dice     IoU    TP   FP   FN      TN
liver_1.5mm  1      0.7500  0.6000    30   10   10    1000
b            1           -       -     0    0    0    1050
mean         1      0.7500  0.6000  15.0  5.0  5.0  1025.0
mean         all    0.7500  0.6000  15.0  5.0  5.0  1025.0
"
        );
    }

    #[test]
    fn intervals_have_a_table_of_their_own() {
        assert_eq!(summary().confidence_table(), "");
        assert_eq!(
            summary().with_confidence(100, 1).confidence_table(),
            "\
class  metric    mean     95 % interval  cases
1      Dice    0.7500  0.7500 to 0.7500      1
1      IoU     0.6000  0.6000 to 0.6000      1
all    Dice    0.7500  0.7500 to 0.7500      1
all    IoU     0.6000  0.6000 to 0.6000      1
"
        );
    }
}
