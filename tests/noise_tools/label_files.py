"""Small label files for the tests of report and preview."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def two_balls(shape: tuple[int, ...] = (12, 24, 20), radius: float = 4.0, shift: int = 0) -> np.ndarray:
    """Label map of two touching balls (discs), 1 and 2, moved by `shift` voxels along the last axis."""
    label = np.zeros(shape, dtype=np.uint8)
    for value, place in ((1, 0.3), (2, 0.65)):
        center = [n / 2 for n in shape]
        center[-2], center[-1] = shape[-2] * place, shape[-1] / 2 + shift
        grid = np.indices(shape)
        distance = sum((g - c) ** 2 for g, c in zip(grid, center, strict=True))
        label[(distance <= radius**2) & (label == 0)] = value
    return label


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (2.0, 1.0, 1.0)) -> Path:
    """Write an array (z, y, x) or (y, x) as .nii.gz, .mha, ... or picture, depending on the name."""
    import SimpleITK as sitk

    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    if array.ndim == 3:
        image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))
    return path


def write_dataset(
    folder: Path,
    labels: dict[str, np.ndarray],
    ending: str = ".nii.gz",
    declared: dict | None = None,
    images: bool = True,
) -> Path:
    """A data set in nnU-Net's raw format whose images are the labels plus a gradient."""
    for case, label in labels.items():
        write(folder / "labelsTr" / f"{case}{ending}", label)
        if images:
            image = (label.astype(float) * 40 + np.indices(label.shape)[-1] * 2).astype(np.uint8)
            write(folder / "imagesTr" / f"{case}_0000{ending}", image)
    content = {
        "channel_names": {"0": "made"},
        "labels": declared or {"background": 0, "head": 1, "tail": 2},
        "numTraining": len(labels),
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def write_sheared(path: Path, array: np.ndarray) -> Path:
    """Write an array (z, y, x) as NIfTI whose axes are not at right angles: nibabel reads it, SimpleITK does not."""
    import nibabel

    affine = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(array.transpose(), affine), path)
    return path
