//! Import and export of nnU-Net v2 models; training from pretrained weights of either program; import of preprocessed
//! cases.
//!
//! `nnunet_files/` was written by nnU-Net itself, see `make.py` there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use ndarray::{Array5, ArrayD, Axis};
use nnunet_dist::backend::Cpu;
use nnunet_dist::checkpoint::SavedModel;
use nnunet_dist::dataset::{Dataset, Splits};
use nnunet_dist::image::{Geometry, Volume, write_volume};
use nnunet_dist::interop::{self, Destination, PreprocessedSource};
use nnunet_dist::model::{UNet, batch_tensor};
use nnunet_dist::plan::Plans;
use nnunet_dist::preprocess::Preprocessor;
use nnunet_dist::store::{CaseStore, NativeStore, read_case_properties};
use nnunet_dist::work::{RunDir, WorkDir};

use crate::work::{Workshop, program};

const MODELS: [&str; 2] = ["3d_fullres", "2d"];

fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nnunet_files")
}

fn checkpoint(model: &str) -> PathBuf {
    files().join(model).join("fold_0/checkpoint_final.pth")
}

/// Logits `(class, z, y, x)` for the input that `make.py` gave its network.
fn logits(model: SavedModel) -> ArrayD<f32> {
    let network =
        UNet::<Cpu>::with_state(model.description.network_spec().unwrap(), &model.weights, &Default::default());
    let network = network.unwrap();
    let configuration = model.description.plans.configuration(&model.description.configuration).unwrap();
    let [z, y, x] = configuration.patch_size3();
    let image = Array5::from_shape_fn((1, 1, z, y, x), |(_, _, k, j, i)| (0.05 * ((k * y + j) * x + i) as f32).sin());
    let input = batch_tensor(image.view(), network.input_format(), &Default::default());
    let output = network.forward(input, 1).remove(0).into_data();
    let classes = network.spec().classes;
    let output = Array5::from_shape_vec((1, z, y, x, classes), output.into_vec().unwrap()).unwrap();
    output.permuted_axes([0, 4, 1, 2, 3]).index_axis_move(Axis(0), 0).into_dyn()
}

#[track_caller]
fn assert_close(ours: &ArrayD<f32>, theirs: &ArrayD<f32>) {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() <= 1e-5 * largest, "{ours} for {theirs} (largest {largest})");
    }
}

/// The standard output of a command that must succeed.
#[track_caller]
fn succeed(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The error line of a command that must exit with code 3.
#[track_caller]
fn fail(output: Output) -> String {
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{message}");
    let error = message.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{message}"));
    error.to_owned()
}

#[test]
fn an_imported_network_has_the_logits_of_nnunet() {
    for (name, mirror_axes) in [("3d_fullres", vec![0, 1, 2]), ("2d", vec![1, 2])] {
        let model = interop::read_checkpoint(&checkpoint(name)).unwrap();
        assert_eq!((model.description.configuration.as_str(), &model.description.mirror_axes), (name, &mirror_axes));
        let theirs: ArrayD<f32> = ndarray_npy::read_npy(files().join(name).join("logits.npy")).unwrap();
        assert_close(&logits(model), &theirs);
    }
}

#[test]
fn a_checkpoint_outside_its_folder_has_its_own_plans() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("a.pth");
    fs::copy(checkpoint("2d"), &alone).unwrap();
    let [alone, at_home] = [alone, checkpoint("2d")].map(|path| interop::read_checkpoint(&path).unwrap());
    assert_eq!(alone.weights, at_home.weights);
    assert_eq!(alone.description, at_home.description);
}

#[test]
fn an_imported_model_folder_predicts_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let [imported, images, output] = ["imported", "images", "output"].map(|name| folder.path().join(name));
    let data = ndarray::Array4::from_shape_fn((1, 12, 14, 10), |(_, z, y, x)| ((z * 3 + y * 5 + x * 7) % 11) as f32);
    write_volume(&images.join("a_0000.nii.gz"), &Volume { data, geometry: Geometry::default() }).unwrap();
    for model in MODELS {
        let printed = succeed(
            program().arg("import").arg("-i").arg(files().join(model)).arg("-o").arg(&imported).output().unwrap(),
        );
        let run = PathBuf::from(printed.trim());
        assert_eq!(run, imported.join("fold_0"));
        let mut predict = program();
        predict.arg("predict").arg("-r").arg(&run).arg("-i").arg(&images).arg("-o").arg(output.join(model));
        succeed(predict.output().unwrap());
        assert!(output.join(model).join("a.nii.gz").exists());
    }
}

#[test]
fn folds_of_a_model_become_runs_of_a_work_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (model, work) = (folder.path().join("model"), WorkDir::new(folder.path().join("work")));
    for fold in ["fold_0", "fold_all"] {
        fs::create_dir_all(model.join(fold)).unwrap();
    }
    for name in ["plans.json", "dataset.json"] {
        fs::copy(files().join("3d_fullres").join(name), model.join(name)).unwrap();
    }
    fs::copy(checkpoint("3d_fullres"), model.join("fold_0/checkpoint_best.pth")).unwrap();
    let import = || interop::import(&model, &Destination::Work(work.clone()));
    let error = import().unwrap_err().to_string();
    assert!(error.contains("fold_all") && error.contains("checkpoint_final.pth"), "{error}");
    fs::copy(checkpoint("3d_fullres"), model.join("fold_all/checkpoint_final.pth")).unwrap();
    let runs = import().unwrap();
    let expected = ["fold_0", "fold_all"].map(|fold| RunDir::new(work.root().join("runs/3d_fullres").join(fold)));
    assert_eq!(runs, expected);
    assert!(runs[0].checkpoint_best().exists() && runs[0].checkpoint_latest().exists());
    assert!(!runs[1].checkpoint_best().exists() && runs[1].checkpoint_latest().exists());
}

#[test]
fn an_exported_model_folder_is_the_imported_one_again() {
    let folder = tempfile::tempdir().unwrap();
    for name in MODELS {
        let model = interop::read_checkpoint(&checkpoint(name)).unwrap();
        let exported = folder.path().join(name);
        let path = interop::export(&model, "3", &exported).unwrap();
        assert_eq!(path, exported.join("fold_3/checkpoint_final.pth"));
        assert_eq!(interop::read_checkpoint(&path).unwrap(), model);
        // Also without the folder.
        let alone = folder.path().join("alone.pth");
        fs::copy(&path, &alone).unwrap();
        assert_eq!(interop::read_checkpoint(&alone).unwrap(), model);
        interop::export(&model, "all", &exported).unwrap();
    }
    let other = interop::read_checkpoint(&checkpoint("2d")).unwrap();
    let error = interop::export(&other, "0", &folder.path().join("3d_fullres")).unwrap_err().to_string();
    assert!(error.contains("plans.json: belongs to a model with a different configuration"), "{error}");
}

#[test]
fn exports_of_a_run_hold_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    for name in MODELS {
        let run = RunDir::new(folder.path().join(name).join("fold_2"));
        let model = interop::read_checkpoint(&checkpoint(name)).unwrap();
        model.write(&run.checkpoint_latest()).unwrap();
        let export = |format: &str, to: &Path| {
            let mut command = program();
            command.arg("export").arg("-r").arg(run.root()).args(["--to", format, "-o"]).arg(to);
            succeed(command.output().unwrap())
        };
        let to = folder.path().join("exported");
        assert!(export("pth", &to.join(name)).trim().ends_with("fold_2/checkpoint_final.pth"));
        let weights = to.join(format!("{name}.safetensors"));
        export("safetensors", &weights);
        for file in [weights, to.join(name).join("fold_2/checkpoint_final.pth"), run.checkpoint_latest()] {
            let mut read = interop::read_weights(&file).unwrap();
            read.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
            assert_eq!(read, model.weights, "{}", file.display());
        }
    }
}

/// Names of the nodes' operators, and the bytes of all weights, read by the wire format alone.
fn onnx_contents(bytes: &[u8]) -> (Vec<String>, usize) {
    let graph = fields(bytes).into_iter().find(|(field, _)| *field == 7).unwrap().1;
    let (mut operators, mut weights) = (Vec::new(), 0);
    for (field, contents) in fields(graph) {
        let inner = |wanted: u64| fields(contents).into_iter().find(|(field, _)| *field == wanted).unwrap().1;
        match field {
            1 => operators.push(String::from_utf8(inner(4).to_vec()).unwrap()),
            5 => weights += inner(9).len(),
            _ => {}
        }
    }
    (operators, weights)
}

/// The fields of a protocol buffer; empty for numbers.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let len = match key & 7 {
            0 => {
                varint(&mut bytes);
                0
            }
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, &bytes[..len]));
        bytes = &bytes[len..];
    }
    fields
}

/// `benches/peers/roundtrip.py` checks that a runtime computes the same logits.
#[test]
fn an_onnx_file_has_all_layers_and_weights() {
    let folder = tempfile::tempdir().unwrap();
    for name in MODELS {
        let model = interop::read_checkpoint(&checkpoint(name)).unwrap();
        let path = folder.path().join("network.onnx");
        interop::write_onnx(&model, &path).unwrap();
        let (operators, weights) = onnx_contents(&fs::read(&path).unwrap());
        let block = ["Conv", "InstanceNormalization", "LeakyRelu"];
        let expected =
            [&block[..], &block, &block, &["ConvTranspose", "Concat"], &block, &block, &["Conv", "Identity"]];
        assert_eq!(operators, expected.concat());
        assert_eq!(weights, 4 * model.weights.iter().map(|tensor| tensor.spec.len()).sum::<usize>());
    }
}

#[test]
fn a_damaged_checkpoint_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.pth");
    let whole = fs::read(checkpoint("2d")).unwrap();
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        interop::read_checkpoint(&path)
    };
    for length in [0, 3, 100, whole.len() / 2, whole.len() - 1] {
        let error = read(&whole[..length]).unwrap_err().to_string();
        assert!(error.contains("broken.pth: "), "{error}");
    }
    // No change leads to a panic; the storages and the pickle have checksums.
    for at in (0..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        if let Ok(model) = read(&bytes) {
            assert_eq!(model.weights, interop::read_checkpoint(&checkpoint("2d")).unwrap().weights);
        }
    }
    fs::write(&path, "not a checkpoint").unwrap();
    let output =
        program().arg("import").arg("-i").arg(&path).arg("-o").arg(folder.path().join("run")).output().unwrap();
    let error = fail(output);
    assert!(error.contains("broken.pth: not a complete PyTorch file"), "{error}");
}

#[test]
fn training_begins_with_given_weights_and_names_reinitialized_heads() {
    let workshop = Workshop::new();
    let first = workshop.run_dir("first");
    succeed(workshop.train(&first).args(["--epochs", "1"]).output().unwrap());
    let trained = SavedModel::read(&first.checkpoint_latest()).unwrap();
    let model_folder = workshop.path("model");
    let pth = interop::export(&trained, "0", &model_folder).unwrap();

    // A step of length 0 does not change the given weights.
    for (name, file) in [("own", first.checkpoint_latest()), ("pth", pth.clone())] {
        let second = workshop.run_dir(name);
        let mut train = workshop.train(&second);
        train.args(["--epochs", "1", "--iters-per-epoch", "1", "--lr", "1e-30", "--pretrained-weights"]).arg(file);
        succeed(train.output().unwrap());
        assert_eq!(SavedModel::read(&second.checkpoint_latest()).unwrap().weights, trained.weights, "{name}");
    }

    let mut other = trained.clone();
    for tensor in other.weights.iter_mut().filter(|tensor| tensor.spec.name.contains("seg_layers")) {
        tensor.spec.shape[0] += 1;
        tensor.values.resize(tensor.spec.len(), 0.5);
    }
    let other_classes = workshop.path("other_classes");
    other.clone().write(&other_classes).unwrap();
    let run = workshop.run_dir("heads");
    let mut train = workshop.train(&run);
    train
        .args(["--epochs", "1", "--iters-per-epoch", "1", "--lr", "1e-30", "--pretrained-weights"])
        .arg(&other_classes);
    let output = train.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("reinitialized") && said.contains("decoder.seg_layers.0.weight"), "{said}");
    succeed(output);
    let begun = SavedModel::read(&run.checkpoint_latest()).unwrap().weights;
    for (begun, trained) in begun.iter().zip(&trained.weights) {
        // The lowest head is not trained, so its weights are still those of the seed.
        let is_head = begun.spec.name.contains("seg_layers");
        if !is_head || begun.spec.name == "decoder.seg_layers.1.weight" {
            assert_eq!(begun.values == trained.values, !is_head, "{}", begun.spec.name);
        }
    }

    let stem = &mut other.weights.iter_mut().find(|tensor| tensor.spec.name.starts_with("encoder")).unwrap();
    stem.spec.shape[0] += 1;
    stem.values.resize(stem.spec.len(), 0.5);
    let name = stem.spec.name.clone();
    let misfit = workshop.path("misfit");
    other.write(&misfit).unwrap();
    let train = |flags: &[&str], file: &Path| {
        let mut train = workshop.train(&workshop.run_dir("refused"));
        train.args(["--epochs", "1", "--pretrained-weights"]).arg(file).args(flags).output().unwrap()
    };
    let error = fail(train(&[], &misfit));
    assert!(error.contains(&name) && error.contains("has shape [9]") && error.contains("requires [8]"), "{error}");
    let error = fail(train(&["--resume"], &pth));
    assert!(error.contains("--pretrained-weights starts a new run"), "{error}");

    let imported = workshop.run_dir("imported");
    interop::import(&pth, &Destination::Folder(imported.root().to_owned())).unwrap();
    let error = fail(workshop.train(&imported).arg("--resume").output().unwrap());
    assert!(error.contains("start a new run with --pretrained-weights"), "{error}");
}

#[test]
fn imported_preprocessed_cases_equal_our_own() {
    let folder = tempfile::tempdir().unwrap();
    let work = WorkDir::new(folder.path().join("work"));
    let source = files().join("preprocessed");
    let mut import = program();
    import.arg("import").arg("--preprocessed").arg(&source).arg("-w").arg(work.root());
    let printed = succeed(import.output().unwrap());
    assert!(printed.contains("nnUNetPlans_3d_fullres: 1 cases"), "{printed}");

    let plans = Plans::load(&work.plans()).unwrap();
    let raw = Dataset::open(&files().join("raw")).unwrap();
    let case = raw.cases[0].load(1).unwrap();
    let expected = Preprocessor::new(&plans, "3d_fullres", &raw.json).unwrap().run(&case).unwrap();

    let store_folder = work.preprocessed("nnUNetPlans_3d_fullres");
    let mut properties = read_case_properties(&store_folder, "case").unwrap();
    let expected_geometry = &expected.properties.geometry;
    let numbers =
        |geometry: &Geometry| [&geometry.spacing[..], &geometry.origin, geometry.direction.as_flattened()].concat();
    for (ours, theirs) in numbers(&properties.geometry).into_iter().zip(numbers(expected_geometry)) {
        assert!((ours - theirs).abs() < 1e-5, "{:?} for {expected_geometry:?}", properties.geometry);
    }
    properties.geometry = expected_geometry.clone();
    assert_eq!(properties, expected.properties);

    let store = NativeStore::open(&store_folder).unwrap();
    let info = store.info("case").unwrap();
    let mut patch = info.blank_patch(info.shape);
    store.read_patch("case", [0; 3], &mut patch).unwrap();
    assert_eq!(Some(patch.labels), expected.labels);
    assert_close(&patch.data.into_dyn(), &expected.data.into_dyn());

    let splits = Splits::load(&work.splits()).unwrap();
    assert_eq!(splits.fold(0).unwrap().0, ["case"]);
    let labels = Dataset::open(&nnunet_dist::work::Source::load(&work).unwrap().dataset).unwrap();
    let label = labels.cases[0].label.as_ref().unwrap();
    assert_eq!(fs::read(label).unwrap(), fs::read(files().join("raw/labelsTr/case.nii.gz")).unwrap());

    // The given raw dataset is used.
    let source = PreprocessedSource { folder: &source, plans: "nnUNetPlans", raw: Some(&files().join("raw")) };
    interop::import_preprocessed(&source, &work, &|_| ()).unwrap();
    let link = nnunet_dist::work::Source::load(&work).unwrap().dataset;
    assert_eq!(link, files().join("raw").canonicalize().unwrap());
}

#[test]
fn damaged_preprocessed_cases_are_named_and_blosc2_is_left_to_preprocess() {
    let folder = tempfile::tempdir().unwrap();
    let (source, work) = (folder.path().join("source"), folder.path().join("work"));
    let cases = source.join("nnUNetPlans_3d_fullres");
    let gt = source.join("gt_segmentations");
    [&cases, &gt].into_iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
    let original = files().join("preprocessed");
    for name in ["nnUNetPlans.json", "dataset.json"] {
        fs::copy(original.join(name), source.join(name)).unwrap();
    }
    let import = || {
        let mut command = program();
        command.arg("import").arg("--preprocessed").arg(&source).arg("-w").arg(&work).output().unwrap()
    };
    let [pkl, npz] = ["case.pkl", "case.npz"].map(|name| cases.join(name));
    let original_of = |name: &str| fs::read(original.join("nnUNetPlans_3d_fullres").join(name)).unwrap();
    fs::write(&pkl, &original_of("case.pkl")[..500]).unwrap();
    fs::write(&npz, original_of("case.npz")).unwrap();
    assert!(fail(import()).contains("case.pkl: damaged pickle, byte"));
    fs::write(&pkl, original_of("case.pkl")).unwrap();
    fs::write(&npz, &original_of("case.npz")[..1000]).unwrap();
    assert!(fail(import()).contains("case.npz: data: "));

    fs::remove_file(&npz).unwrap();
    fs::write(cases.join("case.b2nd"), "").unwrap();
    let output = import();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Blosc2") && said.contains("nnunet-dist preprocess"), "{said}");
    assert!(succeed(output).contains(": 0 cases"));
}
