#!/usr/bin/env python3
"""Writes the files in this folder with nnU-Net v2 itself; small enough for the repository.

    pip install nnunetv2 && tests/nnunet_files/make.py

`3d_fullres/` and `2d/` are model folders: `plans.json`, `dataset.json`, `fold_0/checkpoint_final.pth` of nnU-Net's trainer
after one step of the optimizer, and `logits.npy`, the network's output `(class, z, y, x)` or `(class, y, x)` for the input
sin(0.05 i), i counting the voxels.

`preprocessed/` is a dataset of one case as nnU-Net up to 2.5 preprocessed it, and `raw/` its raw data: an oblique
image with an empty border; the plans transpose its axes.
"""
import json
import os
import pathlib
import tempfile

for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ[variable] = tempfile.mkdtemp()
os.environ["nnUNet_compile"] = "false"

import numpy as np
import SimpleITK
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

HERE = pathlib.Path(__file__).parent
DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
           "numTraining": 5, "file_ending": ".nii.gz"}
PATCH = 8


def configuration(axes):
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    stages = [[3] * axes, [1] * (axes - 2) + [3, 3]]
    return {
        "data_identifier": f"nnUNetPlans_{axes}d", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [PATCH] * axes, "median_image_size_in_voxels": [36.0, 50.0, 35.0][3 - axes:],
        "spacing": [1.0] * axes, "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling | {"order": 3},
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2, "features_per_stage": [4, 6], "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
                "kernel_sizes": stages, "strides": [[1] * axes, [2] * axes], "n_conv_per_stage": [2, 1],
                "n_conv_per_stage_decoder": [2], "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True}},
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]},
        "batch_dice": True}


def plans(axes):
    moments = {"max": 5e4, "mean": 2e4, "median": 2e4, "min": 7.0, "percentile_00_5": 9.0, "percentile_99_5": 4e4,
               "std": 1e4}
    return {
        "dataset_name": "Dataset004_Hippocampus", "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [36, 50, 35], "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {("2d" if axes == 2 else "3d_fullres"): configuration(axes)},
        "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": moments}}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def make_model(axes):
    torch.manual_seed(axes)
    # The trainer detects the file format of its cases.
    cases = pathlib.Path(os.environ["nnUNet_preprocessed"]) / "Dataset004_Hippocampus" / f"nnUNetPlans_{axes}d"
    cases.mkdir(parents=True)
    (cases / "case.npz").touch()
    name = "2d" if axes == 2 else "3d_fullres"
    trainer = nnUNetTrainer(plans(axes) | {"continue_training": False}, name, 0, DATASET, torch.device("cpu"))
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    data = torch.sin(0.05 * torch.arange(PATCH ** axes, dtype=torch.float32)).reshape(1, 1, *[PATCH] * axes)
    for output in trainer.network(data):
        output.square().mean().backward(retain_graph=True)
    for parameter in trainer.network.parameters():
        # Biases before a norm have no gradient; any value shows that they are imported.
        torch.nn.init.normal_(parameter.grad, std=3.0)
    trainer.optimizer.step()
    for key in trainer.logger.local_logger.my_fantastic_logging:
        trainer.logger.log(key, [np.float32(0.25)] * 2 if key == "dice_per_class_or_region" else np.float64(0.5), 0)

    folder = HERE / name
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(str(folder / "fold_0" / "checkpoint_final.pth"))
    write(folder / "plans.json", plans(axes))
    write(folder / "dataset.json", DATASET)
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    with torch.no_grad():
        np.save(folder / "logits.npy", trainer.network(data)[0].numpy())


def make_preprocessed():
    random = np.random.RandomState(1)
    shape = 9, 12, 14
    image, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    image[1:8, 2:11, 1:12] = random.uniform(50, 200, (7, 9, 11)).round()
    labels[3:6, 4:8, 3:9], labels[5:7, 4:9, 5:8] = 1, 2
    angle = 0.3
    direction = [np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1]
    for name, array in (("imagesTr/case_0000.nii.gz", image), ("labelsTr/case.nii.gz", labels)):
        volume = SimpleITK.GetImageFromArray(array)
        volume.SetSpacing((0.8, 1.0, 2.5))
        volume.SetOrigin((-10.0, 20.0, 5.5))
        volume.SetDirection(direction)
        path = HERE / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(volume, str(path), True)
    dataset = DATASET | {"numTraining": 1}
    write(HERE / "raw" / "dataset.json", dataset)

    folder = HERE / "preprocessed"
    described = plans(3) | {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    described["configurations"]["3d_fullres"] |= {"spacing": [1.0, 2.0, 1.1], "data_identifier": "nnUNetPlans_3d_fullres"}
    write(folder / "nnUNetPlans.json", described)
    write(folder / "dataset.json", dataset)
    write(folder / "splits_final.json", [{"train": ["case"], "val": []}])
    gt = folder / "gt_segmentations"
    gt.mkdir(exist_ok=True)
    (gt / "case.nii.gz").write_bytes((HERE / "raw/labelsTr/case.nii.gz").read_bytes())
    manager = PlansManager(described)
    data, seg, properties = DefaultPreprocessor(verbose=False).run_case(
        [str(HERE / "raw/imagesTr/case_0000.nii.gz")], str(HERE / "raw/labelsTr/case.nii.gz"), manager,
        manager.get_configuration("3d_fullres"), dataset)
    cases = folder / "nnUNetPlans_3d_fullres"
    cases.mkdir(exist_ok=True)
    nnUNetDatasetNumpy.save_case(data.astype(np.float32), seg.astype(np.int8), properties, str(cases / "case"))


if __name__ == "__main__":
    make_model(3)
    make_model(2)
    make_preprocessed()
