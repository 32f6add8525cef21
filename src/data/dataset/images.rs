//! Which files of a folder make up a case.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{CaseFiles, DatasetError};
use nnunet_image as image;

/// The cases in a folder of images, sorted by name; nothing in them is read yet.
///
/// In nnU-Net's naming each channel is a file of its own, `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, …; a case with a single
/// file may hold all its channels in that. A folder without any `_0000` file is read as one file per case,
/// `CASE.nii.gz`, of one channel or of a fourth axis of channels, as in the Medical Segmentation Decathlon. Hidden files
/// are skipped.
///
/// Where there is no file with this ending, cases are series of DICOM files: the folder itself is one, or each folder in
/// it, which are named as files are.
///
/// # Errors
/// The folder cannot be read or has no such file, a file lacks the channel number that others have, or a channel of a
/// case is missing or too many.
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

/// The folders of DICOM files in a folder without images, sorted; none where the folder is such a one itself.
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

/// The cases that image files make up, sorted by name, by the rules of [`find_images`]; nothing in them is read yet.
///
/// # Errors
/// A file has another ending, or as those of [`find_images`]; or two folders have a case of the same name.
pub fn group_images(files: &[PathBuf], file_ending: &str, channels: usize) -> Result<Vec<CaseFiles>, DatasetError> {
    let mut by_folder: BTreeMap<&Path, Vec<String>> = BTreeMap::new();
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let stem = name.strip_suffix(file_ending).ok_or_else(|| {
            DatasetError::invalid(file, format_args!("is no image *{file_ending}, as the network was trained with"))
        })?;
        by_folder.entry(file.parent().unwrap_or(Path::new(""))).or_default().push(stem.to_owned());
    }
    let mut all = BTreeMap::new();
    for (folder, stems) in by_folder {
        for (id, images) in group(stems, &|name| folder.join(format!("{name}{file_ending}")), channels)? {
            if let Some(others) = all.insert(id.clone(), images.clone()) {
                let other = others[0].display();
                return Err(DatasetError::invalid(&images[0], format_args!("is a case {id} as well as {other}")));
            }
        }
    }
    complete(all, channels)
}

/// Cases all of whose files are there.
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

/// The image files of each case. Where a case has several, all that it has to have are named, whether they exist or not.
pub(super) fn group_by_case(
    folder: &Path,
    file_ending: &str,
    channels: usize,
) -> Result<BTreeMap<String, Vec<PathBuf>>, DatasetError> {
    let stems = stems(folder, file_ending)?;
    if stems.is_empty() {
        return Err(DatasetError::invalid(folder, format_args!("holds no image *{file_ending}")));
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
        // A lone first file may hold all channels, as an RGB image does.
        let count = if highest == 0 { 1 } else { channels.max(highest + 1) };
        (id.to_owned(), (0..count).map(|channel| path(&with_channel(id, channel))).collect())
    };
    Ok(highest.into_iter().map(files).collect())
}

/// The file names with this ending, without it; sorted, hidden files (`._x.nii.gz` of macOS) left out.
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

/// The name of the case that an image file is of: the file's, without its ending and channel.
pub fn case_name<'a>(file: &'a Path, file_ending: &str) -> Option<&'a str> {
    let stem = file.file_name()?.to_str()?.strip_suffix(file_ending)?;
    Some(split_channel(stem).map_or(stem, |(id, _)| id))
}

/// `case_0003` is channel 3 of `case`.
fn split_channel(stem: &str) -> Option<(&str, usize)> {
    let (id, digits) = stem.rsplit_once('_')?;
    let is_channel = digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_digit()) && !id.is_empty();
    if is_channel { Some((id, digits.parse().ok()?)) } else { None }
}

/// The inverse of [`split_channel`].
pub(super) fn with_channel(id: &str, channel: usize) -> String {
    format!("{id}_{channel:04}")
}

/// Also of `.` and of folders behind links, which go by the name the user sees.
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
    fn channels_are_files_or_axes() {
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
            (vec!["a_0000.nii"], 1, "holds no image *.nii.gz"),
        ] {
            let error = find(&names, channels).unwrap_err();
            assert!(error.contains(defect), "{names:?}: {error}");
        }
    }
}
