//! NIfTI: single files, plain and compressed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nnunet_dist_fuzz::read_image;

fuzz_target!(|bytes: &[u8]| {
    let name = if bytes.starts_with(&[0x1f, 0x8b]) { "image.nii.gz" } else { "image.nii" };
    read_image(name, bytes);
});
