//! A scaling experiment of the built program: jobs of one and two processes through the launcher.

use std::fs;
use std::path::Path;

use crate::job;
use crate::skip::skip;
use crate::work::{CONFIGURATION, Workshop, program};

#[test]
fn an_experiment_measures_each_number_of_processes_and_predicts_larger_ones() {
    let launcher = Path::new(env!("CARGO_BIN_EXE_nnunet-dist")).with_file_name("nnunet-launch");
    if !launcher.exists() {
        skip(format_args!("no {}; `cargo build --workspace` makes it", launcher.display()));
        return;
    }
    if job::launcher().is_none() {
        return;
    }
    let shop = Workshop::new();
    let results = shop.path("scaling");
    let scale = |flags: &[&str]| {
        let mut command = program();
        command.args(["scale", "-c", CONFIGURATION, "-f", "0", "-w"]).arg(shop.work.root());
        command.args(["--steps", "3", "--warm-up", "1", "-o"]).arg(&results).args(flags);
        // Test machines are containers with few cores.
        command.env("OMPI_MCA_rmaps_base_oversubscribe", "1").output().unwrap()
    };
    let output = scale(&["--np", "1,2", "--mode", "strong", "--batch-size", "2", "--threads", "1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    for words in ["strong scaling, 3 steps each", "measured all-reduce: latency", "PREDICTED efficiency", "1024"] {
        assert!(text.contains(words), "no `{words}` in\n{text}");
    }
    let csv = fs::read_to_string(results.join("scaling.csv")).unwrap();
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines[0][..3], ["ranks", "global_batch_size", "steps"]);
    assert_eq!([&lines[1][..3], &lines[2][..3]], [["1", "2", "3"], ["2", "2", "3"]]);
    for line in &lines[1..] {
        let value =
            |name: &str| -> f64 { line[lines[0].iter().position(|column| *column == name).unwrap()].parse().unwrap() };
        let parts = ["compute_s", "data_wait_s", "straggler_s", "exposed_comm_s"].map(value);
        assert!((parts.iter().sum::<f64>() - value("step_s")).abs() < 1e-6, "{line:?}");
    }
    assert!(fs::read(results.join("scaling.png")).unwrap().starts_with(b"\x89PNG"));

    let refused = scale(&["--np", "2,3", "--mode", "strong", "--batch-size", "4"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("4 cannot be divided over 3 ranks"));
}
