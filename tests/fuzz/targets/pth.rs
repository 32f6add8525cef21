//! PyTorch files: a whole archive, or the pickle of one with storages of 64 bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nnunet_dist::interop;
use nnunet_dist_fuzz::{file, in_little_memory, zipped};

fuzz_target!(|bytes: &[u8]| {
    let path = match bytes.starts_with(b"PK") {
        true => file("checkpoint.pth", bytes),
        false => {
            let storage = [1; 64];
            let entries: [(&str, &[u8]); 4] =
                [("a/data.pkl", bytes), ("a/byteorder", b"little"), ("a/data/0", &storage), ("a/data/1", &storage)];
            file("checkpoint.pth", &zipped(&entries))
        }
    };
    in_little_memory(|| {
        let _ = interop::read_checkpoint(&path);
        let _ = interop::read_weights(&path);
    });
});
