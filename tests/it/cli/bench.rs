//! `nnunet-dist bench` and its comparison with other programs.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::skip::skip;

fn bench(arguments: &[&str]) -> Value {
    let program = env!("CARGO_BIN_EXE_nnunet-dist");
    let output = Command::new(program).args(["bench", "--json", "--rounds", "1"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names(report: &Value) -> Vec<&str> {
    report["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

/// Checks the row names that `benches/peers/compare.py` reads.
#[test]
fn every_bench_prints_the_rows_that_comparisons_read() {
    let small = ["--patch", "8,8,8", "--batch-size", "2", "--features", "4,8"];
    let step = bench(&[&["step", "--profile"][..], &small].concat());
    assert_eq!(names(&step)[0], "step");
    assert!(names(&step).contains(&"between operations"), "{step}");
    for row in step["rows"].as_array().unwrap() {
        assert!(row["per_second"].as_f64().unwrap() > 0.0, "{row}");
    }
    let conv = bench(&[&["conv", "--burn"][..], &small].concat());
    assert_eq!(
        names(&conv)[..2],
        ["Forward 2x1->4 @8x8x8 k3x3x3 s1x1x1, ours", "Forward 2x1->4 @8x8x8 k3x3x3 s1x1x1, Burn's"]
    );
    let memory = bench(&[&["memory", "--amp"][..], &small].concat());
    assert_eq!(memory["precision"], "amp-bf16");
    assert!(
        memory["peak_bytes"].as_u64().unwrap() > 1 << 20 && memory["planned_gb"].as_f64().unwrap() > 0.0,
        "{memory}"
    );
    let cases = [
        (vec!["loader", "--patch", "16,16,16", "--batch-size", "2"], "augment"),
        (vec!["infer", "--extent", "20,20,20", "--patch", "16,16,16", "--classes", "3"], "image"),
        (vec!["checkpoint", "--features", "4,8"], "write"),
        (vec!["allreduce", "--mb", "0.1", "--bucket-mb", "0.02"], "f32"),
    ];
    for (arguments, row) in cases {
        let report = bench(&arguments);
        assert_eq!(report["bench"], arguments[0]);
        assert!(names(&report).contains(&row), "{report}");
        assert!(report["peak"]["matmul_tflops"].as_f64().unwrap() > 0.0, "{report}");
    }
}

/// Recomputed activations are not kept in memory.
#[test]
fn gradient_checkpointing_takes_less_memory() {
    let network = ["memory", "--patch", "64,64,64", "--batch-size", "1", "--features", "16,32,64"];
    let peak = |more: &[&str]| bench(&[&network, more].concat())["peak_bytes"].as_f64().unwrap();
    let (kept, computed) = (peak(&[]), peak(&["--gradient-checkpointing"]));
    assert!(computed < 0.85 * kept, "{computed} bytes and {kept}");
}

/// Rows whose ratio differs from the recorded one are listed, and a record keeps rows that were not measured again.
#[test]
fn changed_ratios_are_listed() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/compare.py");
    let folder = tempfile::tempdir().unwrap();
    let (recorded, measured) = (folder.path().join("ratios.json"), folder.path().join("lines"));
    let old = json!({"rows": {"step": {"ratio": 2.0}, "predict": {"ratio": 1.5}, "augment": {"ratio": 9.0}}});
    std::fs::write(&recorded, old.to_string()).unwrap();
    let line = |name: &str, ratio: f64| json!({"name": name, "ratio": ratio}).to_string();
    std::fs::write(&measured, [line("step", 1.7), line("predict", 1.6), line("new", 3.0)].join("\n")).unwrap();
    let compare = |more: &[&str]| {
        let arguments = [Path::new("--recorded"), &recorded, Path::new("--from"), &measured];
        match Command::new("python3").arg(&script).args(arguments).args(more).output() {
            Ok(output) => Some(output),
            Err(error) => {
                skip(format_args!("python3 cannot be run: {error}"));
                None
            }
        }
    };
    let Some(output) = compare(&["--record"]) else { return };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.trim(), "step: ratio 1.70, recorded 2.00: 15% slower");
    let new: Value = serde_json::from_slice(&std::fs::read(&recorded).unwrap()).unwrap();
    let ratios = ["step", "predict", "augment", "new"].map(|name| new["rows"][name]["ratio"].as_f64().unwrap());
    assert_eq!(ratios, [1.7, 1.6, 9.0, 3.0]);
    let again = compare(&[]).unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("no ratio moved"));
}
