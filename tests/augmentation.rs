//! What each transform does to a patch: its geometry, its distribution and what it leaves alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array3, Array4, Axis};
use nnunet_dist::augment::{
    Contrast, Gamma, GaussianBlur, GaussianNoise, LowResolution, MaskOutside, Mirror, MultiplicativeBrightness,
    Pipeline, Spatial, centre_crop,
};
use nnunet_dist::rng::{Purpose, Stream, stream};
use nnunet_dist::store::Patch;

const SHAPE: [usize; 3] = [6, 10, 8];

fn rng(index: u64) -> Stream {
    stream(11, Purpose::Augment, 0, index)
}

/// Two channels of smooth texture; labels by the voxel's number.
fn textured([z, y, x]: [usize; 3]) -> Patch {
    let wave = |c: usize, z: usize, y: usize, x: usize| {
        ((c + 1) as f32 * 0.9 * z as f32).sin() + (0.7 * y as f32).cos() - (0.4 * x as f32).sin() + c as f32
    };
    Patch {
        data: Array4::from_shape_fn((2, z, y, x), |(c, z, y, x)| wave(c, z, y, x)),
        labels: Array3::from_shape_fn((z, y, x), |(i, j, k)| ((i * y + j) * x + k) as i16),
        previous: None,
    }
}

fn constant(value: f32) -> Patch {
    let [z, y, x] = SHAPE;
    Patch { data: Array4::from_elem((2, z, y, x), value), labels: Array3::zeros((z, y, x)), previous: None }
}

fn mean(values: ndarray::ArrayView3<f32>) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64
}

fn std(values: ndarray::ArrayView3<f32>) -> f64 {
    let mean = mean(values);
    (values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

/// Asserts that draws fill `lo..hi` with the given mean.
fn assert_spread(draws: &[f64], lo: f64, hi: f64, expected_mean: f64) {
    let (edge, tolerance) = ((hi - lo) * 0.05, (hi - lo) * 0.03);
    let (low, high) = draws.iter().fold((f64::MAX, f64::MIN), |(low, high), &draw| (low.min(draw), high.max(draw)));
    assert!(low >= lo - tolerance && low < lo + edge, "smallest draw {low} of {lo}..{hi}");
    assert!(high <= hi + tolerance && high > hi - edge, "largest draw {high} of {lo}..{hi}");
    let mean = draws.iter().sum::<f64>() / draws.len() as f64;
    assert!((mean - expected_mean).abs() < tolerance, "mean {mean} instead of {expected_mean}");
}

#[test]
fn centre_crop_takes_the_middle() {
    let read = textured([9, 10, 8]);
    let mut patch = textured([4, 5, 8]);
    centre_crop(&read, &mut patch);
    assert_eq!(patch.labels, read.labels.slice(ndarray::s![2..6, 3..8, ..]));
    assert_eq!(patch.data, read.data.slice(ndarray::s![.., 2..6, 3..8, ..]));
}

#[test]
fn mirroring_permutes_data_and_labels_alike_and_only_along_allowed_axes() {
    let original = textured(SHAPE);
    let mut seen = BTreeMap::<[bool; 3], usize>::new();
    for index in 0..800 {
        let mut patch = original.clone();
        Mirror { axes: vec![0, 2] }.apply(&mut patch, &mut rng(index));
        let flipped = [[false; 3], [true, false, false], [false, false, true], [true, false, true]]
            .into_iter()
            .find(|flips| patch == mirrored(&original, *flips))
            .expect("one of the four allowed mirror images");
        *seen.entry(flipped).or_default() += 1;
    }
    // 200 each, standard deviation 12.
    assert!(seen.len() == 4 && seen.values().all(|&count| (140..260).contains(&count)), "{seen:?}");

    let mut patch = original.clone();
    let index = (0..).find(|&index| {
        patch = original.clone();
        Mirror { axes: vec![1] }.apply(&mut patch, &mut rng(index));
        patch != original
    });
    assert!(index.is_some() && patch == mirrored(&original, [false, true, false]));
}

fn mirrored(patch: &Patch, flips: [bool; 3]) -> Patch {
    let mut data = patch.data.view();
    let mut labels = patch.labels.view();
    for axis in (0..3).filter(|&axis| flips[axis]) {
        data.invert_axis(Axis(axis + 1));
        labels.invert_axis(Axis(axis));
    }
    Patch { data: data.to_owned(), labels: labels.to_owned(), previous: None }
}

#[test]
fn zoom_scales_about_the_centre_in_the_documented_range() {
    // Channel 0 is a ball, as are the labels; the slope of channel 1 tells the scale.
    let spatial = Spatial::zoom([24, 24, 24]);
    let [z, y, x] = spatial.read_patch_size();
    let centre = (z as f64 - 1.0) / 2.0;
    let radius =
        |(z, y, x): (usize, usize, usize)| [z, y, x].iter().map(|&at| (at as f64 - centre).powi(2)).sum::<f64>().sqrt();
    let inside = Array3::from_shape_fn((z, y, x), |at| i16::from(radius(at) < 7.0));
    let data = Array4::from_shape_fn((2, z, y, x), |(channel, z, y, x)| match channel {
        0 => f32::from(inside[[z, y, x]]),
        _ => x as f32,
    });
    let read = Patch { data, labels: inside, previous: None };

    let mut patch = Patch { data: Array4::zeros((2, 24, 24, 24)), labels: Array3::zeros((24, 24, 24)), previous: None };
    let mut scales = Vec::new();
    for index in 0..1500 {
        spatial.apply(&read, &mut patch, &mut rng(index));
        let ball = patch.data.index_axis(Axis(0), 0);
        let disagreeing = patch
            .labels
            .iter()
            .zip(ball)
            .filter(|&(&label, &value)| label >= 0 && (label == 1) != (value > 0.5) && (value - 0.5).abs() > 1e-3);
        assert_eq!(disagreeing.count(), 0, "labels and data were moved differently");
        let scale = f64::from(patch.data[[1, 12, 12, 12]] - patch.data[[1, 12, 12, 11]]);
        let middle = f64::from(patch.data[[1, 12, 12, 12]] + patch.data[[1, 12, 12, 11]]) / 2.0;
        assert!((middle - centre).abs() < 0.51, "the centre moved to {middle}");
        if scale != 1.0 {
            scales.push(scale);
        }
    }
    let drawn = scales.len() as f64 / 1500.0;
    assert!((drawn - 0.2).abs() < 0.035, "scaled {drawn} of the samples");
    assert_spread(&scales, 0.7, 1.4, 1.05);
}

#[test]
fn in_plane_patches_keep_their_slices_apart() {
    // A constant per slice survives any rotation and scaling within the planes, away from the padding.
    for size in [[1, 32, 32], [4, 32, 32]] {
        let spatial = Spatial::nnunet(size);
        let [z, y, x] = spatial.read_patch_size();
        assert_eq!(z, size[0]);
        let read = Patch {
            data: Array4::from_shape_fn((1, z, y, x), |(_, z, _, _)| z as f32 + 1.0),
            labels: Array3::from_shape_fn((z, y, x), |(z, _, _)| z as i16),
            previous: None,
        };
        let mut patch = Patch {
            data: Array4::zeros((1, size[0], 32, 32)),
            labels: Array3::zeros((size[0], 32, 32)),
            previous: None,
        };
        for index in 0..200 {
            spatial.apply(&read, &mut patch, &mut rng(index));
            for slice in 0..size[0] {
                assert!((patch.data[[0, slice, 16, 16]] - (slice as f32 + 1.0)).abs() < 1e-4);
                assert!(patch.labels.index_axis(Axis(0), slice).iter().all(|&l| l == slice as i16 || l == -1));
            }
        }
    }
}

#[test]
fn noise_is_normal_with_a_uniform_strength() {
    let draws: Vec<f64> = (0..1500)
        .map(|index| {
            let mut patch = Patch {
                data: Array4::from_elem((2, 16, 20, 20), 3.0),
                labels: Array3::zeros((16, 20, 20)),
                previous: None,
            };
            GaussianNoise { std: 0.0..0.1 }.apply(&mut patch, &mut rng(index));
            let [first, second] = [0, 1].map(|channel| std(patch.data.index_axis(Axis(0), channel)));
            // One strength for both channels: they agree within the error of a deviation from 6400 voxels.
            assert!((first - second).abs() < 0.06 * first + 1e-6, "{first} and {second}");
            assert_ne!(patch.data[[0, 0, 0, 0]], patch.data[[1, 0, 0, 0]]);
            assert!((mean(patch.data.index_axis(Axis(0), 0)) - 3.0).abs() < 0.06 * first + 1e-6);
            (first + second) / 2.0
        })
        .collect();
    assert_spread(&draws, 0.0, 0.1, 0.05);
}

#[test]
fn brightness_multiplies_each_channel_by_its_own_factor() {
    let mut draws = Vec::new();
    for index in 0..1500 {
        let mut patch = textured(SHAPE);
        let before = patch.clone();
        MultiplicativeBrightness { factor: 0.75..1.25 }.apply(&mut patch, &mut rng(index));
        let factors = [0, 1].map(|channel| patch.data[[channel, 2, 3, 4]] / before.data[[channel, 2, 3, 4]]);
        assert_ne!(factors[0], factors[1]);
        let expected = before.data[[1, 5, 9, 7]] * factors[1];
        assert!((patch.data[[1, 5, 9, 7]] - expected).abs() < 1e-4);
        assert_eq!(patch.labels, before.labels);
        draws.extend(factors.map(f64::from));
    }
    assert_spread(&draws, 0.75, 1.25, 1.0);
}

#[test]
fn contrast_keeps_the_range_and_the_mean() {
    for index in 0..200 {
        let mut patch = textured(SHAPE);
        let before = patch.clone();
        Contrast { factor: 0.75..1.25 }.apply(&mut patch, &mut rng(index));
        for (after, before) in patch.data.outer_iter().zip(before.data.outer_iter()) {
            let range = |values: ndarray::ArrayView3<f32>| {
                values.iter().fold((f32::MAX, f32::MIN), |(low, high), &value| (low.min(value), high.max(value)))
            };
            let ((low, high), (low_before, high_before)) = (range(after), range(before));
            assert!(low >= low_before && high <= high_before);
            let gain = std(after) / std(before);
            assert!((0.74..1.26).contains(&gain) && gain != 1.0, "{gain}");
            // Weaker contrast clips nothing, so the mean stays.
            assert!(gain > 1.0 || (mean(after) - mean(before)).abs() < 1e-4);
        }
    }
    let mut flat = constant(2.0);
    Contrast { factor: 0.75..1.25 }.apply(&mut flat, &mut rng(0));
    assert_eq!(flat, constant(2.0));
}

#[test]
fn gamma_bends_the_curve_monotonically_and_keeps_mean_and_deviation() {
    for inverted in [false, true] {
        let mut bent = 0;
        for index in 0..200 {
            let mut patch = textured(SHAPE);
            let before = patch.clone();
            Gamma { exponent: 0.7..1.5, inverted }.apply(&mut patch, &mut rng(index));
            for (after, before) in patch.data.outer_iter().zip(before.data.outer_iter()) {
                assert!((mean(after) - mean(before)).abs() < 1e-4);
                assert!((std(after) - std(before)).abs() < 1e-4);
                let mut pairs: Vec<_> = before.iter().zip(&after).collect();
                pairs.sort_by(|a, b| a.0.total_cmp(b.0));
                assert!(pairs.windows(2).all(|pair| pair[1].1 - pair[0].1 > -1e-5), "the order of voxels changed");
                bent += usize::from(before.iter().zip(&after).any(|(a, b)| (a - b).abs() > 0.05));
            }
        }
        assert!(bent > 200, "only {bent} of 400 channels changed noticeably");
        let mut flat = constant(2.0);
        Gamma { exponent: 0.7..1.5, inverted }.apply(&mut flat, &mut rng(0));
        assert!(flat.data.iter().all(|value| (value - 2.0).abs() < 1e-6), "a flat image stays flat");
    }
}

#[test]
fn blur_smooths_half_of_the_channels_and_keeps_constants() {
    let blur = GaussianBlur { sigma: 0.5..1.0, per_channel: 0.5 };
    let mut changed = 0;
    for index in 0..600 {
        let mut patch =
            Patch { data: Array4::zeros((2, 13, 13, 13)), labels: Array3::zeros((13, 13, 13)), previous: None };
        patch.data.slice_mut(ndarray::s![.., 6, 6, 6]).fill(1.0);
        blur.apply(&mut patch, &mut rng(index));
        for channel in patch.data.outer_iter().filter(|channel| channel[[6, 6, 6]] != 1.0) {
            changed += 1;
            assert!((channel.sum() - 1.0).abs() < 1e-5, "weight is lost");
            assert!(channel[[6, 6, 6]] > channel[[6, 6, 7]] && channel[[6, 6, 7]] > channel[[6, 6, 8]]);
            assert_eq!(channel[[6, 6, 7]], channel[[6, 6, 5]], "the kernel is lopsided");
        }
    }
    // 600 of 1200, standard deviation 17.
    assert!((530..670).contains(&changed), "{changed}");
    let mut flat = constant(2.0);
    (0..20).for_each(|index| blur.apply(&mut flat, &mut rng(index)));
    assert!(flat.data.iter().all(|value| (value - 2.0).abs() < 1e-5));
}

#[test]
fn low_resolution_loses_detail_but_not_the_slices_it_is_to_keep() {
    let mut noisy = constant(0.0);
    GaussianNoise { std: 1.0..1.0 }.apply(&mut noisy, &mut rng(0));
    let mut changed = 0;
    for index in 0..600 {
        let mut patch = noisy.clone();
        LowResolution { scale: 0.5..1.0, per_channel: 0.5, keep_z: false }.apply(&mut patch, &mut rng(index));
        for (after, before) in patch.data.outer_iter().zip(noisy.data.outer_iter()) {
            changed += usize::from(after != before);
            assert!(std(after) <= std(before) * 1.15);
        }
    }
    // Half of 1200, less those few whose scale rounds to the full size.
    assert!((480..660).contains(&changed), "{changed}");

    let [z, y, x] = SHAPE;
    let slices = Patch {
        data: Array4::from_shape_fn((1, z, y, x), |(_, z, _, _)| z as f32),
        labels: Array3::zeros((z, y, x)),
        previous: None,
    };
    let mut patch = slices.clone();
    let low = LowResolution { scale: 0.5..0.5, per_channel: 1.0, keep_z: true };
    low.apply(&mut patch, &mut rng(0));
    assert_eq!(patch, slices);
    LowResolution { keep_z: false, ..low }.apply(&mut patch, &mut rng(0));
    assert_ne!(patch, slices);
}

#[test]
fn masking_blanks_the_outside_of_masked_channels_only() {
    let mut patch = constant(2.0);
    patch.labels[[1, 2, 3]] = -1;
    MaskOutside { channels: vec![true, false] }.apply(&mut patch, &mut rng(0));
    assert_eq!((patch.data[[0, 1, 2, 3]], patch.data[[1, 1, 2, 3]], patch.data[[0, 1, 2, 2]]), (0.0, 2.0, 2.0));
}

#[test]
fn a_step_runs_as_often_as_its_probability_says() {
    let runs = Arc::new([const { AtomicUsize::new(0) }; 2]);
    let (rare, frequent) = (runs.clone(), runs.clone());
    let pipeline = Pipeline::none(SHAPE)
        .then("rare", 0.1, move |_, _| _ = rare[0].fetch_add(1, Ordering::Relaxed))
        .then("frequent", 0.7, move |_, _| _ = frequent[1].fetch_add(1, Ordering::Relaxed));
    let read = textured(SHAPE);
    let mut patch = constant(0.0);
    for index in 0..4000 {
        pipeline.apply(&read, &mut patch, &mut rng(index));
    }
    assert_eq!(patch, read, "without a spatial transform the patch is a copy");
    let [rare, frequent] = [0, 1].map(|step: usize| runs[step].load(Ordering::Relaxed));
    assert!((330..470).contains(&rare) && (2680..2920).contains(&frequent), "{rare} and {frequent} of 4000");
}

#[test]
fn presets_list_the_transforms_of_the_reference() {
    let basic = [("noise", 0.1), ("blur", 0.2), ("brightness", 0.15), ("contrast", 0.15), ("mirror", 1.0)];
    assert!(Pipeline::nnunet_basic(SHAPE, &[0, 1, 2], &[false]).steps().eq(basic));
    let full = [
        ("noise", 0.1),
        ("blur", 0.2),
        ("brightness", 0.15),
        ("contrast", 0.15),
        ("low resolution", 0.25),
        ("gamma inverted", 0.1),
        ("gamma", 0.3),
        ("mirror", 1.0),
        ("mask outside", 1.0),
    ];
    assert!(Pipeline::nnunet(SHAPE, &[0, 1, 2], &[true]).steps().eq(full));
}

#[test]
fn the_whole_pipeline_is_reproducible_and_leaves_finite_values() {
    for size in [SHAPE, [1, 24, 20], [2, 24, 20]] {
        let pipeline = Pipeline::nnunet(size, &[1, 2], &[true, false]);
        let read = textured(pipeline.read_patch_size());
        let [z, y, x] = size;
        let blank = || Patch { data: Array4::zeros((2, z, y, x)), labels: Array3::zeros((z, y, x)), previous: None };
        for index in 0..100 {
            let (mut first, mut second) = (blank(), textured(size));
            pipeline.apply(&read, &mut first, &mut rng(index));
            pipeline.apply(&read, &mut second, &mut rng(index));
            assert_eq!(first, second, "sample {index} of {size:?} depends on what was in the buffer");
            assert!(first.data.iter().all(|value| value.is_finite()));
        }
    }
}
