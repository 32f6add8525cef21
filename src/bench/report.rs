//! Benchmark results and their output formats.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Peak, Timings, peak_resident_bytes};
use nnunet_nn::ops::Precision;

/// Work done by one run of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Work {
    /// Number of items in the unit of the row, such as samples, cases or voxels.
    pub items: f64,
    /// Floating-point operations; 0 if not applicable.
    pub flops: f64,
    /// Minimum number of bytes read and written; 0 if not applicable.
    pub bytes: f64,
    /// Precision of the operands of the floating-point operations.
    pub precision: Precision,
}

/// One measured piece of work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the measurement.
    pub name: String,
    /// Plural name of the items, such as `samples` or `cases`.
    pub unit: &'static str,
    /// Work of one run.
    pub work: Work,
    /// Seconds of each run.
    pub seconds: Timings,
}

impl Row {
    /// Items per second of the median run.
    pub fn rate(&self) -> f64 {
        self.work.items / self.seconds.median()
    }

    /// 10^12 floating-point operations per second; `None` if not applicable.
    pub fn tflops(&self) -> Option<f64> {
        (self.work.flops > 0.0).then(|| self.work.flops / self.seconds.median() / 1e12)
    }

    /// 10^9 bytes per second; `None` if not applicable.
    pub fn gb_per_s(&self) -> Option<f64> {
        (self.work.bytes > 0.0).then(|| self.work.bytes / self.seconds.median() / 1e9)
    }

    /// Fraction of the machine's peak in arithmetic or copying, whichever is larger.
    pub fn share_of_peak(&self, peak: &Peak) -> Option<f64> {
        let arithmetic = self.tflops().map(|rate| rate / peak.tflops(self.work.precision));
        let memory = self.gb_per_s().map(|rate| rate / peak.copy_gb_per_s);
        arithmetic.into_iter().chain(memory).reduce(f64::max)
    }
}

/// Rows of a benchmark, printed as a table or as JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Name of the benchmark.
    pub bench: &'static str,
    /// Number of threads of this process.
    pub threads: usize,
    /// Rows in the order of measurement.
    pub rows: Vec<Row>,
    /// Peak rates that the rows are related to.
    pub peak: Peak,
    /// Peak memory of the process after measuring the rows and before measuring the peak rates.
    pub memory_bytes: Option<u64>,
}

impl Report {
    /// Creates a report of these rows; measures the machine's peak.
    pub fn new(bench: &'static str, rows: Vec<Row>) -> Self {
        let memory_bytes = peak_resident_bytes();
        Self { memory_bytes, ..Self::with_peak(bench, rows, Peak::measure()) }
    }

    /// Creates a report of these rows with the peak of the device they were measured on.
    pub fn with_peak(bench: &'static str, rows: Vec<Row>, peak: Peak) -> Self {
        let memory_bytes = peak_resident_bytes();
        Self { bench, threads: rayon::current_num_threads(), rows, peak, memory_bytes }
    }

    /// One line per row, and a line about the machine.
    pub fn table(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(self.bench.len());
        let mut table = format!(
            "{:width$}  {:>10} {:>10} {:>10} {:>12} {:<8} {:>8} {:>8} {:>8}\n",
            self.bench, "median s", "min s", "max s", "per second", "", "TFLOP/s", "GB/s", "of peak"
        );
        for row in &self.rows {
            let optional = |value: Option<f64>, digits| value.map_or("-".into(), |value| format!("{value:.digits$}"));
            let _ = writeln!(
                table,
                "{:width$}  {:>10.4} {:>10.4} {:>10.4} {:>12.3} {:<8} {:>8} {:>8} {:>8}",
                row.name,
                row.seconds.median(),
                row.seconds.min(),
                row.seconds.max(),
                row.rate(),
                row.unit,
                optional(row.tflops(), 3),
                optional(row.gb_per_s(), 2),
                row.share_of_peak(&self.peak).map_or("-".into(), |share| format!("{:.0} %", 100.0 * share)),
            );
        }
        let memory = self.memory_bytes.map_or(String::new(), |bytes| format!("; peak memory {} MiB", bytes >> 20));
        let _ = writeln!(
            table,
            "{} thread(s); this machine: matmul {:.3} TFLOP/s, in bf16 {:.3}, copy {:.1} GB/s{memory}",
            self.threads, self.peak.matmul_tflops, self.peak.matmul_bf16_tflops, self.peak.copy_gb_per_s
        );
        table
    }

    /// One JSON object on one line.
    pub fn json(&self) -> String {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "name": row.name,
                    "unit": row.unit,
                    "seconds_median": row.seconds.median(),
                    "seconds": row.seconds,
                    "per_second": row.rate(),
                    "tflops": row.tflops(),
                    "gb_per_s": row.gb_per_s(),
                    "share_of_peak": row.share_of_peak(&self.peak),
                })
            })
            .collect();
        let report = serde_json::json!({
            "bench": self.bench,
            "threads": self.threads,
            "rows": rows,
            "peak": self.peak,
            "peak_memory_bytes": self.memory_bytes,
        });
        report.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let work = Work { items: 4.0, flops: 1e12, ..Work::default() };
        let row = Row { name: "forward".into(), unit: "samples", work, seconds: Timings::new(vec![2.0]) };
        let peak = Peak { matmul_tflops: 2.0, matmul_bf16_tflops: 4.0, copy_gb_per_s: 10.0 };
        Report { bench: "step", threads: 2, rows: vec![row], peak, memory_bytes: Some(3 << 20) }
    }

    #[test]
    fn rates_come_from_the_median_and_the_peak() {
        let report = report();
        let row = &report.rows[0];
        assert_eq!((row.rate(), row.tflops(), row.gb_per_s()), (2.0, Some(0.5), None));
        assert_eq!(row.share_of_peak(&report.peak), Some(0.25));
        let bf16 = Row { work: Work { precision: Precision::AmpBf16, ..row.work }, ..row.clone() };
        assert_eq!(bf16.share_of_peak(&report.peak), Some(0.125));
    }

    #[test]
    fn table_and_json_agree() {
        let report = report();
        let table = report.table();
        assert!(table.contains("forward") && table.contains("25 %") && table.contains("peak memory 3 MiB"), "{table}");
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["rows"][0]["per_second"], 2.0);
        assert_eq!(json["peak_memory_bytes"], 3 << 20);
    }
}
