//! `dataset.json` of nnU-Net v2 and of the Decathlon.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nnunet_dist::dataset::DatasetJson;
use nnunet_dist_fuzz::{file, in_little_memory};

fuzz_target!(|bytes: &[u8]| {
    let path = file("dataset.json", bytes);
    in_little_memory(|| {
        if let Ok(dataset) = DatasetJson::load(&path) {
            let _ = (dataset.foreground(), dataset.num_segmentation_heads(), dataset.ignore_label());
        }
    });
});
