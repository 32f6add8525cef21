//! Benchmark of preprocessing: whole dataset, individual steps, and resampling of one case.

use std::convert::Infallible;
use std::hint::black_box;
use std::path::Path;

use ndarray::Array3;
use nnunet_comm::distributed::Single;
use nnunet_data::dataset::{CaseFiles, Dataset};
use nnunet_data::plan::Plans;
use nnunet_data::preprocess::{PreprocessError, Preprocessor, ResourceLimits, preprocess_dataset};
use nnunet_data::store;
use nnunet_image::{Resampling, Volume, compute_new_shape, resample_data, resample_labels};
use rayon::prelude::*;

use super::{Row, Work, measure};

/// Number of cases used for the individual steps, all of which are held in memory.
const STEP_CASES: usize = 16;

/// Preprocesses all cases of the dataset into `folder`, as `nnunet-dist preprocess` does, then times each step
/// separately on the first cases, using all cores.
///
/// # Errors
/// Returns an error in the cases of preprocessing.
pub fn preprocess(
    dataset: &Dataset,
    plans: &Plans,
    configuration: &str,
    folder: &Path,
    limits: ResourceLimits,
    rounds: usize,
) -> Result<Vec<Row>, PreprocessError> {
    let all = measure(rounds, || {
        preprocess_dataset(dataset, plans, configuration, folder, limits, &|_| {}, &Single).map(|_| ())
    })?;
    let work = |cases: usize| Work { items: cases as f64, ..Work::default() };
    let mut rows = vec![Row { name: "all cases".into(), unit: "cases", work: work(dataset.cases.len()), seconds: all }];

    let files = &dataset.cases[..dataset.cases.len().min(STEP_CASES)];
    let steps = PreprocessSteps {
        preprocessor: Preprocessor::new(plans, configuration, &dataset.json)?,
        channels: dataset.json.channel_names.len(),
        files,
        folder,
    };
    rows.extend(steps.measure(rounds)?.into_iter().map(|(name, seconds)| Row {
        name: format!("  {name}"),
        unit: "cases",
        work: work(files.len()),
        seconds,
    }));
    Ok(rows)
}

struct PreprocessSteps<'a> {
    preprocessor: Preprocessor,
    channels: usize,
    files: &'a [CaseFiles],
    folder: &'a Path,
}

impl PreprocessSteps<'_> {
    fn measure(&self, rounds: usize) -> Result<Vec<(&'static str, super::Timings)>, PreprocessError> {
        let id = |files: &CaseFiles| files.id.clone();
        let read = |files: &CaseFiles| {
            files.load(self.channels).map_err(|cause| PreprocessError::Read { case: id(files), cause })
        };
        let cases = self.files.par_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let prepared = cases.par_iter().map(|case| self.preprocessor.prepare(case)).collect::<Result<Vec<_>, _>>()?;
        let finished: Vec<_> =
            prepared.par_iter().map(|case| self.preprocessor.resample_and_locate(case.clone())).collect();
        let write = |(files, case): (&CaseFiles, _)| {
            store::write_case(self.folder, &files.id, case)
                .map_err(|cause| PreprocessError::Write { case: id(files), cause })
        };
        Ok(vec![
            ("read", measure(rounds, || self.files.par_iter().try_for_each(|files| read(files).map(drop)))?),
            (
                "crop, normalise",
                measure(rounds, || cases.par_iter().try_for_each(|case| self.preprocessor.prepare(case).map(drop)))?,
            ),
            (
                "resample image",
                measure::<PreprocessError>(rounds, || {
                    prepared.par_iter().for_each(|case| drop(self.preprocessor.resample_image(case)));
                    Ok(())
                })?,
            ),
            (
                "resample labels",
                measure::<PreprocessError>(rounds, || {
                    prepared.par_iter().for_each(|case| drop(self.preprocessor.resample_labels(case)));
                    Ok(())
                })?,
            ),
            (
                "locate classes",
                measure::<PreprocessError>(rounds, || {
                    prepared.par_iter().zip(&finished).for_each(|(case, finished)| {
                        drop(finished.labels.as_ref().map(|labels| self.preprocessor.locate(case, labels)));
                    });
                    Ok(())
                })?,
            ),
            ("write", measure(rounds, || self.files.par_iter().zip(&finished).try_for_each(write))?),
        ])
    }
}

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
