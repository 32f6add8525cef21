//! NumPy archives of probabilities: a whole archive, or the array in one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nnunet_dist::infer::ProbabilityArchive;
use nnunet_dist_fuzz::{file, in_little_memory, zipped};

fuzz_target!(|bytes: &[u8]| {
    let path = match bytes.starts_with(b"PK") {
        true => file("case.npz", bytes),
        false => file("case.npz", &zipped(&[("probabilities.npy", bytes)])),
    };
    in_little_memory(|| {
        let Ok(mut archive) = ProbabilityArchive::open(&path) else { return };
        let Ok(mut maps) = archive.maps() else { return };
        let [classes, ..] = maps.shape();
        for _ in 0..classes.min(8) {
            if maps.next_class(|_, _| {}).is_err() {
                return;
            }
        }
    });
});
