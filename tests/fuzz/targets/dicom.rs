//! A series of one DICOM file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nnunet_dist::image::{read_header, read_series};
use nnunet_dist_fuzz::{file, folder, in_little_memory};

fuzz_target!(|bytes: &[u8]| {
    file("slice.dcm", bytes);
    in_little_memory(|| {
        let _ = read_header(folder());
        let _ = read_series(folder(), None);
    });
});
