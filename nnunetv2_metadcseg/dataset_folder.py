"""Where the preprocessed data of a data set lies, found without importing nnU-Net."""

from __future__ import annotations

import os
import re
from pathlib import Path

LISTED = 8  # data sets that a message names


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
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"nnUNet_preprocessed={root} is not a folder, expected nnU-Net's preprocessed data; correct the variable"
        )
    pattern = f"Dataset{int(dataset):03d}_*" if dataset.isdecimal() else "Dataset*"
    folders = [f for f in _folders(root, pattern) if dataset.isdecimal() or f.name == dataset]
    if len(folders) != 1:
        raise FileNotFoundError(_not_exactly_one(dataset, folders, root))
    return folders[0]


def _folders(root: str, pattern: str) -> list[Path]:
    """Not files: an archive of a data set may lie beside its folder."""
    return [f for f in sorted(Path(root).glob(pattern)) if f.is_dir()]


def _not_exactly_one(dataset: str, folders: list[Path], root: str) -> str:
    """One of several can be named; one that is missing may be misspelt, or not planned yet (-d takes numbers only)."""
    found = ", ".join(f.name for f in folders) or "none"
    sentence = f"Found {found} for data set {dataset!r} in {root}, expected exactly one preprocessed data set; "
    if folders:
        return f"{sentence}give the name of one of them"
    number = re.fullmatch(r"(?:Dataset)?(\d+)(?:_.*)?", dataset)
    there = ", ".join([f.name for f in _folders(root, "Dataset*_*")][:LISTED]) or "none"
    plan = f"nnUNetv2_plan_and_preprocess -d {number[1] if number else 'ID'}"
    return f"{sentence}run {plan}, or correct -d (there: {there})"
