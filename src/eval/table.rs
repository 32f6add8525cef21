//! A summary as an aligned table and as CSV.

use std::io::{self, Write};
use std::path::Path;

use nnunet_core::fsio::write_atomically;

use super::{Confidence, EvalError, Measure, Metrics, Summary};

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

impl Summary {
    /// Writes one line per case and class as comma-separated values, with a header.
    ///
    /// Undefined values are written as `NaN`, which pandas and R read as missing. Text with a comma or a quote is
    /// quoted (RFC 4180).
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save_csv(&self, path: &Path) -> Result<(), EvalError> {
        write_atomically(path, |file| self.write_csv(file)).map_err(EvalError::io(path))
    }

    fn write_csv(&self, mut file: impl Write) -> io::Result<()> {
        let scores = self.foreground_mean.scores().map(|(name, _)| name);
        let counts = ["TP", "FP", "FN", "TN", "n_pred", "n_ref"];
        let header = ["case", "class"].into_iter().chain(scores).chain(counts);
        let header = header.chain(["prediction_file", "reference_file"]);
        writeln!(file, "{}", header.collect::<Vec<_>>().join(","))?;
        for case in &self.metric_per_case {
            let name = quoted(&case_name(&case.prediction_file));
            let files = [&case.prediction_file, &case.reference_file].map(|path| quoted(&path.display().to_string()));
            for (class, metrics) in &case.metrics {
                let counts = [metrics.tp, metrics.fp, metrics.fn_, metrics.tn, metrics.n_pred, metrics.n_ref];
                let cells = [name.clone(), quoted(class)].into_iter();
                let cells = cells.chain(metrics.scores().map(|(_, score)| score.to_string()));
                let cells = cells.chain(counts.map(|count| count.to_string())).chain(files.clone());
                writeln!(file, "{}", cells.collect::<Vec<_>>().join(","))?;
            }
        }
        Ok(())
    }
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CaseResult, Measure, Metrics};
    use indexmap::IndexMap;

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
    fn confidence_table_lists_the_intervals() {
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

    #[test]
    fn csv_has_one_line_per_case_and_class() {
        let mut region = Metrics::from_counts(0, 0, 0, 8);
        region.measured.set(Measure::Avd, 1.5);
        let case = CaseResult {
            metrics: IndexMap::from([("(1, 2)".to_owned(), region)]),
            prediction_file: "p/a \"b\".nii.gz".into(),
            reference_file: "r/a.nii.gz".into(),
        };
        let mut text = Vec::new();
        Summary::new(vec![case]).write_csv(&mut text).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "case,class,Dice,IoU,AVD,TP,FP,FN,TN,n_pred,n_ref,prediction_file,reference_file\n\
             \"a \"\"b\"\"\",\"(1, 2)\",NaN,NaN,1.5,0,0,0,8,0,0,\"p/a \"\"b\"\".nii.gz\",r/a.nii.gz\n"
        );
    }
}
