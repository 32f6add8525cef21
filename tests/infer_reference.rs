//! Importance maps and sliding-window logits agree with nnU-Net v2's (`fixtures/infer`).

mod common;
#[path = "common/network.rs"]
mod network;

use std::fs::File;

use ndarray::{Array3, Array4};
use ndarray_npy::NpzReader;
use nnunet_dist::backend::Cpu;
use nnunet_dist::infer::{Blend, SlidingWindow, importance, window_steps};
use nnunet_dist::model::{TensorState, UNet};

use self::network::Fixture;

/// The number after `key` in a name such as `gaussian_20_24_16_s0.25_vf1`.
fn stated(name: &str, key: &str) -> Option<f64> {
    name.split('_').find_map(|part| part.strip_prefix(key)?.parse().ok())
}

#[test]
fn importance_maps_agree() {
    let gaussians = common::fixtures("fixtures/infer", ".npz");
    for path in gaussians.iter().filter(|path| path.to_string_lossy().contains("gaussian_")) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let expected: Array3<f32> = NpzReader::new(File::open(path).unwrap()).unwrap().by_name("g").unwrap();
        let (sigma, peak) = (stated(name, "s").unwrap_or(1.0 / 8.0), stated(name, "vf").unwrap() as f32);
        let (z, y, x) = expected.dim();
        let [pz, py, px] = [z, y, x].map(|extent| importance(extent, sigma));
        for ((k, j, i), expected) in expected.indexed_iter() {
            let ours = peak * pz[k] * py[j] * px[i];
            assert!((ours - expected).abs() < 1e-4 * peak, "{name} at {:?}: {ours} for {expected}", (k, j, i));
        }
    }
}

/// The reference adds up in half precision: 11 bits, and fewer of products below 6e-5. Where the weights, which it scales
/// by 10, are smaller than this, near the corners of the image, its logits are rounded away.
const SMALLEST_WEIGHT: f32 = 0.002;

/// The sum of the windows' weights along each axis.
fn total_weights(image: [usize; 3], sliding: &SlidingWindow) -> [Vec<f32>; 3] {
    let steps = window_steps(image, sliding.window, sliding.step);
    std::array::from_fn(|axis| {
        let profile = sliding.blend.profile(sliding.window[axis]);
        let mut total = vec![0.0; image[axis]];
        for &first in &steps[axis] {
            total[first..].iter_mut().zip(&profile).for_each(|(total, weight)| *total += weight);
        }
        total
    })
}

#[test]
fn sliding_window_logits_agree() {
    let windows = common::fixtures("fixtures/infer", ".npz");
    for path in windows.iter().filter(|path| path.to_string_lossy().contains("sliding_")) {
        let name = path.file_stem().unwrap().to_str().unwrap().strip_prefix("sliding_").unwrap();
        let folder = path.parent().unwrap().with_file_name("net");
        let mut trained = Fixture::open(&folder.join(format!("{name}.npz")));
        let device = Default::default();
        let fresh = UNet::<Cpu>::new(trained.spec.clone(), 0, &device);
        let specs: Vec<_> = fresh.parameters().iter().map(|parameter| parameter.spec.clone()).collect();
        let weights: Vec<TensorState> = trained.state("w10/", &specs).into_values().collect();
        let network = UNet::<Cpu>::with_state(trained.spec.clone(), &weights, &device).unwrap().valid();

        let mut npz = NpzReader::new(File::open(path).unwrap()).unwrap();
        let image: Array4<f32> = npz.by_name("x").unwrap();
        let tile: Array4<f32> = npz.by_name("single_tile_in").unwrap();
        let (_, z, y, x) = tile.dim();
        for (mirror_axes, mirror) in [(vec![], 0), (vec![0, 1, 2], 1)] {
            for (blend, gaussian) in [(Blend::Constant, 0), (Blend::Gaussian, 1)] {
                let sliding = SlidingWindow { window: [z, y, x], step: 0.5, blend, mirror_axes: mirror_axes.clone() };
                let ours = sliding.logits(&network, image.view(), &device);
                let key = format!("logits_mir{mirror}_gau{gaussian}");
                let expected: Array4<f32> = npz.by_name(&key).unwrap();
                let largest = expected.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
                assert_eq!(ours.dim(), expected.dim());
                let (_, iz, iy, ix) = image.dim();
                let weights = total_weights([iz, iy, ix], &sliding);
                let mut compared = 0;
                for (((_, k, j, i), ours), expected) in ours.indexed_iter().zip(&expected) {
                    if 10.0 * weights[0][k] * weights[1][j] * weights[2][i] < SMALLEST_WEIGHT {
                        continue;
                    }
                    compared += 1;
                    assert!((ours - expected).abs() < 4e-3 * largest, "{key}: {ours} for {expected}");
                }
                assert!(compared > ours.len() / 2, "{key}: only {compared} of {} compared", ours.len());
            }
        }
    }
}
