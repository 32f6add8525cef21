//! Benchmark of preprocessing: whole dataset and individual steps.

use std::path::Path;

use rayon::prelude::*;

use super::{Row, Work, measure};
use nnunet_comm::distributed::Single;
use nnunet_data::dataset::{CaseFiles, Dataset};
use nnunet_data::plan::Plans;
use nnunet_data::preprocess::{PreprocessError, Preprocessor, ResourceLimits, preprocess_dataset};
use nnunet_data::store;

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
