"""The study's scripts are run from their own folder, so its modules are importable by their plain names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).resolve().parents[3] / "benchmarks" / "noise_study"
if str(STUDY) not in sys.path:
    sys.path.insert(0, str(STUDY))

CONFIG = """
work: work
datasets:
  toy:
    source: source/Dataset001_Toy
    clean_id: 301
    base_configuration: 3d_fullres
    features: [4, 8, 16]
    batch_size: 2
    test_cases: 3
defaults:
  steps: 50
  seeds: [0, 1]
  arms: [clean, noisy, metadcseg]
variants:
  soft: {config: {dcd_strength: 0.5}}
cells:
  - {name: toy_60, dataset: toy, id: 501, noise: [erosion], case_fraction: 0.6}
  - {name: toy_20, dataset: toy, id: 502, noise: [erosion], case_fraction: 0.2, folds: [0], arms: [clean, soft]}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A small valid configuration file."""
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG, encoding="utf-8")
    return file


def result_row(arm: str, seed: int, dice: float, cell: str = "toy_60", name: str = "organ", **other: object) -> dict:
    """A row as the runner writes it."""
    row = {"cell": cell, "arm": arm, "fold": 0, "seed": seed, "class": name, "dice": dice, "iou": dice / (2 - dice)}
    row |= {"hd95": 2.0, "surface_dice": 0.9, "assd": 0.5, "cases": 3, "missed": 0, "steps": 50}
    row |= {"seconds_per_step": 0.2, "seconds_total": 10.0, "signature": f"{arm}{seed}"}
    return row | other
