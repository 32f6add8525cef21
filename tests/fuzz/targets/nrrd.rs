//! Text headers: NRRD and MetaImage.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nnunet_dist_fuzz::read_image;

fuzz_target!(|bytes: &[u8]| {
    let name = if bytes.starts_with(b"NRRD") { "image.nrrd" } else { "image.mha" };
    read_image(name, bytes);
});
