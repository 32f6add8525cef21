//! Each transform's effect on a patch: geometry, distribution of its parameters, and the voxels it must not change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array3, Array4, Axis};
use nnunet_dist::augment::AugmentationPreset;
use nnunet_dist::augment::{
    AdditiveBrightness, BlankRectangle, BlurWidths, BrightnessContrast, BrightnessGradient, Contrast, Gamma,
    GaussianBlur, GaussianNoise, LocalGamma, LowResolution, MaskOutside, MedianFilter, Mirror,
    MultiplicativeBrightness, Pipeline, Rot90, Sharpen, Spatial, TransposeAxes, centre_crop,
};
use nnunet_dist::rng::{Purpose, Stream, stream};
use nnunet_dist::store::Patch;

const SHAPE: [usize; 3] = [6, 10, 8];

fn rng(index: u64) -> Stream {
    stream(11, Purpose::Augment, 0, index)
}

/// Two channels of smooth texture, with labels that follow from the voxel's index.
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

/// Asserts that the draws cover `lo..hi` and have the given mean.
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
    // Channel 0 and the labels hold a ball; the slope of channel 1 gives the scale.
    let spatial = Spatial::nvidia([24, 24, 24]);
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
    assert!((drawn - 0.15).abs() < 0.035, "scaled {drawn} of the samples");
    assert_spread(&scales, 0.7, 1.0, 0.85);
}

#[test]
fn in_plane_patches_keep_their_slices_apart() {
    // A constant per slice survives any rotation and scaling in the plane, away from the padding.
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
            // Both channels have the same strength: they agree within the standard error of a deviation from 6400
            // voxels.
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

const CONTRAST: Contrast = Contrast { factor: 0.75..1.25, per_channel: 1.0, keep_range: true };

#[test]
fn contrast_keeps_the_range_and_the_mean() {
    for index in 0..200 {
        let mut patch = textured(SHAPE);
        let before = patch.clone();
        CONTRAST.apply(&mut patch, &mut rng(index));
        for (after, before) in patch.data.outer_iter().zip(before.data.outer_iter()) {
            let range = |values: ndarray::ArrayView3<f32>| {
                values.iter().fold((f32::MAX, f32::MIN), |(low, high), &value| (low.min(value), high.max(value)))
            };
            let ((low, high), (low_before, high_before)) = (range(after), range(before));
            assert!(low >= low_before && high <= high_before);
            let gain = std(after) / std(before);
            assert!((0.74..1.26).contains(&gain) && gain != 1.0, "{gain}");
            // Weaker contrast clips nothing, so the mean does not change.
            assert!(gain > 1.0 || (mean(after) - mean(before)).abs() < 1e-4);
        }
    }
    let mut flat = constant(2.0);
    CONTRAST.apply(&mut flat, &mut rng(0));
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
    let blur = GaussianBlur { sigma: 0.5..1.0, per_channel: 0.5, widths: BlurWidths::PerAxis };
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
fn low_resolution_loses_detail_but_keeps_the_slices_apart() {
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
    // Half of 1200, minus the few whose scale rounds to the full size.
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
fn rot90_and_transpose_permute_data_and_labels_alike() {
    let original = textured([5, 7, 7]);
    let (turn, exchange) = (Rot90 { axes: vec![1, 2] }, TransposeAxes { axes: vec![1, 2] });
    let mut seen = BTreeMap::<Vec<i16>, usize>::new();
    for index in 0..800 {
        let mut patch = original.clone();
        turn.apply(&mut patch, &mut rng(index));
        for ((z, y, x), label) in patch.labels.indexed_iter() {
            let (from_y, from_x) = (*label as usize / 7 % 7, *label as usize % 7);
            assert_eq!(*label as usize / 49, z, "a slice stays where it is");
            assert_eq!(patch.data[[1, z, y, x]], original.data[[1, z, from_y, from_x]]);
        }
        *seen.entry(patch.labels.iter().take(8).copied().collect()).or_default() += 1;
    }
    // 200 of each, standard deviation 12.
    assert!(seen.len() == 4 && seen.values().all(|&count| (140..260).contains(&count)), "{seen:?}");
    let exchanged = (0..400).filter(|&index| {
        let mut patch = original.clone();
        exchange.apply(&mut patch, &mut rng(index));
        let transposed = original.labels.view().permuted_axes([0, 2, 1]);
        assert!(patch.labels == original.labels || patch.labels == transposed);
        patch.labels == transposed
    });
    let exchanged = exchanged.count();
    assert!((150..250).contains(&exchanged), "{exchanged} of 400");
}

#[test]
fn brightness_is_added_to_half_of_the_channels() {
    let mut draws = Vec::new();
    for index in 0..2000 {
        let mut patch = constant(2.0);
        AdditiveBrightness { std: 0.5, per_channel: 0.5 }.apply(&mut patch, &mut rng(index));
        for channel in patch.data.outer_iter().filter(|channel| channel[[0, 0, 0]] != 2.0) {
            assert!(channel.iter().all(|value| *value == channel[[0, 0, 0]]));
            draws.push(f64::from(channel[[0, 0, 0]]) - 2.0);
        }
    }
    assert!((1880..2120).contains(&draws.len()), "{} of 4000", draws.len());
    let mean = draws.iter().sum::<f64>() / draws.len() as f64;
    let std = (draws.iter().map(|draw| draw * draw).sum::<f64>() / draws.len() as f64).sqrt();
    assert!(mean.abs() < 0.04 && (std - 0.5).abs() < 0.03, "{mean} and {std}");
}

#[test]
fn brightness_and_contrast_are_one_line_for_all_channels() {
    let (mut slopes, mut brightness) = (Vec::new(), Vec::new());
    for index in 0..1500 {
        let before = textured(SHAPE);
        let mut patch = before.clone();
        BrightnessContrast { brightness: 0.7..1.3, contrast: 0.65..1.5 }.apply(&mut patch, &mut rng(index));
        let [[x0, x1], [y0, y1]] = [&before, &patch].map(|p| [p.data[[0, 1, 2, 3]], p.data[[1, 4, 0, 7]]]);
        let slope = (y1 - y0) / (x1 - x0);
        let at_centre = y0 + slope * (0.5 - x0);
        let (x2, y2) = (before.data[[1, 5, 9, 0]], patch.data[[1, 5, 9, 0]]);
        assert!((y0 + slope * (x2 - x0) - y2).abs() < 1e-4, "one line for all voxels");
        brightness.push(f64::from(2.0 * at_centre));
        slopes.push(f64::from(slope / (2.0 * at_centre)));
    }
    assert_spread(&brightness, 0.7, 1.3, 1.0);
    assert_spread(&slopes, 0.65, 1.5, 1.075);
}

#[test]
fn strong_contrast_may_leave_the_range_of_a_channel() {
    let contrast = Contrast { factor: 0.5..2.0, per_channel: 0.5, keep_range: false };
    let mut gains = Vec::new();
    for index in 0..1500 {
        let before = textured(SHAPE);
        let mut patch = before.clone();
        contrast.apply(&mut patch, &mut rng(index));
        for (after, before) in patch.data.outer_iter().zip(before.data.outer_iter()) {
            if after != before {
                gains.push(std(after) / std(before));
                assert!((mean(after) - mean(before)).abs() < 1e-4);
            }
        }
    }
    assert!((1370..1630).contains(&gains.len()), "{} of 3000", gains.len());
    // Below 1 half of the time; uniform on either side of 1.
    assert_spread(&gains, 0.5, 2.0, 1.125);
}

#[test]
fn a_median_filter_removes_specks_and_keeps_edges() {
    let step = Array4::from_shape_fn((1, 12, 12, 12), |(_, _, _, x)| if x < 6 { 0.0 } else { 1.0 });
    let mut changed = 0;
    for index in 0..200 {
        let mut patch = Patch { data: step.clone(), labels: Array3::zeros((12, 12, 12)), previous: None };
        patch.data[[0, 6, 6, 2]] = 9.0;
        MedianFilter { size: 3..4, per_channel: 0.5 }.apply(&mut patch, &mut rng(index));
        if patch.data[[0, 6, 6, 2]] != 9.0 {
            changed += 1;
            assert_eq!(patch.data, step);
        }
    }
    assert!((70..130).contains(&changed), "{changed} of 200");
}

#[test]
fn blank_rectangles_have_the_sizes_and_number_of_the_reference() {
    let (mut counts, mut sizes) = (BTreeMap::<usize, usize>::new(), BTreeMap::<usize, usize>::new());
    let size = [60, 60, 60];
    for index in 0..400 {
        let mut patch = textured(size);
        let before = patch.clone();
        let one = BlankRectangle { count: 1..2, per_channel: 1.0, ..BlankRectangle::for_patch(size) };
        one.apply(&mut patch, &mut rng(index));
        let changed: Vec<_> =
            patch.data.indexed_iter().filter(|(at, value)| at.0 == 0 && **value != before.data[*at]).collect();
        let extent = |of: fn(&(usize, usize, usize, usize)) -> usize| {
            let places = || changed.iter().map(|(at, _)| of(at));
            places().max().unwrap() - places().min().unwrap() + 1
        };
        let extents = [extent(|at| at.1), extent(|at| at.2), extent(|at| at.3)];
        assert!(changed.len() <= extents.iter().product());
        assert!(changed.iter().all(|(_, value)| **value == *changed[0].1), "a box has one value");
        extents.into_iter().for_each(|extent| *sizes.entry(extent).or_default() += 1);
        // Small boxes rarely overlap, so they can be counted.
        let mut speckled = textured(size);
        let dots = BlankRectangle { count: 1..5, size: [2..3, 2..3, 2..3], per_channel: 1.0 };
        dots.apply(&mut speckled, &mut rng(index));
        let dotted =
            speckled.data.indexed_iter().filter(|(at, value)| at.0 == 0 && **value != before.data[*at]).count();
        *counts.entry(dotted.div_ceil(8)).or_default() += 1;
    }
    let range = (*sizes.keys().next().unwrap(), *sizes.keys().last().unwrap());
    assert_eq!(range, (6, 19), "a tenth to below a third");
    assert!(counts.keys().eq(&[1, 2, 3, 4]) && counts.values().all(|count| (70..130).contains(count)), "{counts:?}");
}

#[test]
fn a_brightness_gradient_adds_up_to_its_height_up_or_down() {
    let gradient = BrightnessGradient { height: 1.0..5.0, per_channel: 1.0 };
    let (mut heights, mut up) = (Vec::new(), 0);
    for index in 0..1000 {
        let mut patch = constant(2.0);
        gradient.apply(&mut patch, &mut rng(index));
        let added = patch.data.index_axis(Axis(0), 1).mapv(|value| f64::from(value) - 2.0);
        let (low, high) =
            added.iter().fold((f64::MAX, f64::MIN), |(low, high), &value| (low.min(value), high.max(value)));
        assert!(low.abs().min(high.abs()) < 1e-5, "it begins at nothing: {low} and {high}");
        heights.push(low.abs().max(high.abs()));
        up += usize::from(high > -low);
    }
    assert_spread(&heights, 1.0, 5.0, 3.0);
    assert!((440..560).contains(&up), "{up} of 1000");
}

#[test]
fn local_gamma_keeps_the_range_and_is_uneven() {
    let gamma = LocalGamma { exponents: [0.01..0.8, 1.5..4.0], per_channel: 1.0 };
    let (mut brighter, mut uneven) = (0, 0);
    for index in 0..400 {
        let mut patch = textured([16, 16, 16]);
        let before = patch.clone();
        gamma.apply(&mut patch, &mut rng(index));
        let (after, before) = (patch.data.index_axis(Axis(0), 0), before.data.index_axis(Axis(0), 0));
        let range = |values: ndarray::ArrayView3<f32>| {
            values.iter().fold((f32::MAX, f32::MIN), |(low, high), &value| (low.min(value), high.max(value)))
        };
        let ((low, high), (low_before, high_before)) = (range(after), range(before));
        assert!(low > low_before - 1e-4 && high < high_before + 1e-4);
        let change: Vec<f32> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        brighter += usize::from(change.iter().sum::<f32>() > 0.0);
        assert!(change.iter().all(|c| *c > -1e-4) || change.iter().all(|c| *c < 1e-4), "all brighter or all darker");
        let half = |range: std::ops::Range<usize>| change[range].iter().map(|c| c.abs()).sum::<f32>();
        let (first, second) = (half(0..2048), half(2048..4096));
        uneven += usize::from(first > 1.5 * second || second > 1.5 * first);
    }
    assert!((160..240).contains(&brighter), "{brighter} of 400");
    assert!(uneven > 100, "{uneven} of 400");
}

#[test]
fn sharpening_takes_the_strength_of_the_documentation() {
    let mut strengths = Vec::new();
    for index in 0..1500 {
        let mut patch = Patch { data: Array4::zeros((2, 5, 5, 5)), labels: Array3::zeros((5, 5, 5)), previous: None };
        patch.data.slice_mut(ndarray::s![.., 2, 2, 2]).fill(1.0);
        Sharpen { strength: 0.1..1.0, per_channel: 0.5 }.apply(&mut patch, &mut rng(index));
        let raised = patch.data.outer_iter().map(|channel| f64::from(channel[[2, 2, 2]] - 1.0) / 6.0);
        strengths.extend(raised.filter(|strength| *strength > 0.0));
    }
    assert!((1370..1630).contains(&strengths.len()), "{} of 3000", strengths.len());
    assert_spread(&strengths, 0.1, 1.0, 0.55);
}

#[test]
fn masking_blanks_the_outside_of_masked_channels_only() {
    let mut patch = constant(2.0);
    patch.labels[[1, 2, 3]] = -1;
    MaskOutside { channels: vec![true, false] }.apply(&mut patch, &mut rng(0));
    assert_eq!((patch.data[[0, 1, 2, 3]], patch.data[[1, 1, 2, 3]], patch.data[[0, 1, 2, 2]]), (0.0, 2.0, 2.0));
}

#[test]
fn a_transform_runs_with_its_probability() {
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
    let steps = |preset, shape| {
        let pipeline = Pipeline::preset(preset, shape, &[0, 1, 2], &[true]);
        pipeline.transforms().collect::<Vec<_>>()
    };
    let nvidia = [("mirror", 1.0), ("noise", 0.15), ("blur", 0.15), ("brightness and contrast", 0.15)];
    assert_eq!(steps(AugmentationPreset::Nvidia, SHAPE), nvidia);
    assert_eq!(steps(AugmentationPreset::None, SHAPE), []);
    let strong = [
        ("quarter turn", 0.5),
        ("exchanged axes", 0.5),
        ("median filter or blur", 0.2),
        ("noise", 0.1),
        ("brightness", 0.1),
        ("contrast", 0.2),
        ("low resolution", 0.15),
        ("gamma inverted", 0.1),
        ("gamma inverted again", 0.1),
        ("mirror", 1.0),
        ("blank rectangles", 0.4),
        ("brightness gradient", 0.3),
        ("local gamma", 0.3),
        ("sharpening", 0.2),
        ("mask outside", 1.0),
    ];
    assert_eq!(steps(AugmentationPreset::Strong, [8, 16, 16]), strong);
    assert_eq!(steps(AugmentationPreset::Strong, SHAPE), strong[2..]);
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
    assert_eq!(steps(AugmentationPreset::Nnunet, SHAPE), full);
}

#[test]
fn the_whole_pipeline_is_reproducible_and_leaves_finite_values() {
    let presets = [AugmentationPreset::Nnunet, AugmentationPreset::Nvidia, AugmentationPreset::Strong];
    for (preset, size) in presets.into_iter().flat_map(|p| [SHAPE, [1, 24, 20], [2, 24, 24]].map(|size| (p, size))) {
        let pipeline = Pipeline::preset(preset, size, &[1, 2], &[true, false]);
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
