//! NIfTI images of all units, dimensions and forms are predicted, and nibabel and SimpleITK see the label maps on the
//! images (`tests/nifti/matrix.py`).

use std::path::Path;
use std::process::Command;

use crate::skip::skip;
use crate::tiny_model;
use crate::work::program;

/// Python with nibabel and SimpleITK; `make test` creates one.
const PYTHON: &str = "NNUNET_NIFTI_PYTHON";

#[test]
fn label_maps_lie_on_their_images_for_other_readers() {
    let python = std::env::var_os(PYTHON).unwrap_or_default();
    if !Path::new(&python).is_file() {
        return skip(format!("{PYTHON} does not name a Python with nibabel and SimpleITK"));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nifti/matrix.py");
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "{text}");
    };
    run(Command::new(&python).arg(&script).arg("make").arg(path("images")));
    let model = tiny_model::model("3d_fullres", |_, dataset| dataset.file_ending = ".nii".into());
    tiny_model::write_checkpoint(&path("run/checkpoint_latest"), &model, 1);
    let mut predict = program();
    predict.arg("predict").arg("-r").arg(path("run")).arg("-i").arg(path("images")).arg("-o").arg(path("labels"));
    run(predict.args(["--no-tta", "-q"]));
    run(Command::new(&python).arg(&script).arg("check").arg(path("images")).arg(path("labels")));
}
