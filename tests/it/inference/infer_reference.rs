//! Compares importance maps and sliding-window logits with nnU-Net v2's (`fixtures/infer`).

use std::fs::File;
use std::path::Path;

use burn::backend::Flex;
use ndarray::{Array3, Array4, Array5, ArrayView4, Axis, s};
use ndarray_npy::NpzReader;
use nnunet_dist::infer::{Blend, SlidingWindow, importance, window_positions};
use nnunet_dist::model::{TensorState, UNet};

use crate::common;
use crate::network::Fixture;

/// The number after `key` in a name such as `gaussian_20_24_16_s0.25_vf1`.
fn stated(name: &str, key: &str) -> Option<f64> {
    name.split('_').find_map(|part| part.strip_prefix(key)?.parse().ok())
}

#[test]
fn importance_maps_agree() {
    let paths = common::fixtures("fixtures/infer", ".npz");
    let gaussians: Vec<_> = paths.iter().filter(|path| path.to_string_lossy().contains("gaussian_")).collect();
    assert_eq!(gaussians.is_empty(), paths.is_empty(), "no gaussian_*.npz");
    for path in gaussians {
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

/// The reference multiplies by weights and accumulates in half precision. Its weights, which are scaled by 10, lose
/// precision below this value, the smallest normal number: near the corners and edges of the image its logits are
/// rounding errors.
const SMALLEST_WEIGHT: f32 = 6.2e-5;

/// The sum of the windows' weights along each axis.
fn total_weights(image: [usize; 3], sliding: &SlidingWindow) -> [Vec<f32>; 3] {
    let steps = window_positions(image, sliding.window, sliding.step);
    std::array::from_fn(|axis| {
        let profile = sliding.blend.profile(sliding.window[axis]);
        let mut total = vec![0.0; image[axis]];
        for &first in &steps[axis] {
            total[first..].iter_mut().zip(&profile).for_each(|(total, weight)| *total += weight);
        }
        total
    })
}

/// A trained network, and nnU-Net's logits of it for an image.
struct Reference {
    network: UNet<Flex>,
    npz: NpzReader<File>,
    window: [usize; 3],
}

impl Reference {
    /// Opens `infer/sliding_NAME.npz` with the weights that `net/NAME.npz` has after ten steps.
    fn open(path: &Path) -> Self {
        let name = path.file_stem().unwrap().to_str().unwrap().strip_prefix("sliding_").unwrap();
        let folder = path.parent().unwrap().with_file_name("net");
        let mut trained = Fixture::open(&folder.join(format!("{name}.npz")));
        let device = Default::default();
        let fresh = UNet::<Flex>::new(trained.spec.clone(), 0, &device);
        let specs: Vec<_> = fresh.parameters().iter().map(|parameter| parameter.spec.clone()).collect();
        let weights: Vec<TensorState> = trained.state("w10/", &specs).into_values().collect();
        let network = UNet::with_state(trained.spec.clone(), &weights, &device).unwrap();
        let mut npz = NpzReader::new(File::open(path).unwrap()).unwrap();
        let tile: Array4<f32> = npz.by_name("single_tile_in").unwrap();
        let (_, z, y, x) = tile.dim();
        Self { network, npz, window: [z, y, x] }
    }

    fn sliding(&self, blend: Blend, mirror_axes: &[usize]) -> SlidingWindow {
        SlidingWindow { window: self.window, step: 0.5, blend, mirror_axes: mirror_axes.to_vec() }
    }

    fn logits(&self, sliding: &SlidingWindow, image: ArrayView4<f32>) -> Array4<f32> {
        sliding.logits(&self.network, image, &Default::default())
    }
}

/// Calls `check` for every `sliding_*.npz`.
fn for_each_reference(check: impl Fn(Reference)) {
    let paths = common::fixtures("fixtures/infer", ".npz");
    let references: Vec<_> = paths.iter().filter(|path| path.to_string_lossy().contains("sliding_")).collect();
    assert_eq!(references.is_empty(), paths.is_empty(), "no sliding_*.npz");
    references.iter().for_each(|path| check(Reference::open(path)));
}

fn largest(logits: impl IntoIterator<Item = f32>) -> f32 {
    logits.into_iter().fold(0f32, |largest, logit| largest.max(logit.abs()))
}

/// A single window without blending equals the network's output, in full precision.
#[test]
fn one_window_is_the_network() {
    for_each_reference(|mut reference| {
        let tile: Array4<f32> = reference.npz.by_name("single_tile_in").unwrap();
        let expected: Array5<f32> = reference.npz.by_name("single_tile_logits").unwrap();
        let expected = expected.index_axis(Axis(0), 0);
        // Blending a single window changes nothing either.
        for blend in [Blend::Constant, Blend::Gaussian] {
            let ours = reference.logits(&reference.sliding(blend, &[]), tile.view());
            assert_eq!(ours.dim(), expected.dim());
            let error = largest(&ours - &expected);
            assert!(error < 1e-4 * largest(expected.iter().copied()), "{blend:?}: {error}");
        }
    });
}

#[test]
fn sliding_window_logits_agree() {
    for_each_reference(|mut reference| {
        let image: Array4<f32> = reference.npz.by_name("x").unwrap();
        let (_, z, y, x) = image.dim();
        for (mirror_axes, mirror) in [(&[][..], 0), (&[0, 1, 2], 1)] {
            for (blend, gaussian) in [(Blend::Constant, 0), (Blend::Gaussian, 1)] {
                let key = format!("logits_mir{mirror}_gau{gaussian}");
                let expected: Array4<f32> = reference.npz.by_name(&key).unwrap();
                let sliding = reference.sliding(blend, mirror_axes);
                let ours = reference.logits(&sliding, image.view());
                assert_eq!(ours.dim(), expected.dim());
                let weights = total_weights([z, y, x], &sliding);
                let tolerance = 2e-3 * largest(expected.iter().copied());
                let mut compared = 0;
                for (((_, k, j, i), ours), expected) in ours.indexed_iter().zip(&expected) {
                    if 10.0 * weights[0][k] * weights[1][j] * weights[2][i] < SMALLEST_WEIGHT {
                        continue;
                    }
                    compared += 1;
                    assert!((ours - expected).abs() < tolerance, "{key}: {ours} for {expected}");
                }
                let wanted = if blend == Blend::Constant { 1.0 } else { 0.9 };
                assert!(compared as f64 >= wanted * ours.len() as f64, "{key}: {compared} of {} compared", ours.len());
            }
        }
    });
}

/// This includes the voxels at the corners, where the reference has no precision.
#[test]
fn blending_changes_nothing_in_voxels_of_a_single_window() {
    for_each_reference(|mut reference| {
        let image: Array4<f32> = reference.npz.by_name("x").unwrap();
        let (_, z, y, x) = image.dim();
        let [constant, gaussian] = [Blend::Constant, Blend::Gaussian].map(|blend| reference.sliding(blend, &[]));
        let windows = total_weights([z, y, x], &constant);
        let [expected, ours] = [&constant, &gaussian].map(|sliding| reference.logits(sliding, image.view()));
        let tolerance = 1e-4 * largest(expected.iter().copied());
        for (((_, k, j, i), ours), expected) in ours.indexed_iter().zip(&expected) {
            if windows[0][k] * windows[1][j] * windows[2][i] == 1.0 {
                assert!((ours - expected).abs() < tolerance, "at {:?}: {ours} for {expected}", (k, j, i));
            }
        }
    });
}

/// nnU-Net pads with zeros on both sides, with one more at the end if the difference is odd.
#[test]
fn an_image_smaller_than_the_window_lies_in_its_middle() {
    for_each_reference(|mut reference| {
        let tile: Array4<f32> = reference.npz.by_name("single_tile_in").unwrap();
        let [z, y, x] = reference.window;
        let (inner, sliding) = (s![.., 2..z - 3, 4..y - 4, 1..x - 1], reference.sliding(Blend::Gaussian, &[]));
        let small = tile.slice(inner);
        let mut padded = Array4::zeros(tile.dim());
        padded.slice_mut(inner).assign(&small);
        let expected = reference.logits(&sliding, padded.view());
        assert_eq!(reference.logits(&sliding, small), expected.slice(inner));
    });
}
