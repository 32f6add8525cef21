//! A case: the grouping of image files into cases, and reading them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::Axis;
use nnunet_image::{self as image, LabelMap, Volume};
use rayon::prelude::*;

use super::DatasetError;
use super::left_out::left_out;

/// The files of a case. They may be missing; [`super::validate`] reports missing files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseFiles {
    /// Name of the case, unique within its dataset.
    pub id: String,
    /// Image files in channel order; one file may hold several channels.
    pub images: Vec<PathBuf>,
    /// Label map; `None` for an unlabeled case.
    pub label: Option<PathBuf>,
}

/// A case in memory.
#[derive(Clone, Debug)]
pub struct Case {
    /// [`CaseFiles::id`].
    pub id: String,
    /// All channels, with the geometry of the first.
    pub image: Volume,
    /// Label map, if the case has one.
    pub label: Option<LabelMap>,
}

impl CaseFiles {
    /// Returns the total size of the image files in bytes, a proxy for the processing time of the case. Inaccessible
    /// files count as 0; reading them fails later.
    pub fn bytes(&self) -> u64 {
        self.images.iter().filter_map(|path| std::fs::metadata(path).ok()).map(|file| file.len()).sum()
    }

    /// Reads the images, which must have `channels` channels in total, and the label map.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, the images differ in shape or geometry, or the label map differs in
    /// geometry. The shape of the label map is not checked.
    pub fn load(&self, channels: usize) -> Result<Case, DatasetError> {
        let (image, label) =
            rayon::join(|| self.load_image(channels), || self.label.as_deref().map(image::read_labels).transpose());
        let case = Case { id: self.id.clone(), image: image?, label: label? };
        self.check_label_geometry(&case)?;
        Ok(case)
    }

    /// Checks that the label map is where the image is. Maps of another shape are left to the caller.
    fn check_label_geometry(&self, case: &Case) -> Result<(), DatasetError> {
        let (Some(path), Some(map), Some(first)) = (&self.label, &case.label, self.images.first()) else {
            return Ok(());
        };
        let is_comparable = map.data.shape() == &case.image.data.shape()[1..];
        match map.geometry.difference(&case.image.geometry).filter(|_| is_comparable) {
            None => Ok(()),
            Some(difference) => Err(DatasetError::invalid(path, format_args!("{difference} of {}", first.display()))),
        }
    }

    /// Reads all image files in parallel, as decompression dominates.
    fn load_image(&self, channels: usize) -> Result<Volume, DatasetError> {
        let volumes = self.images.par_iter().map(|path| image::read_volume(path)).collect::<Result<Vec<_>, _>>()?;
        let mut files = self.images.iter().zip(volumes);
        let Some((first, mut image)) = files.next() else {
            return Err(DatasetError::invalid(Path::new(&self.id), "the case has no images"));
        };
        for (path, next) in files {
            let (shape, next_shape) = (image.data.shape()[1..].to_vec(), next.data.shape()[1..].to_vec());
            image.data.append(Axis(0), next.data.view()).map_err(|_| {
                let defect = format!("shape {next_shape:?} differs from {shape:?} of {}", first.display());
                DatasetError::invalid(path, defect)
            })?;
            if let Some(difference) = next.geometry.difference(&image.geometry) {
                return Err(DatasetError::invalid(path, format_args!("{difference} of {}", first.display())));
            }
        }
        let found = image.data.len_of(Axis(0));
        if found != channels {
            return Err(DatasetError::invalid(first, self.channel_mismatch(found, channels)));
        }
        Ok(image)
    }

    pub(super) fn channel_mismatch(&self, found: usize, expected: usize) -> String {
        match self.images.len() {
            1 => format!("has {found} channels, expected {expected} here or in files that end in _0000, _0001, ..."),
            files => format!(
                "has {found} channels together with the {} other files of its case, expected {expected}",
                files - 1
            ),
        }
    }
}

/// Finds the cases in a folder of images, sorted by name, without reading the images.
///
/// In nnU-Net's naming each channel is a separate file, `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ...; a case with a
/// single file may hold all its channels in it. A folder without any `_0000` file is read as one file per case,
/// `CASE.nii.gz`, with one channel or with channels on a fourth axis, as in the Medical Segmentation Decathlon. Hidden
/// files are skipped.
///
/// If no file has this ending, cases are DICOM series: either the folder itself or each of its subfolders, named like
/// files.
///
/// # Errors
/// Returns an error if the folder cannot be read or has no such file, if a file lacks the channel number that others
/// have, or if a case has missing or extra channels.
pub fn find_images(folder: &Path, file_ending: &str, channels: usize) -> Result<Vec<CaseFiles>, DatasetError> {
    let grouped = match dicom_series(folder, file_ending)? {
        Some(series) if series.is_empty() => {
            let images = vec![folder.to_owned()];
            return Ok(vec![CaseFiles { id: folder_name(folder)?, images, label: None }]);
        }
        Some(series) => group(series, &|name| folder.join(name), channels)?,
        None => group_by_case(folder, file_ending, channels)?,
    };
    complete(grouped, channels)
}

/// Returns the subfolders with DICOM files of a folder without images, sorted; empty if the folder itself is a series.
fn dicom_series(folder: &Path, file_ending: &str) -> Result<Option<Vec<String>>, DatasetError> {
    if !stems(folder, file_ending)?.is_empty() {
        return Ok(None);
    }
    if image::holds_dicom(folder) {
        return Ok(Some(Vec::new()));
    }
    let mut series = stems(folder, "")?;
    series.retain(|name| image::holds_dicom(&folder.join(name)));
    Ok(Some(series).filter(|series| !series.is_empty()))
}

/// Groups image files into cases, sorted by name, by the rules of [`find_images`], without reading the images.
///
/// # Errors
/// Returns an error if a file has another ending, if two folders contain a case of the same name, or under the
/// conditions of [`find_images`].
pub fn group_images(files: &[PathBuf], file_ending: &str, channels: usize) -> Result<Vec<CaseFiles>, DatasetError> {
    let mut by_folder: BTreeMap<&Path, Vec<String>> = BTreeMap::new();
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let stem = name.strip_suffix(file_ending).ok_or_else(|| {
            DatasetError::invalid(file, format_args!("is not a *{file_ending} image, as used in training"))
        })?;
        by_folder.entry(file.parent().unwrap_or(Path::new(""))).or_default().push(stem.to_owned());
    }
    let mut all = BTreeMap::new();
    for (folder, stems) in by_folder {
        for (id, images) in group(stems, &|name| folder.join(format!("{name}{file_ending}")), channels)? {
            if let Some(others) = all.insert(id.clone(), images.clone()) {
                let other = others[0].display();
                return Err(DatasetError::invalid(&images[0], format_args!("has the same case name {id} as {other}")));
            }
        }
    }
    complete(all, channels)
}

/// Returns the cases; fails if a file of a case is missing or unexpected.
fn complete(images: BTreeMap<String, Vec<PathBuf>>, channels: usize) -> Result<Vec<CaseFiles>, DatasetError> {
    let mut cases = Vec::new();
    for (id, images) in images {
        if let Some(missing) = images.iter().find(|image| !image.exists()) {
            return Err(DatasetError::invalid(missing, format_args!("missing: {channels} channels per case")));
        }
        if let Some(excess) = images.get(channels) {
            return Err(DatasetError::invalid(excess, format_args!("too many: {channels} channels per case")));
        }
        cases.push(CaseFiles { id, images, label: None });
    }
    Ok(cases)
}

/// Returns the image files of each case. For a case with several files, all expected files are listed, even if missing.
pub(super) fn group_by_case(
    folder: &Path,
    file_ending: &str,
    channels: usize,
) -> Result<BTreeMap<String, Vec<PathBuf>>, DatasetError> {
    let stems = stems(folder, file_ending)?;
    if stems.is_empty() {
        let found = left_out(folder, file_ending).map_or_else(String::new, |found| format!("; it has {found}"));
        return Err(DatasetError::invalid(folder, format_args!("contains no *{file_ending} images{found}")));
    }
    group(stems, &|name| folder.join(format!("{name}{file_ending}")), channels)
}

fn group(
    stems: Vec<String>,
    path: &dyn Fn(&str) -> PathBuf,
    channels: usize,
) -> Result<BTreeMap<String, Vec<PathBuf>>, DatasetError> {
    if !stems.iter().any(|stem| matches!(split_channel(stem), Some((_, 0)))) {
        return Ok(stems.into_iter().map(|stem| (stem.clone(), vec![path(&stem)])).collect());
    }
    let mut highest: BTreeMap<&str, usize> = BTreeMap::new();
    for stem in &stems {
        let (id, channel) = split_channel(stem).ok_or_else(|| {
            let defect = "has no channel number such as _0000 before its ending, while others in the folder have";
            DatasetError::invalid(&path(stem), defect)
        })?;
        let highest = highest.entry(id).or_default();
        *highest = channel.max(*highest);
    }
    let files = |(id, highest): (&str, usize)| {
        // A single first file may hold all channels, as an RGB image does.
        let count = if highest == 0 { 1 } else { channels.max(highest + 1) };
        (id.to_owned(), (0..count).map(|channel| path(&with_channel(id, channel))).collect())
    };
    Ok(highest.into_iter().map(files).collect())
}

/// Returns the names of the files with this ending, without it, sorted; skips hidden files (`._x.nii.gz` of macOS).
pub(super) fn stems(folder: &Path, file_ending: &str) -> Result<Vec<String>, DatasetError> {
    let failed = DatasetError::io(folder);
    let mut stems = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(&failed)? {
        let name = entry.map_err(&failed)?.file_name();
        let stem = name.to_str().filter(|name| !name.starts_with('.')).and_then(|name| name.strip_suffix(file_ending));
        stems.extend(stem.map(str::to_owned));
    }
    stems.sort_unstable();
    Ok(stems)
}

/// Returns the case name of an image file: its file name without ending and channel number.
pub fn case_name<'a>(file: &'a Path, file_ending: &str) -> Option<&'a str> {
    let stem = file.file_name()?.to_str()?.strip_suffix(file_ending)?;
    Some(split_channel(stem).map_or(stem, |(id, _)| id))
}

/// Splits `case_0003` into `case` and channel 3.
fn split_channel(stem: &str) -> Option<(&str, usize)> {
    let (id, digits) = stem.rsplit_once('_')?;
    let is_channel = digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_digit()) && !id.is_empty();
    if is_channel { Some((id, digits.parse().ok()?)) } else { None }
}

/// Appends a channel number; the inverse of [`split_channel`].
pub(super) fn with_channel(id: &str, channel: usize) -> String {
    format!("{id}_{channel:04}")
}

/// Returns the name of a folder; also resolves `.`, and keeps the name of a symbolic link.
pub(super) fn folder_name(root: &Path) -> Result<String, DatasetError> {
    let absolute = match root.file_name() {
        Some(_) => root.to_owned(),
        None => root.canonicalize().map_err(DatasetError::io(root))?,
    };
    Ok(absolute.file_name().map_or_else(|| "dataset".to_owned(), |name| name.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(names: &[&str], channels: usize) -> Result<Vec<(String, usize)>, String> {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let cases = find_images(folder.path(), ".nii.gz", channels).map_err(|error| error.to_string())?;
        Ok(cases.into_iter().map(|case| (case.id, case.images.len())).collect())
    }

    #[test]
    fn channels_are_separate_files_or_an_axis() {
        let split =
            ["b_0000.nii.gz", "b_0001.nii.gz", "a_1_0001.nii.gz", "a_1_0000.nii.gz", "._a_0000.nii.gz", "a.txt"];
        assert_eq!(find(&split, 2).unwrap(), [("a_1".into(), 2), ("b".into(), 2)]);
        assert_eq!(find(&["b_0000.nii.gz"], 3).unwrap(), [("b".into(), 1)]);
        assert_eq!(
            find(&["BRATS_002.nii.gz", "x_0007.nii.gz"], 4).unwrap(),
            [("BRATS_002".into(), 1), ("x_0007".into(), 1)]
        );
    }

    #[test]
    fn a_wrong_file_is_named() {
        for (names, channels, defect) in [
            (vec!["a_0000.nii.gz", "a_0002.nii.gz"], 3, "a_0001.nii.gz: missing: 3 channels"),
            (vec!["a_0000.nii.gz", "a_0001.nii.gz"], 1, "a_0001.nii.gz: too many: 1 channels"),
            (vec!["a_0000.nii.gz", "b.nii.gz"], 1, "b.nii.gz: has no channel number"),
            (vec!["a_0000.nii"], 1, "contains no *.nii.gz images"),
        ] {
            let error = find(&names, channels).unwrap_err();
            assert!(error.contains(defect), "{names:?}: {error}");
        }
    }
}
