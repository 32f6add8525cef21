//! Validation of a dataset, reporting all problems at once.

use std::path::Path;

use rayon::prelude::*;

use super::left_out::left_out;
use super::{CaseFiles, Dataset, DatasetJson};
use nnunet_image::{self as image, ImageHeader};

/// Returns all problems of a dataset, one line each with the affected file; empty if there are none.
///
/// Reads all files once, several cases in parallel. Checks for missing and unreadable files, a wrong number of cases or
/// channels, image and label files of a case that differ in shape, spacing, origin or direction, NaN and infinity in
/// images, and labels that are not integers or not in dataset.json.
pub fn validate(dataset: &Dataset) -> Vec<String> {
    let in_json = |problem| format!("{}: {problem}", dataset.root.join("dataset.json").display());
    let mut problems: Vec<String> = dataset.json.problems().into_iter().map(in_json).collect();
    let (expected, found) = (dataset.json.num_training, dataset.cases.len());
    if expected != found {
        let left_out = left_out_of(dataset).map_or_else(String::new, |files| format!("; left out: {files}"));
        problems.push(in_json(format!("numTraining is {expected}, but there are {found} cases{left_out}")));
    }
    let expected = CaseExpectation { channels: dataset.json.num_channels(), labels: allowed_labels(&dataset.json) };
    problems.par_extend(dataset.cases.par_iter().flat_map_iter(|case| problems_of_case(case, &expected)));
    problems
}

/// Describes the files of imagesTr and labelsTr that are not read because of their names, see
/// [`left_out`](super::left_out()).
pub fn left_out_of(dataset: &Dataset) -> Option<String> {
    let folders = ["imagesTr", "labelsTr"].into_iter();
    let described = folders.filter_map(|name| {
        let files = left_out(&dataset.root.join(name), &dataset.json.file_ending)?;
        Some(format!("{name}: {files}"))
    });
    let described: Vec<String> = described.collect();
    (!described.is_empty()).then(|| described.join("; "))
}

/// Expected properties of every case, from dataset.json.
struct CaseExpectation {
    channels: usize,
    labels: Vec<i16>,
}

fn allowed_labels(json: &DatasetJson) -> Vec<i16> {
    json.classes().into_iter().chain(json.ignore_label()).collect()
}

fn problems_of_case(case: &CaseFiles, expected: &CaseExpectation) -> Vec<String> {
    let mut problems = Problems::default();
    let images: Vec<_> = case.images.iter().map(|path| (path.as_path(), problems.header(path))).collect();
    let label = case.label.as_deref().map(|path| (path, problems.header(path)));
    if label.is_none() {
        problems.add(Path::new(&case.id), "the case has no label map");
    }

    let first = images.iter().find_map(|(path, header)| Some((*path, header.as_ref()?)));
    if let Some((first, reference)) = first {
        for (path, header) in images.iter().chain(&label) {
            if let Some(header) = header.as_ref().filter(|_| *path != first) {
                problems.compare(path, header, first, reference);
            }
        }
        let channels: Option<usize> = images.iter().map(|(_, header)| Some(header.as_ref()?.shape[0])).sum();
        if let Some(found) = channels.filter(|&found| found != expected.channels) {
            problems.add(first, &case.channel_mismatch(found, expected.channels));
        }
    }

    for (path, header) in &images {
        if header.is_some() {
            problems.check_intensities(path);
        }
    }
    if let Some((path, Some(header))) = &label {
        problems.check_labels(path, header, &expected.labels);
    }
    problems.0
}

/// Problems found in a case.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, path: &Path, defect: &str) {
        self.0.push(format!("{}: {defect}", path.display()));
    }

    /// Reads the header of a file; on failure adds a problem and returns `None`.
    fn header(&mut self, path: &Path) -> Option<ImageHeader> {
        if !path.exists() {
            self.add(path, "missing");
            return None;
        }
        image::read_header(path).map_err(|error| self.0.push(error.to_string())).ok()
    }

    fn compare(&mut self, path: &Path, header: &ImageHeader, other: &Path, reference: &ImageHeader) {
        let (shape, reference_shape) = (&header.shape[1..], &reference.shape[1..]);
        if shape != reference_shape {
            self.add(path, &format!("shape {shape:?} differs from {reference_shape:?} of {}", other.display()));
        }
        for difference in header.geometry.differences(&reference.geometry) {
            self.add(path, &format!("{difference} of {}", other.display()));
        }
    }

    fn check_intensities(&mut self, path: &Path) {
        let data = match image::read_volume(path) {
            Ok(volume) => volume.data,
            Err(error) => return self.0.push(error.to_string()),
        };
        let nan = data.iter().filter(|intensity| intensity.is_nan()).count();
        let infinite = data.iter().filter(|intensity| intensity.is_infinite()).count();
        if nan > 0 {
            self.add(path, &format!("NaN in {nan} voxels"));
        }
        if infinite > 0 {
            self.add(path, &format!("infinite in {infinite} voxels"));
        }
    }

    fn check_labels(&mut self, path: &Path, header: &ImageHeader, allowed: &[i16]) {
        if header.shape[0] != 1 {
            return self.add(path, &format!("{} channels, but a label map has one", header.shape[0]));
        }
        let labels = match image::read_labels(path) {
            Ok(map) => map.data,
            Err(error) => return self.0.push(error.to_string()),
        };
        let mut occurs = vec![false; 1 << 16];
        labels.iter().for_each(|&label| occurs[usize::from(label as u16)] = true);
        let unexpected: Vec<i16> = (i16::MIN..=i16::MAX)
            .filter(|label| occurs[usize::from(*label as u16)] && !allowed.contains(label))
            .collect();
        if !unexpected.is_empty() {
            self.add(path, &format!("labels {unexpected:?} are not in dataset.json"));
        }
    }
}
