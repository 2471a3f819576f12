"""A preprocessed nnU-Net data set of a few small cases, and plans for it: what a trainer needs, without commands."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

NAME, CONFIGURATION = "Dataset907_Tiny", "tiny"
LABELS = {
    "classes": {"background": 0, "ball": 1, "core": 2},
    "ignore": {"background": 0, "ball": 1, "core": 2, "ignore": 3},
    "regions": {"background": 0, "whole": [1, 2], "core": 2},
    "regions and ignore": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
}


@dataclass
class TinyDataset:
    """Where it lies, and what nnU-Net's trainers are made of."""

    plans: dict
    dataset_json: dict
    folder: Path
    cases: list[str] = field(default_factory=list)

    def trainer(
        self, trainer: type, epochs: int = 2, iterations: int = 2, continue_training: bool = False, device="cpu"
    ):
        """A trainer of that class on fold 0, with short epochs."""
        import torch

        plans = {**json.loads(json.dumps(self.plans)), "continue_training": continue_training}
        result = trainer(plans, CONFIGURATION, 0, dict(self.dataset_json), torch.device(device))
        result.num_epochs, result.num_iterations_per_epoch, result.num_val_iterations_per_epoch = epochs, iterations, 1
        return result

    def set_trusted(self, cases: list[str] | None) -> None:
        self.dataset_json.pop("trusted_cases", None)
        if cases is not None:
            self.dataset_json["trusted_cases"] = cases


def make(
    root: Path,
    kind: str = "classes",
    dim: int = 3,
    residual: bool = False,
    batch_size: int = 4,
    count: int = 6,
    channels: int = 1,
) -> TinyDataset:
    """Writes it into `root`/preprocessed. The last case is the validation case, the first two are trusted."""
    folder = root / "preprocessed" / NAME
    plans = _plans(dim, residual, batch_size)
    dataset_json = {
        "channel_names": {str(channel): "MRI" for channel in range(channels)},
        "labels": LABELS[kind],
        "file_ending": ".nii.gz",
        "numTraining": count,
    }
    if kind.startswith("regions"):
        dataset_json["regions_class_order"] = [1, 2]
    cases = [f"case_{i}" for i in range(count)]
    (folder / plans["configurations"][CONFIGURATION]["data_identifier"]).mkdir(parents=True)
    for i, case in enumerate(cases):
        _write_case(folder, plans, case, np.random.default_rng(i), dim, kind, channels)
    files = {
        "dataset.json": dataset_json,
        "dataset_fingerprint.json": {},
        "splits_final.json": [{"train": cases[:-1], "val": cases[-1:]}],
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    result = TinyDataset(plans, dataset_json, folder, cases)
    result.set_trusted(cases[:2])
    return result


def _write_case(
    folder: Path, plans: dict, case: str, random: np.random.Generator, dim: int, kind: str, channels: int
) -> None:
    """A bright ball with a brighter core; a slab is ignored where the labels have that value."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    shape = (1, 20, 20) if dim == 2 else (12, 20, 20)
    center = random.uniform(8, 12, 2)
    _, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    distance = np.hypot(y - center[0], x - center[1])
    seg = ((distance < 6).astype(np.int8) + (distance < 3))[None]
    data = (seg + 0.3 * random.normal(size=(channels, *shape))).astype(np.float32)
    if "ignore" in kind:
        seg[..., :4] = 3
    locations = DefaultPreprocessor._sample_foreground_locations(seg, *_classes(kind), verbose=False)
    target = folder / plans["configurations"][CONFIGURATION]["data_identifier"] / case
    blocks = dict(blocks=(1, *shape), chunks=(1, *shape))
    properties = {
        "class_locations": locations,
        "spacing": [1.0] * 3,
        "shape_before_cropping": shape,
        "bbox_used_for_cropping": [[0, n] for n in shape],
    }
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(target), **blocks)


def _classes(kind: str) -> tuple:
    """Classes and regions whose voxels the loader may centre a patch on, as nnU-Net's preprocessor collects them."""
    classes = [(1, 2), 2] if kind.startswith("regions") else [1, 2]
    return ([*classes, (-1, 0, 1, 2)] if "ignore" in kind else classes,)


def _plans(dim: int, residual: bool, batch_size: int) -> dict:
    patch, strides = [16] * 2, [[1, 1], [2, 2], [2, 2]]
    if dim == 3:
        patch, strides = [8, 16, 16], [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    blocks = {"n_blocks_per_stage": [1, 1, 1]} if residual else {"n_conv_per_stage": [1, 1, 1]}
    kind = "unet.ResidualEncoderUNet" if residual else "unet.PlainConvUNet"
    network = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": [[3] * dim] * 3,
        "strides": strides,
        **blocks,
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            CONFIGURATION: {
                "data_identifier": f"nnUNetPlans_{CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": batch_size,
                "patch_size": patch,
                "median_image_size_in_voxels": patch,
                "spacing": [1.0] * dim,
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0},
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "architecture": {
                    "network_class_name": f"dynamic_network_architectures.architectures.{kind}",
                    "arch_kwargs": network,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
                "batch_dice": dim == 2,
            }
        },
    }


def environment(root: Path) -> dict[str, str]:
    """nnU-Net's variables for data sets in `root`, without worker processes."""
    os.makedirs(root / "results", exist_ok=True)
    return {
        "nnUNet_preprocessed": str(root / "preprocessed"),
        "nnUNet_results": str(root / "results"),
        "nnUNet_n_proc_DA": "0",
    }
