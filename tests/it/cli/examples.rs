//! The programs in `examples/`, included as modules: they run on data of the repository.

#![allow(dead_code)]

#[path = "../../../examples/add_network.rs"]
mod add_network;
#[path = "../../../examples/add_transform.rs"]
mod add_transform;
#[path = "../../../examples/predict_array.rs"]
mod predict_array;
#[path = "../../../examples/read_run_log.rs"]
mod read_run_log;

use std::fs;
use std::path::{Path, PathBuf};

use nnunet_dist::augment::{Pipeline, Spatial};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run() -> PathBuf {
    root().join("tests/fixtures/run_0_1/run")
}

#[test]
fn every_example_is_short_and_is_in_the_book() {
    let page = fs::read_to_string(root().join("docs/how-to/library.md")).unwrap();
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() < 80, "{name} has {} lines", text.lines().count());
        assert!(text.contains(&format!("//! `cargo run --example {name}")), "{name} does not state its command");
        assert!(page.contains(&format!("examples/{name}.rs")), "docs/how-to/library.md does not mention {name}");
    }
}

#[test]
fn a_network_of_ones_own_has_a_head_per_decoder_stage() {
    let network = add_network::build(2, 3);
    let plain = network.parameters().iter().filter(|parameter| !parameter.spec.name.contains(".mix.")).count();
    assert_eq!(network.parameters().len() - plain, 3 * 4, "convolution and norm of three stages");
    let extents = add_network::extents_of_logits(&network, [16, 32, 32]);
    assert_eq!(extents, [[1, 16, 32, 32, 3], [1, 16, 16, 16, 3]]);
}

#[test]
fn a_transform_of_ones_own_is_reproducible() {
    let size = [16, 20, 20];
    let read = add_transform::patch(size);
    let shift = add_transform::Shift { amount: 1.0..2.0 };
    let pipeline = Pipeline::new(Spatial::none(size)).then("shift", 1.0, move |patch, rng| shift.apply(patch, rng));
    let before = read.data.mean().unwrap();
    let after = |sample| add_transform::mean_after(&pipeline, &read, sample) - before;
    assert!((1.0..2.0).contains(&after(0)) && after(0) == after(0) && after(0) != after(1));
}

#[test]
fn an_array_is_segmented() {
    let labels = predict_array::segment(&run(), [20, 24, 20]).unwrap();
    assert_eq!(labels.dim(), (20, 24, 20));
    assert!(labels.iter().all(|label| (0..3).contains(label)));
    assert!(predict_array::segment(Path::new("/nowhere"), [20, 24, 20]).is_err());
}

#[test]
fn a_log_becomes_a_table() {
    let table = read_run_log::table(&run()).unwrap();
    assert_eq!(table.lines().count(), 3, "{table}");
    assert_eq!(table.lines().nth(1).unwrap(), "    0     1.5611     1.4705      0.1439   0.1439");
}
