//! The patches that a run trains on: the distribution of patches, independence of ranks and threads, and errors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ndarray::{Array3, Array4};
use nnunet_dist::augment::{Pipeline, Spatial};
use nnunet_dist::loader::{
    Batch, Loader, LoaderError, LoaderOptions, Oversampling, SampleId, Sampler, SamplerOptions, Shard,
};
use nnunet_dist::rng::Purpose;
use nnunet_dist::store::{ANNOTATED, CaseInfo, CaseStore, Patch, StoreError};

const PATCH: [usize; 3] = [6, 10, 8];

/// In-memory cases whose voxel values encode their position, with small blobs of two classes.
struct MemoryStore {
    ids: Vec<String>,
    infos: Vec<CaseInfo>,
    labels: Vec<Array3<i16>>,
    /// Cases whose voxels cannot be read, and cases that make the reader panic.
    unreadable: BTreeSet<String>,
    panicking: BTreeSet<String>,
}

impl MemoryStore {
    fn new(shapes: &[[usize; 3]]) -> Self {
        let labels: Vec<_> = shapes.iter().map(|&shape| blobs(shape)).collect();
        Self {
            ids: (0..shapes.len()).map(|number| format!("case_{number:03}")).collect(),
            infos: labels.iter().map(info).collect(),
            labels,
            unreadable: BTreeSet::new(),
            panicking: BTreeSet::new(),
        }
    }

    fn number(&self, case: &str) -> Result<usize, StoreError> {
        self.ids.iter().position(|id| id == case).ok_or_else(|| defect(case, "no such case"))
    }
}

/// Class 1 at one corner, class 2 at the opposite one.
fn blobs(shape: [usize; 3]) -> Array3<i16> {
    Array3::from_shape_fn(shape, |(z, y, x)| match () {
        () if y < 2 && x < 2 => 1,
        () if z + 1 == shape[0] && y + 1 == shape[1] && x + 2 > shape[2] => 2,
        () => 0,
    })
}

fn info(labels: &Array3<i16>) -> CaseInfo {
    let mut class_locations = BTreeMap::<i16, Vec<[u32; 3]>>::new();
    for ((z, y, x), &label) in labels.indexed_iter().filter(|(_, label)| **label > 0) {
        class_locations.entry(label).or_default().push([z as u32, y as u32, x as u32]);
    }
    CaseInfo { channels: 2, shape: labels.dim().into(), class_locations, has_previous: false }
}

fn defect(case: &str, defect: &str) -> StoreError {
    StoreError { path: format!("store/{case}").into(), defect: defect.into() }
}

/// The intensity that the store holds at a voxel.
fn intensity(case: usize, channel: usize, [z, y, x]: [usize; 3]) -> f32 {
    (case * 100_000 + channel * 50_000 + z * 2_500 + y * 50 + x + 1) as f32
}

/// The case's voxel at an offset in a box; `usize::MAX` on an axis where the index would be negative.
fn voxel(lo: [isize; 3], offset: [usize; 3]) -> [usize; 3] {
    std::array::from_fn(|axis| usize::try_from(lo[axis] + offset[axis] as isize).unwrap_or(usize::MAX))
}

impl CaseStore for MemoryStore {
    fn case_ids(&self) -> &[String] {
        &self.ids
    }

    fn info(&self, case: &str) -> Result<&CaseInfo, StoreError> {
        Ok(&self.infos[self.number(case)?])
    }

    fn read_patch(&self, case: &str, lo: [isize; 3], patch: &mut Patch) -> Result<(), StoreError> {
        if self.unreadable.contains(case) {
            return Err(defect(case, "the block is cut short"));
        }
        assert!(!self.panicking.contains(case), "arithmetic gone wrong");
        let number = self.number(case)?;
        let labels = &self.labels[number];
        for ((z, y, x), label) in patch.labels.indexed_iter_mut() {
            let inside = Some(voxel(lo, [z, y, x])).filter(|&at| labels.get(at).is_some());
            *label = inside.map_or(-1, |at| labels[at]);
            for channel in 0..patch.data.dim().0 {
                patch.data[[channel, z, y, x]] = inside.map_or(0.0, |at| intensity(number, channel, at));
            }
        }
        Ok(())
    }
}

fn sampler(store: &Arc<MemoryStore>, global_batch_size: usize, pipeline: &Pipeline) -> Sampler {
    sampler_with(store, global_batch_size, pipeline, Oversampling::Deterministic)
}

fn sampler_with(
    store: &Arc<MemoryStore>,
    global_batch_size: usize,
    pipeline: &Pipeline,
    oversampling: Oversampling,
) -> Sampler {
    let options = SamplerOptions {
        seed: 42,
        purpose: Purpose::TrainSample,
        patch_size: pipeline.read_patch_size(),
        final_patch_size: pipeline.patch_size(),
        global_batch_size,
        oversample_foreground: 0.33,
        oversampling,
        shard: Shard::Random,
    };
    Sampler::new(store.clone(), store.ids.clone(), options).unwrap()
}

/// One rank's share of a batch of two, 2 epochs of 7 iterations.
fn options(rank: usize, world_size: usize, workers: usize) -> LoaderOptions {
    LoaderOptions {
        rank,
        world_size,
        batch_per_rank: 2 / world_size,
        workers,
        prefetch: 3,
        epochs: 0..2,
        first_iteration: 0,
        iterations_per_epoch: 7,
    }
}

fn start(store: &Arc<MemoryStore>, pipeline: Pipeline, options: LoaderOptions) -> Result<Loader, LoaderError> {
    let sampler = sampler(store, 2, &pipeline);
    Loader::start(store.clone(), sampler, Arc::new(pipeline), options)
}

/// All batches of a loader.
fn drain(mut loader: Loader) -> Vec<Batch> {
    let mut batches = Vec::new();
    loop {
        match loader.next() {
            Ok(batch) => batches.push(batch),
            Err(LoaderError::Finished) => return batches,
            Err(error) => panic!("{error}"),
        }
    }
}

fn store() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new(&[[12, 20, 16], [5, 30, 9], [18, 11, 21]]))
}

#[test]
fn two_ranks_draw_what_one_rank_draws() {
    let store = store();
    let batches = |rank, world| drain(start(&store, augmenting(), options(rank, world, 2)).unwrap());
    let (whole, first, second) = (batches(0, 1), batches(0, 2), batches(1, 2));
    assert_eq!((whole.len(), first.len(), second.len()), (14, 14, 14));
    for ((whole, first), second) in whole.iter().zip(&first).zip(&second) {
        assert_eq!(whole.samples, [first.samples.clone(), second.samples.clone()].concat());
        assert_eq!(whole.images, stack(&first.images, &second.images));
    }
    let distinct: BTreeSet<_> = whole.iter().flat_map(|batch| &batch.samples).map(|s| (s.case.clone(), s.lo)).collect();
    assert!(distinct.len() > 20, "28 samples should hardly repeat, but only {} differ", distinct.len());
}

fn augmenting() -> Pipeline {
    Pipeline::nnunet(PATCH, &[0, 1, 2], &[true, false])
}

fn stack(first: &ndarray::Array5<f32>, second: &ndarray::Array5<f32>) -> ndarray::Array5<f32> {
    ndarray::concatenate![ndarray::Axis(0), *first, *second]
}

#[test]
fn batches_depend_on_neither_workers_nor_the_place_where_a_run_is_resumed() {
    let store = store();
    let one = drain(start(&store, augmenting(), options(0, 1, 1)).unwrap());
    let four = drain(start(&store, augmenting(), LoaderOptions { prefetch: 5, ..options(0, 1, 4) }).unwrap());
    assert!(one == four, "one and four workers deliver different batches");

    let resumed = LoaderOptions { epochs: 1..2, first_iteration: 3, ..options(0, 1, 2) };
    let resumed = drain(start(&store, augmenting(), resumed).unwrap());
    assert!(one[7 + 3..] == resumed, "a resumed loader delivers different batches");
    assert_eq!(resumed[0].samples[0], SampleId { epoch: 1, index: 6, ..resumed[0].samples[0].clone() });
}

#[test]
fn recycled_batches_are_reused_and_fully_overwritten() {
    let store = store();
    let fresh = drain(start(&store, augmenting(), options(0, 1, 2)).unwrap());
    let mut loader = start(&store, augmenting(), options(0, 1, 2)).unwrap();
    let mut addresses = BTreeSet::new();
    for expected in &fresh {
        let mut batch = loader.next().unwrap();
        assert!(&batch == expected, "a recycled batch differs from a fresh one");
        addresses.insert(batch.images.as_ptr() as usize);
        batch.images.fill(f32::NAN);
        batch.labels.fill(99);
        loader.recycle(batch);
    }
    assert!(addresses.len() <= 4, "{} buffers for 3 batches ahead and one in use", addresses.len());
}

#[test]
fn the_last_third_of_the_global_batch_is_centred_on_its_class() {
    let store = store();
    // Positions from round(batch * 0.67) on; 50 * 0.67 = 33.5 rounds to the even 34.
    for (batch, unforced) in [(1, 1), (2, 1), (3, 2), (4, 3), (9, 6), (12, 8), (50, 34)] {
        let sampler = sampler(&store, batch, &Pipeline::none(PATCH));
        for index in 0..4 * batch as u64 {
            let forced = (index % batch as u64) >= unforced;
            assert_eq!(sampler.draw(3, index).unwrap().class.is_some(), forced, "batch {batch}, sample {index}");
        }
    }

    let sampler = sampler(&store, 2, &Pipeline::none(PATCH));
    let mut patch = Patch { data: Array4::zeros((2, 6, 10, 8)), labels: Array3::zeros((6, 10, 8)), previous: None };
    let mut classes = BTreeMap::<i16, usize>::new();
    for index in (1..800).step_by(2) {
        let SampleId { case, lo, class, .. } = sampler.draw(0, index).unwrap();
        store.read_patch(&case, lo, &mut patch).unwrap();
        let class = class.unwrap();
        assert!(patch.labels.iter().any(|&label| label == class), "sample {index} of {case} lacks class {class}");
        *classes.entry(class).or_default() += 1;
    }
    // Class 1 has many more voxels, but classes are drawn equally often: 200 each, standard deviation 10.
    assert!(classes.values().all(|&count| (150..=250).contains(&count)), "{classes:?}");
}

#[test]
fn each_sample_may_be_forced_by_chance() {
    let store = store();
    let sampler = sampler_with(&store, 2, &Pipeline::none(PATCH), Oversampling::Probabilistic);
    let forced = |position: u64| {
        let samples = (position..6000).step_by(2).map(|index| sampler.draw(0, index).unwrap());
        samples.filter(|sample| sample.class.is_some()).count()
    };
    // 990 of 3000 in either position, standard deviation 26.
    for count in [forced(0), forced(1)] {
        assert!((890..1090).contains(&count), "{count} of 3000");
    }
}

#[test]
fn with_an_ignore_label_every_patch_is_centred_on_an_annotated_voxel() {
    let mut store = MemoryStore::new(&[[40, 40, 40], [40, 40, 40]]);
    // The second case has no foreground, and in both only a corner is annotated.
    store.infos[1].class_locations.clear();
    for info in &mut store.infos {
        let corner = (0..5).map(|at| [30 + at, 31, 32]).collect();
        info.class_locations.insert(ANNOTATED, corner);
    }
    let store = Arc::new(store);
    let sampler = sampler(&store, 2, &Pipeline::none(PATCH));
    let (mut classes, mut places) = (BTreeSet::new(), BTreeSet::new());
    for index in 0..400 {
        let SampleId { case, lo, class, .. } = sampler.draw(0, index).unwrap();
        let centre: [isize; 3] = std::array::from_fn(|axis| lo[axis] + PATCH[axis] as isize / 2);
        classes.insert(class);
        match (case.as_str(), index % 2) {
            ("case_000", 1) => assert!(class.is_some(), "the foreground is drawn without the annotated voxels"),
            _ => {
                assert!((30..35).contains(&centre[0]) && centre[1..] == [31, 32], "{centre:?}");
                places.insert(centre[0]);
            }
        }
    }
    assert_eq!(classes, BTreeSet::from([None, Some(1), Some(2)]));
    assert_eq!(places.len(), 5);
}

#[test]
fn boxes_cover_exactly_the_range_that_nnunet_allows() {
    // Without a margin a box stays inside; a shorter axis is padded on both sides. With a margin of m it extends up to
    // ceil(m / 2) beyond either border.
    let store = Arc::new(MemoryStore::new(&[[12, 20, 7]]));
    for (read, lo, hi) in [([6, 10, 8], [0, 0, -1], [6, 10, 0]), ([9, 14, 12], [-2, -2, -3], [5, 8, -2])] {
        let options = SamplerOptions {
            seed: 1,
            purpose: Purpose::ValSample,
            patch_size: read,
            final_patch_size: PATCH,
            global_batch_size: 1,
            oversample_foreground: 0.0,
            oversampling: Oversampling::Deterministic,
            shard: Shard::Random,
        };
        let sampler = Sampler::new(store.clone(), store.ids.clone(), options).unwrap();
        let drawn: Vec<_> = (0..3000).map(|index| sampler.draw(0, index).unwrap().lo).collect();
        for axis in 0..3 {
            let values: BTreeSet<_> = drawn.iter().map(|lo| lo[axis]).collect();
            assert_eq!(values, (lo[axis]..=hi[axis]).collect(), "read {read:?}, axis {axis}");
        }
    }
}

#[test]
fn cases_are_drawn_uniformly_with_replacement() {
    let store = store();
    let sampler = sampler(&store, 2, &Pipeline::none(PATCH));
    let mut counts = BTreeMap::<String, usize>::new();
    for index in 0..3000 {
        *counts.entry(sampler.draw(0, index).unwrap().case).or_default() += 1;
    }
    // 1000 each, standard deviation 26.
    assert!(counts.len() == 3 && counts.values().all(|&count| (870..1130).contains(&count)), "{counts:?}");
}

#[test]
fn a_2d_patch_is_one_slice_and_a_forced_one_holds_its_class() {
    let store = store();
    let pipeline = Pipeline::none([1, 10, 8]);
    let sampler = sampler(&store, 2, &pipeline);
    let mut slices = BTreeSet::new();
    for index in 0..400 {
        let SampleId { case, lo, class, .. } = sampler.draw(0, index).unwrap();
        let depth = store.info(&case).unwrap().shape[0] as isize;
        assert!((0..depth).contains(&lo[0]));
        slices.insert((case.clone(), lo[0]));
        if class == Some(2) {
            assert_eq!(lo[0], depth - 1, "class 2 lies in the last slice only");
        }
    }
    assert_eq!(slices.len(), 12 + 5 + 18, "every slice of every case is drawn");
}

#[test]
fn patches_beyond_the_border_are_padded_with_background() {
    let store = Arc::new(MemoryStore::new(&[[4, 20, 16]]));
    let batches = drain(start(&store, Pipeline::none(PATCH), options(0, 1, 2)).unwrap());
    for batch in batches {
        for (position, sample) in batch.samples.iter().enumerate() {
            for ((z, y, x), &label) in batch.labels.index_axis(ndarray::Axis(0), position).indexed_iter() {
                let at = voxel(sample.lo, [z, y, x]);
                let stored = store.labels[0].get(at);
                let value = batch.images[[position, 1, z, y, x]];
                match stored {
                    Some(&stored) => assert_eq!((label, value), (stored, intensity(0, 1, at))),
                    None => assert_eq!((label, value), (0, 0.0)),
                }
            }
        }
    }
}

#[test]
fn a_failure_names_case_sample_and_cause_and_is_repeated() {
    let mut broken = MemoryStore::new(&[[12, 20, 16], [12, 20, 16]]);
    broken.unreadable.insert("case_001".into());
    let mut panicking = MemoryStore::new(&[[12, 20, 16], [12, 20, 16]]);
    panicking.panicking.insert("case_001".into());
    let mut other = MemoryStore::new(&[[12, 20, 16], [12, 20, 16]]);
    other.infos[1].channels = 3;
    for (store, expected) in [
        (broken, "the block is cut short"),
        (panicking, "panicked: arithmetic gone wrong"),
        (other, "has 3 channels, the first case has 2"),
    ] {
        let store = Arc::new(store);
        let mut loader = start(&store, Pipeline::none(PATCH), options(0, 1, 2)).unwrap();
        let error = std::iter::repeat_with(|| loader.next()).find_map(Result::err).unwrap();
        let LoaderError::Sample { case, epoch, index, cause } = &error else { panic!("{error}") };
        assert_eq!(case, "case_001");
        assert!(cause.contains(expected), "{cause}");
        let drawn = sampler(&store, 2, &Pipeline::none(PATCH)).draw(*epoch, *index).unwrap();
        assert_eq!(&drawn.case, case, "the sample number is not that of the failing sample");
        assert!(error.to_string().starts_with(&format!("case case_001, sample {index} of epoch {epoch}: ")));
        assert_eq!(loader.next().unwrap_err(), error);
    }
}

#[test]
fn contradicting_settings_are_refused() {
    let store = store();
    let refused = |change: LoaderOptions| match start(&store, Pipeline::none(PATCH), change) {
        Err(LoaderError::Setup(problem)) => problem,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("started"),
    };
    assert!(refused(options(2, 2, 1)).contains("rank 2"));
    assert!(refused(options(0, 1, 0)).contains("workers (0)"));
    assert!(refused(LoaderOptions { batch_per_rank: 3, ..options(0, 1, 1) }).contains("the global batch size 2"));

    let pipeline = Pipeline::none(PATCH);
    let drawn = sampler(&store, 2, &Pipeline::new(Spatial::nnunet(PATCH)));
    let problem = Loader::start(store.clone(), drawn, Arc::new(pipeline), options(0, 1, 1)).err().unwrap();
    assert!(problem.to_string().contains("the pipeline needs"), "{problem}");

    let options = sampler(&store, 2, &Pipeline::none(PATCH)).options().clone();
    let unknown = Sampler::new(store.clone(), vec!["case_404".into()], options.clone()).err().unwrap();
    assert!(unknown.to_string().contains("case_404"));
    assert!(Sampler::new(store, Vec::new(), options).is_err());
}

#[test]
fn waiting_is_counted_and_a_dropped_loader_leaves_no_thread() {
    let store = store();
    let slow = Pipeline::none(PATCH).then("slow", 1.0, |_, _| std::thread::sleep(Duration::from_millis(20)));
    let mut loader =
        start(&store, slow, LoaderOptions { prefetch: 50, epochs: 0..u64::MAX, ..options(0, 1, 1) }).unwrap();
    (0..5).for_each(|_| _ = loader.next().unwrap());
    assert!(loader.take_wait() > Duration::ZERO);
    assert_eq!(loader.take_wait(), Duration::ZERO);
    drop(loader);
    assert_eq!(Arc::strong_count(&store), 1, "a worker still holds the store");
}

#[test]
fn partitioned_cases_give_the_same_global_batches_on_any_number_of_ranks() {
    let store = Arc::new(MemoryStore::new(&[[12, 12, 12]; 8]));
    let samples = |world_size: usize| {
        let drawn = (0..world_size).flat_map(|rank| {
            let options = SamplerOptions {
                seed: 3,
                purpose: Purpose::TrainSample,
                patch_size: PATCH,
                final_patch_size: PATCH,
                global_batch_size: 4,
                oversample_foreground: 0.33,
                oversampling: Oversampling::Deterministic,
                shard: Shard::Epoch,
            };
            let sampler = Sampler::new(store.clone(), store.ids.clone(), options).unwrap();
            let options = LoaderOptions { batch_per_rank: 4 / world_size, ..self::options(rank, world_size, 2) };
            let loader = Loader::start(store.clone(), sampler, Arc::new(Pipeline::none(PATCH)), options).unwrap();
            let samples: Vec<SampleId> = drain(loader).into_iter().flat_map(|batch| batch.samples).collect();
            let cases: BTreeSet<_> = samples.iter().map(|sample| sample.case.clone()).collect();
            assert_eq!(cases.len(), 8 / world_size, "a rank meets its part of the cases only");
            samples
        });
        let mut samples: Vec<_> = drawn.collect();
        samples.sort_by_key(|sample| (sample.epoch, sample.index));
        samples
    };
    let one = samples(1);
    assert_eq!(one, samples(2));
    assert_eq!(one, samples(4));
    // The cases of a position are neither always nor never forced to foreground.
    let forced: BTreeSet<_> = one.iter().filter(|sample| sample.class.is_some()).map(|sample| &sample.case).collect();
    let free: BTreeSet<_> = one.iter().filter(|sample| sample.class.is_none()).map(|sample| &sample.case).collect();
    assert!(forced.len() > 4 && free.len() > 4, "{forced:?} and {free:?}");
}
