//! The comparison of pairs of files.

use std::path::PathBuf;

use rayon::prelude::*;

use crate::dataset::LabelValue;
use crate::image::read_labels;

use super::classes::key;
use super::{CaseResult, Classes, Confusion, EvalError, Summary};

/// A prediction and what it should have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The predicted label map.
    pub prediction: PathBuf,
    /// The true label map.
    pub reference: PathBuf,
}

/// Compares each prediction with its reference, in the order given.
///
/// # Errors
/// The first pair that cannot be read or does not match in shape.
pub fn evaluate_files(pairs: &[Pair], classes: &Classes) -> Result<Summary, EvalError> {
    Ok(summarise(pairs, &count_files(pairs)?, classes))
}

/// As [`evaluate_files`], each case by itself.
///
/// # Errors
/// As [`evaluate_files`].
pub fn evaluate_cases(pairs: &[Pair], classes: &Classes) -> Result<Vec<CaseResult>, EvalError> {
    Ok(evaluate_files(pairs, classes)?.metric_per_case)
}

/// Reads every pair, in parallel, and keeps only its counts.
pub(super) fn count_files(pairs: &[Pair]) -> Result<Vec<Confusion>, EvalError> {
    let counts: Vec<_> = pairs.par_iter().map(count_pair).collect();
    // Collected in order, so that which error is reported does not depend on the threads.
    counts.into_iter().collect()
}

pub(super) fn summarise(pairs: &[Pair], counts: &[Confusion], classes: &Classes) -> Summary {
    let cases = pairs.iter().zip(counts).map(|(pair, counts)| {
        let metrics = |class: &LabelValue| (key(class), counts.metrics(class, classes.ignore_label));
        CaseResult {
            metrics: classes.foreground.iter().map(metrics).collect(),
            prediction_file: pair.prediction.clone(),
            reference_file: pair.reference.clone(),
        }
    });
    Summary::new(cases.collect())
}

fn count_pair(pair: &Pair) -> Result<Confusion, EvalError> {
    let reference = read_labels(&pair.reference)?.data;
    let prediction = read_labels(&pair.prediction)?.data;
    if prediction.shape() != reference.shape() {
        return Err(EvalError::Shape {
            prediction: pair.prediction.clone(),
            prediction_shape: prediction.shape().to_vec(),
            reference: pair.reference.clone(),
            reference_shape: reference.shape().to_vec(),
        });
    }
    Ok(Confusion::new(&reference, &prediction))
}
