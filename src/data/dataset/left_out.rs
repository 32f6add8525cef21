//! Files of an image folder that are not read because of their names.

use std::ffi::OsStr;
use std::path::Path;

use nnunet_image::{holds_dicom, image_ending};

/// Maximum number of names in a message.
const LISTED: usize = 10;

/// Endings of files beside images that are not images.
const NOT_IMAGES: [&str; 12] =
    [".json", ".txt", ".csv", ".tsv", ".md", ".pdf", ".xml", ".log", ".npz", ".pkl", ".raw", ".zraw"];

/// Describes the files of a folder that look like images but are not read as such, because they have another ending than
/// `file_ending` or a name that is not UTF-8; `None` if there are none.
///
/// Hidden files, parts of a header/image pair and other file types are not mentioned. An unreadable folder has no files;
/// reading its images fails later.
pub fn left_out(folder: &Path, file_ending: &str) -> Option<String> {
    let mut other_ending = Vec::new();
    let mut not_utf8 = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        match name.to_str() {
            Some(name) if name.starts_with('.') || name.ends_with(file_ending) => {}
            Some(name) => {
                let is_image = image_ending(name).is_some() || has_channel(name);
                if is_image && !is_second_file(name, file_ending) || holds_dicom(&entry.path()) {
                    other_ending.push(name.to_owned());
                }
            }
            None => not_utf8.push(escaped(&name)),
        }
    }
    let parts = [
        (other_ending, format!("not *{file_ending}, the file_ending of the dataset")),
        (not_utf8, "name is not UTF-8; rename".to_owned()),
    ];
    let parts = parts.into_iter().filter(|(names, _)| !names.is_empty());
    let parts: Vec<String> = parts.map(|(names, reason)| format!("{} ({reason})", listed(names))).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Whether the name has a channel number, such as `_0000`, in front of an ending that may be of an image.
fn has_channel(name: &str) -> bool {
    let lower = name.to_lowercase();
    let channel = |at: usize| {
        let digits = name.as_bytes().get(at + 1..at + 5);
        let is_number = digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_digit));
        is_number && name.as_bytes().get(at + 5) == Some(&b'.')
    };
    !NOT_IMAGES.iter().any(|ending| lower.ends_with(ending)) && name.match_indices('_').any(|(at, _)| channel(at))
}

/// Whether the file is the voxel file of a header.
fn is_second_file(name: &str, file_ending: &str) -> bool {
    file_ending.starts_with(".hdr") && (name.ends_with(".img") || name.ends_with(".img.gz"))
        || file_ending.starts_with(".img") && (name.ends_with(".hdr") || name.ends_with(".hdr.gz"))
}

/// Joins names, sorted, up to a limit.
pub(super) fn listed(mut names: Vec<String>) -> String {
    names.sort_unstable();
    let more = if names.len() > LISTED { format!(", and {} more", names.len() - LISTED) } else { String::new() };
    names.truncate(LISTED);
    format!("{}{more}", names.join(", "))
}

/// A name with its bytes that are not UTF-8 as `\xe9`.
fn escaped(name: &OsStr) -> String {
    name.as_encoded_bytes().utf8_chunks().fold(String::new(), |mut text, chunk| {
        text += chunk.valid();
        chunk.invalid().iter().for_each(|byte| text += &format!("\\x{byte:02x}"));
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn folder(names: &[&[u8]]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(OsStr::from_bytes(name)), "").unwrap();
        }
        folder
    }

    #[test]
    fn images_with_other_endings_and_names_are_described() {
        let names: [&[u8]; 11] = [
            b"a_0000.nii.gz",
            b"a_0000.json",
            b"e_0000.nii.gz.part",
            b"f_0001.jpg",
            b"b_0000.nii",
            b"c_0000.NII.GZ",
            b"caf\xe9_0000.nii.gz",
            b"d.mha",
            b"notes.txt",
            b"dataset.json",
            b"._a_0000.nii",
        ];
        let found = left_out(folder(&names).path(), ".nii.gz").unwrap();
        let expected = "b_0000.nii, c_0000.NII.GZ, d.mha, e_0000.nii.gz.part, f_0001.jpg (not *.nii.gz, the file_ending of the dataset); \
                        caf\\xe9_0000.nii.gz (name is not UTF-8; rename)";
        assert_eq!(found, expected);
    }

    #[test]
    fn a_folder_of_one_kind_leaves_nothing_out() {
        let names: [&[u8]; 3] = [b"a_0000.hdr", b"a_0000.img", b"readme.md"];
        assert_eq!(left_out(folder(&names).path(), ".hdr"), None);
        assert_eq!(left_out(Path::new("/nowhere"), ".nii"), None);
        let many: Vec<String> = (0..14).map(|number| format!("{number:02}.nii")).collect();
        let many: Vec<&[u8]> = many.iter().map(|name| name.as_bytes()).collect();
        assert!(left_out(folder(&many).path(), ".mha").unwrap().contains("09.nii, and 4 more (not *.mha"));
    }
}
