//! Benchmark of sliding-window inference, stage by stage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ndarray::{Array4, Array5};

use super::{Row, Timings, Work, measure};
use nnunet_comm::distributed::Single;
use nnunet_data::dataset::CaseFiles;
use nnunet_data::store::CaseProperties;
use nnunet_image::{Geometry, Resampling, write_labels};
use nnunet_infer::{
    AccumulatorDtype, Batching, Blend, Export, FolderOptions, InferError, InferenceTimings, LabelRule, PredictOptions,
    Predictor, SlidingWindow, find_cases, predict_folder,
};
use nnunet_nn::backend::{ComputeBackend, OnDevice, on_device};
use nnunet_nn::ops::NnOps;

/// A trained network and a folder of images.
#[derive(Clone, Debug)]
pub struct InferFolder {
    pub images: PathBuf,
    pub options: PredictOptions,
    /// Label maps of the first stage, for the second stage of a cascade.
    pub previous_stage: Option<PathBuf>,
}

/// Constant image and network output: measures the overhead of inference without the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InferStub {
    /// Shape `(z, y, x)` of the raw image.
    pub extent: [usize; 3],
    /// Shape `(z, y, x)` after resampling, on which windows are placed.
    pub resampled: [usize; 3],
    pub classes: usize,
    /// Shape `(z, y, x)` of a window.
    pub patch: [usize; 3],
    /// Overlap of neighboring windows as a fraction of the window size.
    pub overlap: f64,
    pub mirror: bool,
    pub accumulator_dtype: AccumulatorDtype,
}

/// Times of one round by stage.
#[derive(Default)]
struct Round {
    read: Duration,
    timings: InferenceTimings,
    write: Duration,
}

impl InferFolder {
    /// Rows for reading and preprocessing, network, accumulation, export and writing, run sequentially; and one for the
    /// whole folder, where they overlap.
    ///
    /// # Errors
    /// Returns an error if the network or an image cannot be read, or a label map cannot be written.
    pub fn measure(&self, rounds: usize) -> Result<Vec<Row>, InferError> {
        let Self { images, options, previous_stage } = self;
        let work = InferMeasurement { images, options, previous_stage: previous_stage.as_deref(), rounds };
        on_device(options.device, options.precision, &Single, work)?
    }
}

struct InferMeasurement<'a> {
    images: &'a Path,
    options: &'a PredictOptions,
    previous_stage: Option<&'a Path>,
    rounds: usize,
}

impl OnDevice for InferMeasurement<'_> {
    type Output = Result<Vec<Row>, InferError>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        let Self { images, options, previous_stage, rounds } = self;
        let predictor = Predictor::<B::InnerBackend>::with_options(options, device)?;
        let mut cases = find_cases(&[images.to_owned()], predictor.dataset())?;
        predictor.add_previous_stage(&mut cases, previous_stage)?;
        let output = tempfile::tempdir().map_err(|source| InferError::Write { path: std::env::temp_dir(), source })?;
        let (mut voxels, mut raw_voxels) = (0, 0);
        let mut stages = Vec::new();
        measure(rounds, || {
            let mut round = Round::default();
            (voxels, raw_voxels) = (0, 0);
            for case in &cases {
                let [network, raw] = one_case(case, &predictor, output.path(), &mut round)?;
                (voxels, raw_voxels) = (voxels + network, raw_voxels + raw);
            }
            stages.push(round);
            Ok::<_, InferError>(())
        })?;
        let folder = FolderOptions { previous_stage: previous_stage.map(Path::to_owned), ..FolderOptions::default() };
        let predict = || predict_folder(&[images.to_owned()], output.path(), options, &folder, &Single).map(drop);
        let folder = measure(rounds, predict)?;

        // The first round is the warm-up.
        let stages = &stages[1..];
        let number = cases.len() as f64;
        let timings: Vec<_> = stages.iter().map(|round| round.timings).collect();
        let mut rows = vec![row("read, preprocess", "cases", number, stages.iter().map(|round| round.read))];
        rows.extend(timing_rows(&timings, voxels, raw_voxels));
        rows.push(row("write", "cases", number, stages.iter().map(|round| round.write)));
        let work = Work { items: number, ..Work::default() };
        rows.push(Row { name: "folder, overlapped".into(), unit: "cases", work, seconds: folder });
        Ok(rows)
    }
}

/// Predicts a case; returns the number of voxels after resampling and of the label map.
fn one_case<B: NnOps>(
    case: &CaseFiles,
    predictor: &Predictor<B>,
    output: &Path,
    round: &mut Round,
) -> Result<[usize; 2], InferError> {
    let dataset = predictor.dataset();
    let began = Instant::now();
    let preprocessed = predictor.preprocess(&case.load(dataset.num_channels())?)?;
    round.read += began.elapsed();
    let found = predictor.segment(preprocessed.data.view(), &preprocessed.properties, false)?;
    round.timings += found.timings;
    let began = Instant::now();
    write_labels(&output.join(format!("{}{}", case.id, dataset.file_ending)), &found.labels)?;
    round.write += began.elapsed();
    let voxels = preprocessed.properties.shape_after_resampling.iter().product();
    Ok([voxels, found.labels.data.len()])
}

impl Default for InferStub {
    /// Fits into the memory of a laptop.
    fn default() -> Self {
        Self {
            extent: [160, 256, 256],
            resampled: [128, 224, 224],
            classes: 5,
            patch: [96; 3],
            overlap: 0.5,
            mirror: true,
            accumulator_dtype: AccumulatorDtype::F32,
        }
    }
}

impl InferStub {
    /// Rows for network, accumulation and export.
    ///
    /// There is no warm-up if `rounds` is 1, because a round may take minutes.
    pub fn measure(&self, rounds: usize) -> Vec<Row> {
        let sliding = SlidingWindow {
            window: self.patch,
            step: 1.0 - self.overlap,
            blend: Blend::Gaussian,
            mirror_axes: if self.mirror { vec![0, 1, 2] } else { Vec::new() },
        };
        let [z, y, x] = self.resampled;
        let image = Array4::<f32>::zeros((1, z, y, x));
        let [pz, py, px] = self.patch;
        let logits = Array5::from_shape_fn((1, pz, py, px, self.classes), |(_, z, y, x, class)| {
            ((z / 8 + y / 8 + x / 8 + class) % self.classes) as f32
        });
        let properties = self.properties();
        let batching = Batching {
            batch_size: sliding.num_mirrorings(),
            accumulator_dtype: self.accumulator_dtype,
            on_device: false,
        };
        let mut timings = Vec::new();
        for _ in 0..rounds + usize::from(rounds > 1) {
            let mut export = Export::new(self.resampled, &properties, &LINEAR, &LabelRule::Classes);
            // Returns the same logits for any input, without copying them.
            let network = |windows: Array5<f32>| {
                let (samples, ..) = windows.dim();
                logits.broadcast((samples, pz, py, px, self.classes)).expect("logits of one sample").into()
            };
            let round = sliding.run(image.view(), self.classes, batching, network, |z, plane| export.plane(z, plane));
            timings.push(export.finish(round).timings);
        }
        let counted = &timings[usize::from(rounds > 1)..];
        let mut rows = timing_rows(counted, self.resampled.iter().product(), self.extent.iter().product());
        let whole = counted.iter().map(|timings| timings.network + timings.accumulate + timings.export);
        rows.push(row("image", "voxels", self.extent.iter().product::<usize>() as f64, whole));
        rows
    }

    /// Properties of a raw image resampled from `extent` to `resampled`.
    fn properties(&self) -> CaseProperties {
        let size: [f64; 3] = std::array::from_fn(|axis| self.extent[axis] as f64 / self.resampled[axis] as f64);
        CaseProperties {
            geometry: Geometry::default(),
            transpose_forward: [0, 1, 2],
            shape_before_cropping: self.extent,
            bbox_used_for_cropping: self.extent.map(|extent| [0, extent]),
            shape_after_cropping_and_before_resampling: self.extent,
            shape_after_resampling: self.resampled,
            spacing_after_resampling: size,
            class_locations: BTreeMap::new(),
        }
    }
}

/// nnU-Net's resampling of logits.
const LINEAR: Resampling = Resampling { order: 1, order_z: 0, force_separate_z: None };

/// Rows of the parts of [`InferenceTimings`], for images with these numbers of voxels after resampling and in the raw
/// grid.
fn timing_rows(timings: &[InferenceTimings], voxels: usize, raw_voxels: usize) -> Vec<Row> {
    let windows = timings.first().map_or(0, |timings| timings.windows);
    vec![
        row("network", "windows", windows as f64, timings.iter().map(|timings| timings.network)),
        row("cut, accumulate", "voxels", voxels as f64, timings.iter().map(|timings| timings.accumulate)),
        row("resample, decide", "voxels", raw_voxels as f64, timings.iter().map(|timings| timings.export)),
    ]
}

fn row(name: &str, unit: &'static str, items: f64, times: impl Iterator<Item = Duration>) -> Row {
    let seconds = Timings::new(times.map(|time| time.as_secs_f64()).collect());
    Row { name: name.into(), unit, work: Work { items, ..Work::default() }, seconds }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stub_has_a_row_per_stage() {
        let stub = InferStub {
            extent: [20, 18, 16],
            resampled: [24, 16, 17],
            patch: [16; 3],
            classes: 3,
            ..InferStub::default()
        };
        for accumulator_dtype in [AccumulatorDtype::F32, AccumulatorDtype::F16] {
            let rows = InferStub { accumulator_dtype, ..stub }.measure(2);
            let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
            assert_eq!(names, ["network", "cut, accumulate", "resample, decide", "image"]);
            // Two windows along each axis that is longer than the window.
            assert_eq!(rows[0].work.items, 4.0);
            assert_eq!(rows[3].work.items, (20 * 18 * 16) as f64);
        }
    }
}
