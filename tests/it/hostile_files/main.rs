//! Damaged and malicious files: a reader returns an error or a value, without a panic and without allocating memory
//! that the size of the file does not justify.
//!
//! Each kind of file is read repeatedly with a few bytes changed, for `NNUNET_FUZZ_SECONDS` per kind (one second by
//! default). The seed is fixed, so that failures are reproducible. `cargo fuzz` in `tests/fuzz` searches deeper.

#[path = "../../common/counting.rs"]
mod counting;
#[path = "../../common/plans.rs"]
mod plans;
#[path = "../../common/tiny_model.rs"]
mod tiny_model;

use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ndarray::{Array3, Array4};
use nnunet_dist::checkpoint::SavedModel;
use nnunet_dist::config::RunConfig;
use nnunet_dist::dataset::{DatasetJson, Splits};
use nnunet_dist::eval::Summary;
use nnunet_dist::image::{
    Geometry, LabelMap, Volume, read_header, read_labels, read_volume, write_labels, write_volume,
};
use nnunet_dist::infer::{ProbabilityArchive, save_probabilities};
use nnunet_dist::interop;
use nnunet_dist::model::{parse_tensors, serialize_tensors};
use nnunet_dist::plan::Plans;
use nnunet_dist::postprocess::Postprocessing;
use nnunet_dist::telemetry::read_log;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use tempfile::TempDir;

mod end_to_end;

use self::counting::{MEMORY, peak_of};

/// Reads randomly changed copies of `original` with a reader that may fail only with an error.
#[track_caller]
fn survives(name: &str, original: &[u8], read: impl Fn(&Path)) {
    let seconds = std::env::var("NNUNET_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(1.0);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, original).unwrap();
    read(&path);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs_f64(seconds) {
        let changed = change(original, &mut random);
        fs::write(&path, &changed).unwrap();
        let (outcome, taken) = peak_of(|| catch_unwind(AssertUnwindSafe(|| read(&path))));
        if outcome.is_err() || taken > MEMORY {
            let kept = std::env::temp_dir().join(format!("hostile_{name}"));
            fs::write(&kept, &changed).unwrap();
            let what = if outcome.is_err() { "a panic".to_owned() } else { format!("{} MiB", taken >> 20) };
            panic!("{}: {what} after {count} files", kept.display());
        }
        count += 1;
    }
    println!("{name}: {count} files");
}

/// Makes a few changes of the most effective kinds: bits, extreme numbers, truncations, repetitions.
fn change(original: &[u8], random: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..random.random_range(1..=4) {
        if bytes.is_empty() {
            break;
        }
        // Changes in headers find the most defects.
        let reach = if random.random_bool(0.6) { bytes.len().min(512) } else { bytes.len() };
        let at = random.random_range(0..reach);
        match random.random_range(0..8) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => bytes.truncate(at),
            3 => {
                const EXTREMES: [i64; 9] = [0, 1, -1, i64::MAX, i64::MIN, 0x7fff, 0x7fff_ffff, 0xffff_ffff, 1 << 40];
                let number = EXTREMES[random.random_range(0..EXTREMES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.random_range(0..4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            4 => {
                // A digit in a text.
                let digits: Vec<usize> = (0..reach).filter(|&at| bytes[at].is_ascii_digit()).collect();
                if let Some(&at) = digits.get(random.random_range(0..digits.len().max(1))) {
                    bytes.splice(at..=at, b"99999999999"[..random.random_range(1..11)].iter().copied());
                }
            }
            5 => {
                let end = (at + random.random_range(1..64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            6 => {
                let end = (at + random.random_range(1..64)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                const WORDS: [&[u8]; 8] =
                    [b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b"\"../../x\"", b"[[[[[[[[[[[[[[[["];
                let word = WORDS[random.random_range(0..WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
        }
    }
    bytes
}

fn geometry() -> Geometry {
    Geometry { spacing: [2.0, 0.5, 0.7], origin: [1.0, -2.0, 3.0], ..Geometry::default() }
}

fn volume() -> Volume {
    let data = Array4::from_shape_fn((2, 4, 5, 6), |(c, z, y, x)| (c * 100 + z * 30 + y * 6 + x) as f32);
    Volume { data, geometry: geometry() }
}

fn read_image(path: &Path) {
    let _ = read_header(path);
    let _ = read_volume(path);
    let _ = read_labels(path);
}

/// The file that `write` makes.
fn made(name: &str, write: impl FnOnce(&Path)) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    write(&path);
    fs::read(path).unwrap()
}

#[test]
fn images() {
    for name in ["image.nii", "image.nii.gz", "image.mha", "image.nrrd"] {
        survives(name, &made(name, |path| write_volume(path, &volume()).unwrap()), read_image);
    }
    for name in ["labels.nii.gz", "labels.tif", "labels.mha"] {
        let data = Array3::from_shape_fn((4, 5, 6), |(z, y, x)| ((z + y + x) % 3) as i16);
        survives(
            name,
            &made(name, |path| write_labels(path, &LabelMap { data, geometry: geometry() }).unwrap()),
            read_image,
        );
    }
    let plane = Array3::from_shape_fn((1, 5, 6), |(_, y, x)| ((y + x) % 3) as i16);
    let png = made("plane.png", |path| {
        write_labels(path, &LabelMap { data: plane, geometry: Geometry::default() }).unwrap();
    });
    survives("plane.png", &png, read_image);
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images");
    for name in ["colour.bmp", "grey.bmp", "packed.mha", "packed.nrrd", "long.nrrd", "vector.mha", "stack_0000.tif"] {
        survives(name, &fs::read(images.join(name)).unwrap(), read_image);
    }
    // Headers that refer to other files.
    for (name, data) in [("packed.nhdr", "packed.raw.gz"), ("plain.mhd", "plain.raw")] {
        survives(name, &fs::read(images.join(name)).unwrap(), |path| {
            fs::copy(images.join(data), path.with_file_name(data)).unwrap();
            read_image(path);
        });
    }
}

#[test]
fn descriptions() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nnunet_files");
    let dataset = fs::read(files.join("3d_fullres/dataset.json")).unwrap();
    survives("dataset.json", &dataset, |path| {
        if let Ok(dataset) = DatasetJson::load(path) {
            let _ = (dataset.foreground(), dataset.num_segmentation_heads(), dataset.ignore_label());
        }
    });
    survives("plans.json", &fs::read(files.join("3d_fullres/plans.json")).unwrap(), |path| {
        if let Ok(plans) = Plans::load(path) {
            for name in ["2d", "3d_fullres", "3d_lowres"] {
                let Ok(configuration) = plans.configuration(name) else { continue };
                let _ = configuration.network_shape();
                let _ = (configuration.patch_size3(), configuration.spacing3(), configuration.is_2d());
            }
        }
    });
    survives(
        "splits_final.json",
        br#"[{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]"#,
        |path| {
            if let Ok(splits) = Splits::load(path) {
                let _ = splits.fold(1);
            }
        },
    );
    survives("config.toml", b"seed = 3\nfold = 0\n[training]\nepochs = 3\n[optimizer]\nkind = 'adam'\n", |path| {
        {
            let _ = RunConfig::load(path);
        };
    });
    survives("summary.json", SUMMARY.as_bytes(), |path| {
        if let Ok(summary) = Summary::load(path) {
            let _ = (summary.mean_dice(), summary.table());
        }
    });
    survives("log.jsonl", LOG.as_bytes(), |path| {
        let _ = read_log(path);
    });
    survives(
        "postprocessing.json",
        br#"{"postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
        "postprocessing_kwargs": [{"labels_or_regions": [1, [1, 2]]}]}"#,
        |path| {
            let _ = Postprocessing::load(path);
        },
    );
}

#[test]
fn networks_and_arrays() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nnunet_files");
    survives("checkpoint_final.pth", &fs::read(pth(&files.join("3d_fullres"))).unwrap(), |path| {
        let _ = interop::read_checkpoint(path);
        let _ = interop::read_weights(path);
    });
    let model = tiny_model::model("3d_fullres", |_, _| {});
    let weights = tiny_model::network(&model, 1).state();
    let tensors = serialize_tensors(Path::new("network"), &(), &weights).unwrap();
    survives("network.safetensors", &tensors, |path| {
        let _ = parse_tensors::<()>(path, &fs::read(path).unwrap());
        let _ = interop::read_weights(path);
    });
    let header = made("checkpoint", |path| {
        SavedModel { description: model.clone(), weights: weights.clone() }
            .write(&path.with_extension("folder"))
            .unwrap();
        fs::copy(path.with_extension("folder").join("checkpoint.json"), path).unwrap();
    });
    // The checksums are valid, as an attacker can compute them.
    survives("checkpoint.json", &header, |path| {
        let folder = path.with_extension("folder");
        SavedModel { description: model.clone(), weights: weights.clone() }.write(&folder).unwrap();
        fs::copy(path, folder.join("checkpoint.json")).unwrap();
        sign(&folder);
        if let Ok(model) = SavedModel::read(&folder) {
            let _ = model.description.network_spec();
        }
    });
    let probabilities = Array4::from_elem((3, 4, 5, 6), 0.25_f32);
    let npz = made("case.npz", |path| save_probabilities(path, &probabilities).unwrap());
    survives("case.npz", &npz, |path| {
        let Ok(mut archive) = ProbabilityArchive::open(path) else { return };
        let Ok(mut maps) = archive.maps() else { return };
        let [classes, ..] = maps.shape();
        for _ in 0..classes.min(8) {
            if maps.next_class(|_, _| {}).is_err() {
                return;
            }
        }
    });
}

/// The only checkpoint below a model folder.
fn pth(model: &Path) -> PathBuf {
    let fold = fs::read_dir(model).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    fold.join("checkpoint_final.pth")
}

/// Rewrites SHA256SUMS.
fn sign(folder: &Path) {
    use sha2::{Digest, Sha256};
    let mut sums = fs::File::create(folder.join("SHA256SUMS")).unwrap();
    for name in ["checkpoint.json", "network.safetensors"] {
        let sum: String =
            Sha256::digest(fs::read(folder.join(name)).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
        writeln!(sums, "{sum}  {name}").unwrap();
    }
}

const SUMMARY: &str = r#"{"foreground_mean": {"Dice": 0.5, "FN": 1, "FP": 2, "IoU": 0.4, "TN": 9, "TP": 3, "n_pred": 5, "n_ref": 4},
    "mean": {"1": {"Dice": 0.5, "FN": 1, "FP": 2, "IoU": 0.4, "TN": 9, "TP": 3, "n_pred": 5, "n_ref": 4}},
    "metric_per_case": [{"metrics": {"1": {"Dice": 0.5, "FN": 1, "FP": 2, "IoU": 0.4, "TN": 9, "TP": 3, "n_pred": 5,
    "n_ref": 4}}, "prediction_file": "a.nii.gz", "reference_file": "b.nii.gz"}]}"#;

const LOG: &str = r#"{"epoch":0,"train_loss":0.5,"val_loss":0.6,"pseudo_dice":[0.2,null],"ema_pseudo_dice":0.1,"lr":0.01,"samples_per_s":2.0,"step_s":1.0,"data_wait_s":0.01,"comm_s":0.0,"straggler_s":0.0,"epoch_s":100.0,"gradient_norm":1.0,"world_size":1}
"#;
