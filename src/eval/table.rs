//! A summary as text.

use std::path::Path;

use super::{Metrics, Summary};

const HEADER: [&str; 8] = ["case", "class", "Dice", "IoU", "TP", "FP", "FN", "TN"];

impl Summary {
    /// A line per case and class and one per mean, in aligned columns.
    pub fn table(&self) -> String {
        let mut rows = vec![HEADER.map(str::to_owned)];
        for case in &self.metric_per_case {
            let name = case_name(&case.prediction_file);
            rows.extend(case.metrics.iter().map(|(class, metrics)| row(&name, class, metrics, |n| n.to_string())));
        }
        let mean_count = |count: &f64| format!("{count:.1}");
        rows.extend(self.mean.iter().map(|(class, metrics)| row("mean", class, metrics, mean_count)));
        rows.push(row("mean", "all", &self.foreground_mean, mean_count));
        align(&rows)
    }
}

/// The file's name without its ending (`.nii.gz` is one ending).
fn case_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned()
}

fn row<Count>(case: &str, class: &str, metrics: &Metrics<Count>, count: impl Fn(&Count) -> String) -> [String; 8] {
    let overlap = |value: f64| if value.is_nan() { "-".to_owned() } else { format!("{value:.4}") };
    let [tp, fp, fn_, tn] = [&metrics.tp, &metrics.fp, &metrics.fn_, &metrics.tn].map(count);
    [case.to_owned(), class.to_owned(), overlap(metrics.dice), overlap(metrics.iou), tp, fp, fn_, tn]
}

/// Names flush left, numbers flush right.
fn align(rows: &[[String; 8]]) -> String {
    let widths: [_; 8] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
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
    use crate::eval::CaseResult;

    #[test]
    fn columns_are_aligned_and_undefined_overlap_is_a_dash() {
        let case = |name: &str, metrics| CaseResult {
            metrics: IndexMap::from([("1".to_owned(), metrics)]),
            prediction_file: format!("pred/{name}.nii.gz").into(),
            reference_file: format!("labels/{name}.nii.gz").into(),
        };
        let summary = Summary::new(vec![
            case("liver_1.5mm", Metrics::from_counts(30, 10, 10, 1000)),
            case("b", Metrics::from_counts(0, 0, 0, 1050)),
        ]);
        assert_eq!(
            summary.table(),
            "\
case         class    Dice     IoU    TP   FP   FN      TN
liver_1.5mm  1      0.7500  0.6000    30   10   10    1000
b            1           -       -     0    0    0    1050
mean         1      0.7500  0.6000  15.0  5.0  5.0  1025.0
mean         all    0.7500  0.6000  15.0  5.0  5.0  1025.0
"
        );
    }
}
