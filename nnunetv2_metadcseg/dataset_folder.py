"""Where the preprocessed data of a data set lies, found without importing nnU-Net."""

from __future__ import annotations

import os
from pathlib import Path


def preprocessed_folder(dataset: str) -> Path:
    """The folder of a data set in nnUNet_preprocessed, by id or name as everywhere in nnU-Net.

    Raises FileNotFoundError where the variable is not set, or not exactly one folder fits.
    """
    root = os.environ.get("nnUNet_preprocessed")
    if not root:
        raise FileNotFoundError(
            "The environment variable nnUNet_preprocessed is not set, expected the folder of nnU-Net's preprocessed "
            "data sets; set it with: export nnUNet_preprocessed=/path/to/nnUNet_preprocessed"
        )
    pattern = f"Dataset{int(dataset):03d}_*" if dataset.isdecimal() else "Dataset*"
    folders = [f for f in sorted(Path(root).glob(pattern)) if dataset.isdecimal() or f.name == dataset]
    if len(folders) != 1:
        found = ", ".join(f.name for f in folders) or "none"
        raise FileNotFoundError(
            f"Found {found} for data set {dataset!r} in {root}, expected exactly one preprocessed data set; "
            f"run: nnUNetv2_plan_and_preprocess -d {dataset}"
        )
    return folders[0]
