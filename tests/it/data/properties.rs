//! Property tests: invariants for random images, sets of cases and numbers of ranks.

use std::collections::BTreeSet;
use std::sync::Arc;

use ndarray::{Array3, Array4, Axis};
use nnunet_dist::bench::GeneratedStore;
use nnunet_dist::image::{
    Geometry, LabelMap, Resampling, Volume, bounding_box, compute_new_shape, nonzero_mask, read_labels, read_volume,
    resample_data, resample_labels, write_labels, write_volume,
};
use nnunet_dist::loader::{Oversampling, Sampler, SamplerOptions, Shard};
use nnunet_dist::rng::Purpose;
use nnunet_dist::store::CaseStore;
use proptest::prelude::*;

/// A rotation by Euler angles, with any axes mirrored: any direction that a scanner may give.
fn direction([a, b, c]: [f64; 3], mirrored: [bool; 3]) -> [[f64; 3]; 3] {
    let ((sa, ca), (sb, cb), (sc, cc)) = (a.sin_cos(), b.sin_cos(), c.sin_cos());
    let mut rows = [
        [ca * cb, ca * sb * sc - sa * cc, ca * sb * cc + sa * sc],
        [sa * cb, sa * sb * sc + ca * cc, sa * sb * cc - ca * sc],
        [-sb, cb * sc, cb * cc],
    ];
    for row in &mut rows {
        for (value, is_mirrored) in row.iter_mut().zip(mirrored) {
            *value *= if is_mirrored { -1.0 } else { 1.0 };
        }
    }
    rows
}

fn geometries() -> impl Strategy<Value = Geometry> {
    let spacing = prop::array::uniform3(0.1..8.0);
    let origin = prop::array::uniform3(-500.0..500.0);
    let angles = prop_oneof![
        // Parallel to the world's axes, as in most images, or arbitrary.
        prop::array::uniform3((-2..=2i32).prop_map(|quarters| f64::from(quarters) * std::f64::consts::FRAC_PI_2)),
        prop::array::uniform3(-3.0..3.0),
    ];
    (spacing, origin, angles, prop::array::uniform3(any::<bool>())).prop_map(|(spacing, origin, angles, mirrored)| {
        Geometry { spacing, origin, direction: direction(angles, mirrored), ..Geometry::default() }
    })
}

fn shapes(largest: usize) -> impl Strategy<Value = [usize; 3]> {
    prop::array::uniform3(1..=largest)
}

/// Reproducible noise.
fn value(seed: u64, at: (usize, usize, usize, usize)) -> f32 {
    let number = (at.0 * 7919 + at.1 * 104_729 + at.2 * 1_299_709 + at.3 * 15_485_863) as u64 + seed;
    ((number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 24) as f32 - 0.5) * 2000.0
}

/// Equal up to single precision, which some file headers have.
fn assert_same_place(one: &Geometry, other: &Geometry) -> Result<(), TestCaseError> {
    let close = |one: f64, other: f64, tolerance: f64| (one - other).abs() <= tolerance;
    let pairs = |tolerance: f64, one: &[f64], other: &[f64]| {
        one.iter().zip(other).all(|(one, other)| close(*one, *other, tolerance))
    };
    prop_assert!(pairs(1e-4, &one.spacing, &other.spacing), "{one:?}\n{other:?}");
    prop_assert!(pairs(1e-3, &one.origin, &other.origin), "{one:?}\n{other:?}");
    prop_assert!(pairs(1e-5, one.direction.as_flattened(), other.direction.as_flattened()), "{one:?}\n{other:?}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn images_come_back_from_a_file_as_they_were(
        geometry in geometries(), [z, y, x] in shapes(7), seed in any::<u32>(),
        format in prop::sample::select(vec![".nii", ".nii.gz", ".mha", ".nrrd"]),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let data = Array4::from_shape_fn((1, z, y, x), |at| value(u64::from(seed), at));
        let volume = Volume { data, geometry };
        let path = folder.path().join(format!("image{format}"));
        write_volume(&path, &volume).unwrap();
        let read = read_volume(&path).unwrap();
        prop_assert_eq!(&read.data, &volume.data);
        assert_same_place(&read.geometry, &volume.geometry)?;

        let data = volume.data.index_axis(Axis(0), 0).mapv(|value| (value.abs() % 5.0) as i16);
        let labels = LabelMap { data, geometry: volume.geometry.clone() };
        let path = folder.path().join(format!("labels{format}"));
        write_labels(&path, &labels).unwrap();
        let read = read_labels(&path).unwrap();
        prop_assert_eq!(&read.data, &labels.data);
        assert_same_place(&read.geometry, &labels.geometry)?;
    }

    #[test]
    fn the_box_of_what_is_not_zero_holds_all_of_it_and_is_tight(
        [z, y, x] in shapes(9), points in prop::collection::vec(prop::array::uniform3(0.0..1.0f64), 0..6),
    ) {
        let mut image = Array4::<f32>::zeros((1, z, y, x));
        let at = |part: f64, extent: usize| ((part * extent as f64) as usize).min(extent - 1);
        let points: Vec<[usize; 3]> = points.iter().map(|[k, j, i]| [at(*k, z), at(*j, y), at(*i, x)]).collect();
        for [k, j, i] in &points {
            image[[0, *k, *j, *i]] = 1.0;
        }
        let found = bounding_box(&nonzero_mask(image.view()));
        for axis in 0..3 {
            let expected = match points.iter().map(|point| point[axis]).min() {
                Some(low) => [low, points.iter().map(|point| point[axis]).max().unwrap() + 1],
                None => [0, [z, y, x][axis]],
            };
            prop_assert_eq!(found[axis], expected);
        }
    }

    #[test]
    fn resampling_there_and_back_keeps_smooth_images_and_large_labels(
        [z, y, x] in prop::array::uniform3(8..16usize), factors in prop::array::uniform3(0.5..0.99f64),
    ) {
        // To smaller voxels, so that no information is lost.
        let (spacing, finer) = ([1.0; 3], factors);
        let smooth = |k: usize, j: usize, i: usize| {
            let part = |at: usize, extent: usize| at as f64 / extent as f64;
            ((part(k, z) * 2.0).sin() + (part(j, y) * 3.0).cos() + part(i, x)) as f32
        };
        let image = Array4::from_shape_fn((1, z, y, x), |(_, k, j, i)| smooth(k, j, i));
        let resampling = Resampling { order: 3, order_z: 0, force_separate_z: Some(false) };
        let fine = compute_new_shape([z, y, x], spacing, finer);
        let there = resample_data(image.view(), fine, spacing, finer, &resampling);
        prop_assert_eq!(there.dim(), (1, fine[0], fine[1], fine[2]));
        let back = resample_data(there.view(), [z, y, x], finer, spacing, &resampling);
        let worst = back.iter().zip(&image).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
        prop_assert!(worst < 0.05, "{worst}");
        let (low, high) = image.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        prop_assert!(there.iter().all(|value| (low - 0.1..=high + 0.1).contains(value)));

        let labels = Array3::from_shape_fn((z, y, x), |(k, _, _)| i16::from(k >= z / 2));
        let resampling = Resampling { order: 1, order_z: 0, force_separate_z: Some(false) };
        let there = resample_labels(labels.view(), fine, spacing, finer, &resampling);
        prop_assert!(there.iter().all(|label| *label == 0 || *label == 1), "no label that was not there");
        let back = resample_labels(there.view(), [z, y, x], finer, spacing, &resampling);
        let differ = back.iter().zip(&labels).filter(|(one, other)| one != other).count();
        prop_assert!(differ <= y * x, "{differ} of {}", labels.len());
    }
}

fn sampler(store: &GeneratedStore, batch: usize, change: impl FnOnce(&mut SamplerOptions)) -> Sampler {
    let mut options = SamplerOptions {
        seed: 1,
        purpose: Purpose::TrainSample,
        patch_size: [8; 3],
        final_patch_size: [8; 3],
        global_batch_size: batch,
        oversample_foreground: 0.33,
        oversampling: Oversampling::Deterministic,
        shard: Shard::Random,
    };
    change(&mut options);
    let cases = store.store.case_ids().to_vec();
    let store: Arc<dyn CaseStore> = store.store.clone();
    Sampler::new(store, cases, options).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_case_is_seen_and_the_share_of_foreground_is_what_was_asked_for(
        cases in 1..12usize, batch in 1..9usize, seed in any::<u64>(), share in 0.0..1.0f64,
    ) {
        let store = GeneratedStore::new(cases, 1, [10, 10, 10]).unwrap();
        let draw = |sampler: &Sampler, count: usize| -> Vec<_> {
            (0..count as u64).map(|index| sampler.draw(0, index).unwrap()).collect()
        };
        // With partitioned cases, each position of the batch goes through all of its cases before any is repeated.
        let dealt = sampler(&store, batch, |options| (options.seed, options.shard) = (seed, Shard::Epoch));
        let turns = cases.div_ceil(batch);
        let seen: BTreeSet<String> = draw(&dealt, batch * turns).into_iter().map(|sample| sample.case).collect();
        prop_assert_eq!(seen.len(), cases);

        // The last ones of each batch, by nnU-Net's rounding.
        let exact = sampler(&store, batch, |options| (options.seed, options.oversample_foreground) = (seed, share));
        let forced = |index: usize| index % batch >= (batch as f64 * (1.0 - share)).round_ties_even() as usize;
        for (index, sample) in draw(&exact, batch * 3).into_iter().enumerate() {
            prop_assert_eq!(sample.class.is_some(), forced(index), "sample {}", index);
        }

        let chance = sampler(&store, batch, |options| {
            (options.seed, options.oversample_foreground) = (seed, share);
            options.oversampling = Oversampling::Probabilistic;
        });
        const DRAWS: usize = 2000;
        let found = draw(&chance, DRAWS).iter().filter(|sample| sample.class.is_some()).count() as f64 / DRAWS as f64;
        // Five standard deviations: once in a million.
        let deviation = 5.0 * (share * (1.0 - share) / DRAWS as f64).sqrt();
        prop_assert!((found - share).abs() <= deviation + 1e-9, "{found} instead of {share}");
    }
}
