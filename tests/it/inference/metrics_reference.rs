//! Surface metrics equal the values that SciPy computes for the same masks (`binary_erosion`, `distance_transform_edt`,
//! `percentile`), through files and the command line.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use ndarray::Array3;
use nnunet_dist::dataset::LabelValue;
use nnunet_dist::eval::{Classes, Measure, Measures, Metrics, Pair, Summary, Tolerance, evaluate_files};
use nnunet_dist::image::{Geometry, LabelMap, write_labels};
use predicates::prelude::predicate::str::contains;
use tempfile::TempDir;

/// Extent and voxel size, `(z, y, x)`.
const SHAPE: [usize; 3] = [14, 22, 18];
const SPACING: [f64; 3] = [3.0, 0.8, 1.1];

/// Sets the voxels of an ellipsoid, computed in integers so that Python gives the same mask.
fn ellipsoid(labels: &mut Array3<i16>, centre: [i64; 3], radii: [i64; 3], label: i16) {
    let [a, b, c] = radii;
    let scale = [b * c, a * c, a * b];
    for ((z, y, x), voxel) in labels.indexed_iter_mut() {
        let at = [z, y, x].map(|index| index as i64);
        let square: i64 = (0..3).map(|axis| ((at[axis] - centre[axis]) * scale[axis]).pow(2)).sum();
        if square <= (a * b * c).pow(2) {
            *voxel = label;
        }
    }
}

fn fill(labels: &mut Array3<i16>, [z, y, x]: [std::ops::Range<usize>; 3], label: i16) {
    labels.slice_mut(ndarray::s![z, y, x]).fill(label);
}

/// Prediction and truth: an organ (1) with a core (2), a false spot, and an ignored corner (9).
fn volumes() -> [Array3<i16>; 2] {
    let mut truth = Array3::zeros(SHAPE);
    ellipsoid(&mut truth, [6, 10, 8], [5, 8, 6], 1);
    ellipsoid(&mut truth, [6, 9, 8], [2, 3, 3], 2);
    fill(&mut truth, [10..14, 18..22, 0..3], 9);
    let mut predicted = Array3::zeros(SHAPE);
    ellipsoid(&mut predicted, [7, 11, 8], [5, 7, 7], 1);
    ellipsoid(&mut predicted, [6, 8, 9], [3, 3, 2], 2);
    fill(&mut predicted, [0..2, 0..2, 15..18], 1);
    [predicted, truth]
}

fn plane() -> [Array3<i16>; 2] {
    let [mut predicted, mut truth] = [Array3::zeros([1, 40, 50]), Array3::zeros([1, 40, 50])];
    ellipsoid(&mut truth, [0, 18, 25], [1, 12, 15], 1);
    ellipsoid(&mut predicted, [0, 20, 27], [1, 13, 11], 1);
    fill(&mut predicted, [0..1, 36..40, 45..50], 1);
    [predicted, truth]
}

fn write(folder: &Path, [predicted, truth]: [Array3<i16>; 2], spacing: [f64; 3]) -> Pair {
    let geometry = Geometry { spacing, ..Geometry::default() };
    let write = |name: &str, data| {
        let path = folder.join(name).join("case.nii.gz");
        write_labels(&path, &LabelMap { data, geometry: geometry.clone() }).unwrap();
        path
    };
    Pair { prediction: write("predictions", predicted), reference: write("labels", truth) }
}

/// All measures of the classes, with a tolerance of 1 mm.
fn evaluate(pair: &Pair, foreground: Vec<LabelValue>, ignore_label: Option<i16>, tolerance: f64) -> Summary {
    let classes = Classes { foreground, ignore_label };
    let tolerance = Tolerance { general: tolerance, per_class: Vec::new() };
    let measures = Measures { chosen: Measure::ALL.to_vec(), tolerance };
    evaluate_files(std::slice::from_ref(pair), &classes, &measures).unwrap()
}

#[track_caller]
fn assert_near(metrics: &Metrics<u64>, measure: Measure, expected: f64) {
    let found = metrics.measured.get(measure).unwrap();
    assert!((found - expected).abs() <= 2e-6 * expected.abs(), "{measure:?} {found}, not {expected}");
}

#[test]
fn surfaces_in_anisotropic_volumes_equal_scipys() {
    let folder = TempDir::new().unwrap();
    let pair = write(folder.path(), volumes(), SPACING);
    let classes = || vec![LabelValue::Class(1), LabelValue::Class(2), LabelValue::Region(vec![1, 2])];
    // NSD at 1 mm and at 2.5 mm, HD95, ASSD.
    let expected = [
        ("1", [0.48272138228941686, 0.908207343412527, 3.104834939252005, 1.1900879442334011]),
        ("2", [0.5775862068965517, 0.9482758620689655, 2.720294101747089, 0.9241429308365154]),
        ("(1, 2)", [0.4296875, 0.8776041666666666, 3.104834939252005, 1.3263023993708267]),
    ];
    let [near, far] = [1.0, 2.5].map(|tolerance| evaluate(&pair, classes(), None, tolerance));
    for (class, [nsd, nsd_far, hd95, assd]) in expected {
        let metrics = &near.metric_per_case[0].metrics[class];
        assert_near(metrics, Measure::Nsd, nsd);
        assert_near(&far.metric_per_case[0].metrics[class], Measure::Nsd, nsd_far);
        assert_near(metrics, Measure::Hd95, hd95);
        assert_near(metrics, Measure::Assd, assd);
    }
    let voxel: f64 = SPACING.iter().product();
    let organ = &near.metric_per_case[0].metrics["1"];
    assert_eq!((organ.n_pred, organ.n_ref), (962, 910));
    assert_near(organ, Measure::Avd, 52.0 * voxel);
    assert_near(organ, Measure::Rvd, 52.0 / 910.0);
}

#[test]
fn ignored_voxels_have_no_surface() {
    let folder = TempDir::new().unwrap();
    let [mut predicted, truth] = volumes();
    let clean = write(folder.path(), [predicted.clone(), truth.clone()], SPACING);
    let expected = evaluate(&clean, vec![LabelValue::Class(1)], Some(9), 1.0);
    // Predictions in ignored voxels change nothing.
    predicted.iter_mut().zip(&truth).filter(|(_, truth)| **truth == 9).for_each(|(voxel, _)| *voxel = 1);
    let spoiled = write(&folder.path().join("spoiled"), [predicted, truth], SPACING);
    let found = evaluate(&spoiled, vec![LabelValue::Class(1)], Some(9), 1.0);
    assert_eq!(found.metric_per_case[0].metrics, expected.metric_per_case[0].metrics);
    let counted = evaluate(&spoiled, vec![LabelValue::Class(1)], None, 1.0);
    assert_ne!(counted.metric_per_case[0].metrics, expected.metric_per_case[0].metrics);
}

#[test]
fn outlines_in_a_plane_equal_scipys() {
    let folder = TempDir::new().unwrap();
    let pair = write(folder.path(), plane(), [999.0, 0.5, 0.7]);
    let summary = evaluate(&pair, vec![LabelValue::Class(1)], None, 1.0);
    let metrics = &summary.metric_per_case[0].metrics["1"];
    assert_near(metrics, Measure::Nsd, 0.4177215189873418);
    assert_near(metrics, Measure::Hd95, 9.899494936611665);
    assert_near(metrics, Measure::Assd, 2.124551265101175);
}

#[test]
fn cases_without_a_class_count_as_documented() {
    let folder = TempDir::new().unwrap();
    let [predicted, truth] = volumes();
    let empty = Array3::zeros(SHAPE);
    let class = || vec![LabelValue::Class(1)];
    let of = |name: &str, maps| {
        let summary = evaluate(&write(&folder.path().join(name), maps, SPACING), class(), None, 1.0);
        let measured = summary.metric_per_case[0].metrics["1"].measured;
        [Measure::Nsd, Measure::Hd95, Measure::Assd, Measure::Sensitivity, Measure::Precision, Measure::Rvd]
            .map(|measure| measured.get(measure).unwrap())
    };
    let nan = |values: &[f64]| values.iter().all(|value| value.is_nan());
    let [nsd, hd95, assd, sensitivity, precision, rvd] = of("missed", [empty.clone(), truth]);
    assert!(nsd == 0.0 && nan(&[hd95, assd, precision]) && sensitivity == 0.0 && rvd == -1.0);
    let [nsd, hd95, assd, sensitivity, precision, rvd] = of("invented", [predicted, empty.clone()]);
    assert!(nsd == 0.0 && nan(&[hd95, assd, sensitivity, rvd]) && precision == 0.0);
    assert!(nan(&of("neither", [empty.clone(), empty])));
}

/// The command for a folder with `predictions` and `labels`.
fn command(folder: &Path, flags: &[&str]) -> Command {
    let mut command = Command::cargo_bin("nnunet-dist").unwrap();
    let [predictions, labels]: [PathBuf; 2] = ["predictions", "labels"].map(|name| folder.join(name));
    command.env_remove("RUST_LOG").arg("evaluate").arg("-p").arg(predictions).arg("-g").arg(labels).args(flags);
    command
}

#[test]
fn the_command_computes_and_writes_the_requested_metrics() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), volumes(), SPACING);
    let csv = folder.path().join("cases.csv");
    let flags = ["-l", "1", "2", "1,2", "--ignore-label", "9", "--metrics", "nsd,hd95", "--tolerance", "2.5"];
    let mut run = command(folder.path(), &flags);
    run.args(["--tolerance", "(1,2)=1", "--csv"]).arg(&csv);
    let run = run.assert().success();
    run.stdout(contains("case  (1, 2)")).stdout(contains("95 % interval")).stdout(contains("HD95"));

    let summary = Summary::load(&folder.path().join("predictions/summary.json")).unwrap();
    let metrics = &summary.metric_per_case[0].metrics;
    assert_near(&metrics["1"], Measure::Nsd, 0.908207343412527);
    assert_near(&metrics["(1, 2)"], Measure::Nsd, 0.4296875);
    assert!(metrics["1"].measured.get(Measure::Assd).is_none(), "not asked for");
    assert_eq!(summary.confidence.unwrap().mean["2"]["HD95"].cases, 1);
    let lines: Vec<String> = std::fs::read_to_string(csv).unwrap().lines().map(str::to_owned).collect();
    assert!(lines.len() == 4 && lines[0].starts_with("case,class,Dice,IoU,NSD,HD95,TP"), "{lines:?}");
    assert!(lines[3].starts_with("case,\"(1, 2)\",0."), "{lines:?}");
}

#[test]
fn missing_predictions_are_skipped_if_requested() {
    let folder = TempDir::new().unwrap();
    let pair = write(folder.path(), volumes(), SPACING);
    std::fs::copy(&pair.reference, pair.reference.with_file_name("other.nii.gz")).unwrap();
    command(folder.path(), &[]).assert().code(3).stderr(contains("missing label maps of 1 case(s): other"));
    command(folder.path(), &["--chill"]).assert().success().stdout(contains("mean Dice"));
    command(folder.path(), &["--ignore-label", "9"]).assert().code(2).stderr(contains("--labels"));
    command(folder.path(), &["--metrics", "nds"]).assert().code(2).stderr(contains("nsd"));
    command(folder.path(), &["--tolerance", "2=-1"]).assert().code(2).stderr(contains("above 0"));
    command(folder.path(), &["-l", "1", "x"]).assert().code(2).stderr(contains("must be a label"));
}
