//! Segment an array in memory with the network of a trained run.
//!
//! `cargo run --example predict_array -- hippocampus/runs/3d_fullres/fold_0`
//!
//! The image here is generated; a program would take it from its own reader, as raw intensities with the spacing of the
//! voxels. Preprocessing, sliding windows and resampling of the result are those of `nnunet-dist predict`.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use ndarray::{Array3, Array4};
use nnunet_dist::backend::CpuInference;
use nnunet_dist::infer::{CheckpointName, Predictor, WindowOptions, find_checkpoints};

fn main() -> Result<(), Box<dyn Error>> {
    let Some(run) = std::env::args_os().nth(1).map(PathBuf::from) else {
        println!("usage: predict_array RUN\n\nRUN is a run directory that contains checkpoint_latest, for example");
        println!("hippocampus/runs/3d_fullres/fold_0. `nnunet-dist demo` trains a small network.");
        return Ok(());
    };
    for (label, voxels) in volumes(&segment(&run, [36, 50, 35])?) {
        println!("label {label}: {voxels} voxels");
    }
    Ok(())
}

/// Segments a bright ball in an image of this shape `(z, y, x)`; the labels have the same shape.
pub fn segment(run: &Path, shape: [usize; 3]) -> Result<Array3<i16>, Box<dyn Error>> {
    let checkpoints = find_checkpoints(&[run.to_owned()], &[], CheckpointName::Latest)?;
    let predictor = Predictor::<CpuInference>::open(&checkpoints, WindowOptions::default(), Default::default())?;
    // Networks with several channels get the same image in each.
    let channels = predictor.dataset().channel_names.len();
    let image = Array4::from_shape_fn((channels, shape[0], shape[1], shape[2]), |(_, z, y, x)| {
        let at = [z, y, x];
        let from_center = (0..3).map(|axis| (at[axis] as f32 / shape[axis] as f32 - 0.5).powi(2)).sum::<f32>().sqrt();
        if from_center < 0.3 { 900.0 } else { 100.0 }
    });
    let spacing = [1.0, 1.0, 1.0]; // (z, y, x) in mm
    let found = predictor.predict_array(image.view(), spacing, false)?;
    Ok(found.labels.data)
}

/// Number of voxels of each label.
fn volumes(labels: &Array3<i16>) -> BTreeMap<i16, usize> {
    let mut volumes = BTreeMap::new();
    labels.iter().for_each(|&label| *volumes.entry(label).or_default() += 1);
    volumes
}
