//! A summary as CSV.

use std::io::{self, Write};
use std::path::Path;

use super::{EvalError, Summary, case_name};
use nnunet_core::fsio::write_atomically;

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
    use indexmap::IndexMap;

    use super::*;
    use crate::{CaseResult, Measure, Metrics};

    #[test]
    fn every_case_and_class_is_a_line() {
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
