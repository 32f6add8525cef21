//! Benchmark of data loading from the store to the batch, part by part, on one core; and a store of generated cases.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array3, Array4, Axis};
use nnunet_core::rng::{Purpose, Stream, stream};
use nnunet_data::augment::{Pipeline, blank_patch, centre_crop};
use nnunet_data::loader::{Loader, LoaderError, LoaderOptions, Oversampling, SampleId, Sampler, SamplerOptions, Shard};
use nnunet_data::store::{CaseProperties, CaseStore, NativeStore, Patch, PreprocessedCase, StoreError, write_case};
use nnunet_image::Geometry;
use nnunet_nn::loss::downsample_labels;
use rand::Rng;
use rand_distr::StandardNormal;
use tempfile::TempDir;

use super::{Report, Row, Timings, Work, measure};

const SEED: u64 = 1;
/// Batches per run: transforms are random, so that a single batch is not representative.
const BATCHES: usize = 8;

/// Store, pipeline and samples of the benchmark.
pub struct LoaderBench {
    store: Arc<dyn CaseStore>,
    pipeline: Arc<Pipeline>,
    batch_size: usize,
    channels: usize,
    samples: Vec<SampleId>,
}

impl LoaderBench {
    /// Draws the samples of a run from all cases of the store.
    ///
    /// # Errors
    /// Returns an error in the cases of [`Sampler::new`] and [`Sampler::draw`].
    pub fn new(store: Arc<dyn CaseStore>, pipeline: Pipeline, batch_size: usize) -> Result<Self, LoaderError> {
        let mut bench = Self { store, pipeline: Arc::new(pipeline), batch_size, channels: 0, samples: Vec::new() };
        let sampler = bench.sampler()?;
        bench.channels = sampler.channels().map_err(|error| LoaderError::Setup(error.to_string()))?;
        let count = (BATCHES * batch_size) as u64;
        bench.samples = (0..count).map(|index| sampler.draw(0, index)).collect::<Result<_, _>>()?;
        Ok(bench)
    }

    /// Measures `rounds` runs of each part.
    ///
    /// The rows of the transforms apply to a sample that is transformed; the factor after the name is the probability
    /// of the transform. `augment` covers all of nnU-Net's transforms on a patch that was read, each with its
    /// probability, and the deep supervision targets. `loader` covers everything from the store to the batch with one
    /// worker. Reading has no row because the store lends memory-mapped cases.
    ///
    /// # Errors
    /// Returns the error of the store.
    pub fn run(&self, rounds: usize) -> Result<Report, LoaderError> {
        let mut rows = vec![self.spatial(rounds)?];
        for (number, (name, probability)) in self.pipeline.transforms().enumerate() {
            let pipeline = &self.pipeline;
            let seconds = self.transform(rounds, |patch, rng| pipeline.apply_transform(number, patch, rng));
            rows.push(self.row(format!("{name} × {probability}"), seconds));
        }
        if self.pipeline.previous_stage().is_some() {
            rows.push(self.previous_stage(rounds)?);
        }
        rows.push(self.targets(rounds));
        rows.push(self.augment(rounds)?);
        rows.push(self.whole(rounds)?);
        // The peak must be that of one core, as the rows are.
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let one = one.map_err(|error| LoaderError::Setup(error.to_string()))?;
        Ok(one.install(|| Report::new("loader", rows)))
    }

    fn spatial(&self, rounds: usize) -> Result<Row, LoaderError> {
        let (read, mut patch) = (self.read_batch()?, self.blank());
        let seconds = measure_infallible(rounds, || {
            for (index, read) in self.repeated(&read) {
                self.pipeline.spatial().apply(read, &mut patch, &mut self.stream(index));
                black_box(&mut patch);
            }
        });
        Ok(self.row("spatial".into(), seconds))
    }

    /// Times a transform on noise: some transforms are faster on a constant.
    fn transform(&self, rounds: usize, apply: impl Fn(&mut Patch, &mut Stream)) -> Timings {
        let mut patch = self.blank();
        measure_infallible(rounds, || {
            for index in 0..self.samples.len() {
                if index % self.batch_size == 0 {
                    texture(&mut patch);
                }
                apply(&mut patch, &mut self.stream(index));
                black_box(&mut patch);
            }
        })
    }

    /// Augmentation of the previous-stage channels of a cascade, each transform with its probability.
    fn previous_stage(&self, rounds: usize) -> Result<Row, LoaderError> {
        let (read, mut patch) = (self.read_batch()?, self.blank());
        let patches = read.iter().map(|read| {
            centre_crop(read, &mut patch);
            patch.clone()
        });
        let patches: Vec<Patch> = patches.collect();
        let seconds = measure_infallible(rounds, || {
            for (index, patch) in self.repeated(&patches) {
                black_box(self.pipeline.one_hot(patch, &mut self.stream(index)));
            }
        });
        Ok(self.row("previous stage".into(), seconds))
    }

    fn targets(&self, rounds: usize) -> Row {
        let patch = self.blank();
        let seconds = measure_infallible(rounds, || {
            (0..self.samples.len()).for_each(|_| make_targets(&patch));
        });
        self.row("targets".into(), seconds)
    }

    fn augment(&self, rounds: usize) -> Result<Row, LoaderError> {
        let (read, mut patch) = (self.read_batch()?, self.blank());
        let seconds = measure_infallible(rounds, || {
            for (index, read) in self.repeated(&read) {
                let mut rng = self.stream(index);
                self.pipeline.apply(read, &mut patch, &mut rng);
                black_box(self.pipeline.one_hot(&patch, &mut rng));
                make_targets(&patch);
            }
        });
        Ok(self.row("augment".into(), seconds))
    }

    fn whole(&self, rounds: usize) -> Result<Row, LoaderError> {
        let options = LoaderOptions {
            rank: 0,
            world_size: 1,
            batch_per_rank: self.batch_size,
            workers: 1,
            prefetch: 2,
            epochs: 0..u64::MAX,
            first_iteration: 0,
            iterations_per_epoch: BATCHES as u64,
        };
        let mut loader = Loader::start(self.store.clone(), self.sampler()?, self.pipeline.clone(), options)?;
        let seconds = measure(rounds, || {
            for _ in 0..BATCHES {
                let batch = loader.next()?;
                loader.recycle(batch);
            }
            Ok::<_, LoaderError>(())
        })?;
        Ok(self.row("loader".into(), seconds))
    }

    fn sampler(&self) -> Result<Sampler, LoaderError> {
        let options = SamplerOptions {
            seed: SEED,
            purpose: Purpose::TrainSample,
            patch_size: self.pipeline.read_patch_size(),
            final_patch_size: self.pipeline.patch_size(),
            global_batch_size: self.batch_size,
            oversample_foreground: 0.33,
            oversampling: Oversampling::Deterministic,
            shard: Shard::Random,
        };
        Sampler::new(self.store.clone(), self.store.case_ids().to_vec(), options)
    }

    fn row(&self, name: String, seconds: Timings) -> Row {
        let work = Work { items: self.samples.len() as f64, ..Work::default() };
        Row { name, unit: "samples", work, seconds }
    }

    fn stream(&self, index: usize) -> Stream {
        stream(SEED, Purpose::Augment, 0, index as u64)
    }

    fn blank(&self) -> Patch {
        let size = self.pipeline.patch_size();
        let previous = self.pipeline.previous_stage().map(|_| Array3::zeros(size));
        Patch { previous, ..blank_patch(self.channels, size) }
    }

    /// Patches of the first batch, with margins.
    fn read_batch(&self) -> Result<Vec<Patch>, LoaderError> {
        let read = |sample: &SampleId| {
            let fail = |error: StoreError| LoaderError::Setup(error.to_string());
            let mut read = self.store.info(&sample.case).map_err(fail)?.blank_patch(self.pipeline.read_patch_size());
            self.store.read_patch(&sample.case, sample.lo, &mut read).map_err(fail)?;
            Ok(read)
        };
        self.samples.iter().take(self.batch_size).map(read).collect()
    }

    /// The patches of a batch repeated to the number of samples of a run, with sample indices.
    fn repeated<'a>(&self, batch: &'a [Patch]) -> impl Iterator<Item = (usize, &'a Patch)> {
        batch.iter().cycle().take(self.samples.len()).enumerate()
    }
}

/// Times work that cannot fail.
fn measure_infallible(rounds: usize, mut run: impl FnMut()) -> Timings {
    let timings = measure::<Infallible>(rounds, || {
        run();
        Ok(())
    });
    match timings {
        Ok(timings) => timings,
    }
}

/// Labels at half and at a quarter of the resolution, as required by deep supervision of a U-Net with four levels.
fn make_targets(patch: &Patch) {
    let extent = patch.labels.dim().into();
    for divisor in [2, 4] {
        let coarse = <[usize; 3]>::map(extent, |extent| extent.div_ceil(divisor));
        black_box(downsample_labels(patch.labels.view().insert_axis(Axis(0)), coarse));
    }
}

/// Fills the patch with uniform noise from a linear congruential generator with a fixed seed.
fn texture(patch: &mut Patch) {
    let mut state = 1u32;
    for value in &mut patch.data {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
    }
}

/// Voxel locations stored per class; far fewer than a phantom has.
const LOCATIONS: usize = 1000;

/// A native store in a temporary folder, which is deleted on drop.
pub struct GeneratedStore {
    /// The store, memory-mapped.
    pub store: Arc<NativeStore>,
    folder: TempDir,
}

impl GeneratedStore {
    /// Writes `cases` cases with this number of `channels` and shape `(z, y, x)`: noise added to two ellipsoids of
    /// classes 1 and 2.
    ///
    /// # Errors
    /// Returns an error if the temporary folder cannot be written.
    pub fn new(cases: usize, channels: usize, shape: [usize; 3]) -> Result<Self, StoreError> {
        let fail = |error| StoreError { path: std::env::temp_dir(), defect: format!("cannot create it: {error}") };
        let folder = tempfile::tempdir().map_err(fail)?;
        for number in 0..cases {
            write_case(folder.path(), &format!("generated_{number:03}"), &case(channels, shape, number as u64))?;
        }
        Ok(Self { store: Arc::new(NativeStore::open(folder.path())?), folder })
    }

    /// Path of the store.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn case(channels: usize, shape: [usize; 3], number: u64) -> PreprocessedCase {
    let mut rng = stream(1, Purpose::Phantom, 0, number);
    let labels = Array3::from_shape_fn(shape, |(z, y, x)| label([z, y, x], shape));
    let [z, y, x] = shape;
    let data = Array4::from_shape_fn((channels, z, y, x), |(_, z, y, x)| {
        f32::from(labels[[z, y, x]]) + rng.sample::<f32, _>(StandardNormal)
    });
    let mut class_locations = BTreeMap::<i16, Vec<[u32; 3]>>::new();
    for ((z, y, x), &label) in labels.indexed_iter().filter(|(_, label)| **label > 0) {
        let voxels = class_locations.entry(label).or_default();
        if voxels.len() < LOCATIONS {
            voxels.push([z as u32, y as u32, x as u32]);
        }
    }
    let properties = CaseProperties {
        geometry: Geometry::default(),
        transpose_forward: [0, 1, 2],
        shape_before_cropping: shape,
        bbox_used_for_cropping: shape.map(|extent| [0, extent]),
        shape_after_cropping_and_before_resampling: shape,
        shape_after_resampling: shape,
        spacing_after_resampling: [1.0; 3],
        class_locations,
    };
    PreprocessedCase { data, labels: Some(labels), properties }
}

/// Two ellipsoids side by side along y, in coordinates from -1 to 1.
fn label(at: [usize; 3], shape: [usize; 3]) -> i16 {
    let [z, y, x]: [f64; 3] = std::array::from_fn(|axis| 2.0 * (at[axis] as f64 + 0.5) / shape[axis] as f64 - 1.0);
    let inside = |centre: f64| (z / 0.5).powi(2) + ((y - centre) / 0.3).powi(2) + (x / 0.4).powi(2) < 1.0;
    match () {
        () if inside(-0.35) => 1,
        () if inside(0.35) => 2,
        () => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_data::store::CaseStore;

    #[test]
    fn generated_cases_have_both_classes_at_the_stored_locations() {
        let generated = GeneratedStore::new(2, 3, [12, 20, 14]).unwrap();
        assert_eq!(generated.store.case_ids().len(), 2);
        let info = generated.store.info("generated_001").unwrap();
        assert_eq!((info.channels, info.shape), (3, [12, 20, 14]));
        assert!(info.class_locations.keys().eq(&[1, 2]));
        for (class, voxels) in &info.class_locations {
            assert!(voxels.iter().all(|voxel| label(voxel.map(|at| at as usize), info.shape) == *class));
        }
    }
}
