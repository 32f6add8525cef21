//! PNG, TIFF and BMP.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nnunet_dist_fuzz::read_image;

fuzz_target!(|bytes: &[u8]| {
    let name = match bytes {
        [b'B', ..] => "image.bmp",
        [b'I' | b'M', ..] => "image.tif",
        _ => "image.png",
    };
    read_image(name, bytes);
});
