"""Prepare a corrupted data set in two folds and train on it: stock nnU-Net and MetaDCSeg, a few hundred steps each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CONFIGURATION = "audit"
TRAINERS = {"stock": "nnUNetTrainer", "metadcseg": "nnUNetTrainerMetaDCSeg"}
NOISES = {  # types; errors that cancel out, and one-sided ones, which mislead a network that believes its labels
    "unbiased": ("erosion", "dilation", "affine"),
    "dilation": ("dilation",),
    "erosion": ("erosion",),
    "forgotten": ("omission", "--param", "omission.of=label"),  # whole labels
}


@dataclass(frozen=True)
class Source:
    """A data set with clean labels: folder name, the configuration to shrink, and the small one."""

    folder: str
    configuration: str
    patch: tuple[int, ...]
    batch_size: int
    features: int
    number: int

    @property
    def raw_name(self) -> str:
        return f"Dataset{self.number:03d}_{self.folder.split('_')[1]}"


SOURCES = {
    "hippocampus": Source("Dataset004_Hippocampus", "3d_fullres", (32, 48, 32), 4, 8, 700),
    "nuclei": Source("Dataset020_Nuclei", "2d", (256, 256), 2, 8, 740),
    # Synthetic, of very different sizes: benchmarks/noise_study/hard_data.py makes them.
    "organs": Source("Dataset027_Organs", "3d_fullres", (32, 40, 40), 4, 8, 560),
}


@dataclass(frozen=True)
class Cell:
    """One corrupted data set."""

    dataset: str
    label_dice: float
    seed: int
    noise: str = "unbiased"

    @property
    def source(self) -> Source:
        return SOURCES[self.dataset]

    @property
    def number(self) -> int:
        """Tells four seeds and tenths of the label Dice apart; work_folder.check_numbers refuses what it does not."""
        kind = 80 * list(NOISES).index(self.noise)
        return self.source.number + kind + 1 + 10 * self.seed % 40 + round(10 * self.label_dice) % 10

    @property
    def name(self) -> str:
        return f"{self.dataset}_{round(100 * self.label_dice)}_{self.seed}" + self.suffix

    @property
    def suffix(self) -> str:
        """Of names of everything but the first kind of noise."""
        return "" if self.noise == "unbiased" else f"_{self.noise}"

    @property
    def dataset_name(self) -> str:
        return f"Dataset{self.number:03d}_{self.name}"


def set_paths(work: Path) -> None:
    """nnU-Net's folders inside the working folder; to be called before nnU-Net is imported."""
    for kind in ("raw", "preprocessed", "results"):
        folder = work / f"nnUNet_{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{kind}"] = str(folder)
    os.environ.update(nnUNet_compile="f", nnUNet_def_n_proc="1")


def prepare(cell: Cell, data: Path, work: Path, cases: int, trusted: int, case_fraction: float) -> Path:
    """Corrupts, plans and preprocesses; returns the preprocessed folder. Done once."""
    preprocessed = work / "nnUNet_preprocessed" / cell.dataset_name
    if (preprocessed / "splits_final.json").is_file():
        return preprocessed
    link_source(cell.source, data, work, cases)
    noise = ("--noise", *NOISES[cell.noise], "--case-fraction", case_fraction)
    _run(
        *("noise_tools.cli", "corrupt", "-d", cell.source.number, "-o", cell.number, "--name", cell.name, *noise),
        *("--label-dice", cell.label_dice, "--trusted", trusted, "--seed", cell.seed, "--overwrite"),
    )
    planner = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints"
    code = f"from {planner} import plan_and_preprocess_entry as f; f()"
    options = ("-d", cell.number, "-c", cell.source.configuration, "-np", 1, "-npfp", 1)
    subprocess.run([sys.executable, "-c", code, *map(str, options)], check=True, stdout=subprocess.DEVNULL)
    small = ("--name", CONFIGURATION, "--features", cell.source.features, "--batch-size", cell.source.batch_size)
    _run(
        *("nnunetv2_metadcseg.cli", "small-config", "-d", cell.number, "-c", cell.source.configuration, *small),
        *("--patch", *cell.source.patch),
    )
    two_folds(preprocessed, cell.seed)
    return preprocessed


def _run(module: str, *arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def link_source(source: Source, data: Path, work: Path, cases: int) -> None:
    """A raw data set of the first `cases` cases that refers to the files of the source."""
    folder = work / "nnUNet_raw" / source.raw_name
    if (folder / "dataset.json").is_file():
        return
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    content = json.loads((data / source.folder / "dataset.json").read_text())
    found = get_filenames_of_train_images_and_targets(str(data / source.folder))
    chosen = sorted(found)[:cases]
    content |= {"dataset": {case: found[case] for case in chosen}, "numTraining": len(chosen)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content, indent=2))


def two_folds(preprocessed: Path, seed: int) -> None:
    """Each half of the doubtful cases validates the network trained on the other; trusted cases train in both."""
    trusted = json.loads((preprocessed / "dataset.json").read_text())["trusted_cases"]
    every = sorted(f.name.split(".")[0] for f in (preprocessed / "gt_segmentations").iterdir())
    doubtful = np.random.default_rng(seed).permutation([case for case in every if case not in trusted]).tolist()
    halves = sorted(doubtful[::2]), sorted(doubtful[1::2])
    splits = [{"train": sorted(halves[1 - i] + trusted), "val": halves[i]} for i in (0, 1)]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits, indent=2))


def train(cell: Cell, arm: str, fold: int, work: Path, steps: int, steps_per_epoch: int = 20) -> None:
    """Trains one fold with a fixed number of steps and keeps the final checkpoint. Done once."""
    trainer_name = TRAINERS[arm]
    model = work / "nnUNet_results" / cell.dataset_name / f"{trainer_name}__nnUNetPlans__{CONFIGURATION}"
    if (model / f"fold_{fold}" / "checkpoint_final.pth").is_file():
        return
    import torch
    from training import (  # of the noise study
        seed_everything,
        skip_side_products,
        turn_off_mirroring,
        use_adam,
        use_memory_format,
    )

    if arm == "stock":
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as trainer_class
    else:
        from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg as trainer_class
    seed_everything(cell.seed)
    preprocessed = work / "nnUNet_preprocessed" / cell.dataset_name
    plans, dataset = (json.loads((preprocessed / n).read_text()) for n in ("nnUNetPlans.json", "dataset.json"))
    plans["continue_training"] = False
    trainer = trainer_class(plans, CONFIGURATION, fold, dataset, torch.device("cpu"))
    trainer.num_iterations_per_epoch, trainer.num_epochs = steps_per_epoch, steps // steps_per_epoch
    trainer.num_val_iterations_per_epoch = 1
    skip_side_products(trainer)
    turn_off_mirroring(trainer)
    use_adam(trainer)
    trainer.initialize()
    use_memory_format(trainer, "channels_last")
    os.environ["nnUNet_n_proc_DA"] = "0"
    try:
        trainer.run_training()
    finally:
        del os.environ["nnUNet_n_proc_DA"]  # nnU-Net's planner, called for the next cell, refuses it
