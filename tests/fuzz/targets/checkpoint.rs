//! A checkpoint folder with one file replaced by the input: SHA256SUMS if it starts with a hex digit, checkpoint.json
//! if it starts with a brace, otherwise the weights. The checksums are valid unless they are the input, as an attacker
//! can compute them.
#![no_main]

#[path = "../../common/plans.rs"]
mod plans;
#[path = "../../common/tiny_model.rs"]
mod tiny_model;

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use nnunet_dist::checkpoint::SavedModel;
use nnunet_dist_fuzz::{folder, in_little_memory};
use sha2::{Digest, Sha256};

/// The files of a complete checkpoint.
struct Whole {
    folder: PathBuf,
    header: Vec<u8>,
    weights: Vec<u8>,
}

fn whole() -> &'static Whole {
    static WHOLE: OnceLock<Whole> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let folder = folder().join("checkpoint");
        let model = tiny_model::model("3d_fullres", |_, _| {});
        tiny_model::write_checkpoint(&folder, &model, 1);
        let read = |name| fs::read(folder.join(name)).expect("just written");
        Whole { header: read("checkpoint.json"), weights: read("network.safetensors"), folder }
    })
}

fn sum_of(name: &str, bytes: &[u8]) -> String {
    let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{sum}  {name}\n")
}

// The model is made before the first input is timed.
fuzz_target!(init: { whole(); }, |bytes: &[u8]| {
    let whole = whole();
    let (mut header, mut weights, mut sums) = (whole.header.as_slice(), whole.weights.as_slice(), None);
    match bytes.first() {
        Some(b'{') => header = bytes,
        Some(first) if first.is_ascii_hexdigit() => sums = Some(bytes.to_vec()),
        _ => weights = bytes,
    }
    let right = || (sum_of("checkpoint.json", header) + &sum_of("network.safetensors", weights)).into_bytes();
    let sums = sums.unwrap_or_else(right);
    for (name, bytes) in [("checkpoint.json", header), ("network.safetensors", weights), ("SHA256SUMS", &sums)] {
        fs::write(whole.folder.join(name), bytes).expect("room for a small file");
    }
    in_little_memory(|| {
        if let Ok(model) = SavedModel::read(&whole.folder) {
            let _ = model.description.network_spec();
        }
    });
});
