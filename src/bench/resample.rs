//! Benchmark of resampling one case.

use std::convert::Infallible;
use std::hint::black_box;

use ndarray::Array3;

use super::{Row, Work, measure};
use nnunet_image::{Resampling, Volume, compute_new_shape, resample_data, resample_labels};

/// nnU-Net v2's defaults: images cubic, labels linear per class.
const IMAGE: Resampling = Resampling { order: 3, order_z: 0, force_separate_z: None };
const LABELS: Resampling = Resampling { order: 1, order_z: 0, force_separate_z: None };

/// Resamples an image, and its labels if given, from spacing `from` to spacing `to`, both in mm along `(z, y, x)`.
///
/// The unit is 10^6 voxels after resampling, over all channels.
pub fn resample(image: &Volume, labels: Option<&Array3<i16>>, from: [f64; 3], to: [f64; 3], rounds: usize) -> Vec<Row> {
    let (channels, z, y, x) = image.data.dim();
    let shape = compute_new_shape([z, y, x], from, to);
    let [before, after] = [z * y * x, shape.iter().product::<usize>()];
    let row = |name: &str, channels: usize, voxel_bytes: usize, run: &dyn Fn()| {
        let seconds = measure::<Infallible>(rounds, || {
            run();
            Ok(())
        });
        let Ok(seconds) = seconds;
        let items = (channels * after) as f64 / 1e6;
        let bytes = (channels * (before + after) * voxel_bytes) as f64;
        Row { name: name.into(), unit: "Mvoxel", work: Work { items, bytes, ..Work::default() }, seconds }
    };
    let mut rows = vec![row("image, cubic", channels, size_of::<f32>(), &|| {
        black_box(resample_data(image.data.view(), shape, from, to, &IMAGE));
    })];
    rows.extend(labels.map(|labels| {
        row("labels, linear", 1, size_of::<i16>(), &|| {
            black_box(resample_labels(labels.view(), shape, from, to, &LABELS));
        })
    }));
    rows
}
