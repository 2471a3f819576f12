"""Train one arm with nnU-Net inside this process. torch and nnU-Net are imported here and in scoring.py only."""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from settings import PLANS_NAME, SettingsError

if TYPE_CHECKING:
    from arms import Arm
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from settings import Run, Study


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """What to train: preprocessed data set, configuration, length, seed."""

    preprocessed: Path
    clean_preprocessed: Path
    configuration: str
    steps: int
    steps_per_epoch: int
    seed: int
    mirroring: bool = False
    memory_format: str = "channels_last"
    optimizer: str = "sgd"


def plan_run(study: Study, run: Run, preprocessed: Path, clean_preprocessed: Path) -> TrainingPlan:
    """The study's settings for one run on these folders (run_arm.prepared_folders)."""
    cell = study.cell(run.cell)
    return TrainingPlan(
        preprocessed=preprocessed,
        clean_preprocessed=clean_preprocessed,
        configuration=study.dataset_of(cell).configuration,
        steps=cell.steps,
        steps_per_epoch=cell.steps_per_epoch,
        seed=run.seed,
        mirroring=study.mirroring,
        memory_format=study.memory_format,
        optimizer=study.optimizer,
    )


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (patch sampling) and torch (weights, augmentation)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def find_trainer_class(arm: Arm) -> type[nnUNetTrainer]:
    """The arm's trainer class: from a module of this folder, else by nnU-Net's own search by name."""
    if arm.module:
        try:
            return getattr(importlib.import_module(arm.module), arm.trainer)
        except (ModuleNotFoundError, AttributeError) as error:
            raise SettingsError(f"The trainer {arm.trainer} of arm {arm.name!r} is not there yet ({error}).") from error
    if arm.trainer == "nnUNetTrainer":
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        return nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        return recursive_find_trainer_class_by_name(arm.trainer)
    except RuntimeError as error:
        raise SettingsError(f"nnU-Net does not find the trainer {arm.trainer} of arm {arm.name!r}: {error}") from error


def build_trainer(arm: Arm, plan: TrainingPlan, device: torch.device) -> nnUNetTrainer:
    """An initialised trainer with the study's schedule and nothing that costs time without changing the training."""
    seed_everything(plan.seed)
    plans = json.loads((plan.preprocessed / f"{PLANS_NAME}.json").read_text(encoding="utf-8"))
    plans["continue_training"] = False
    description = json.loads((plan.preprocessed / "dataset.json").read_text(encoding="utf-8"))
    trainer = find_trainer_class(arm)(
        plans=plans, configuration=plan.configuration, fold=0, dataset_json=description, device=device
    )
    trainer.num_iterations_per_epoch = plan.steps_per_epoch
    trainer.num_epochs = plan.steps // plan.steps_per_epoch
    trainer.num_val_iterations_per_epoch = 1  # nnU-Net's logger needs one value per epoch
    trainer.clean_preprocessed_folder = str(plan.clean_preprocessed)  # for the oracle arms only
    _override_config(trainer, arm)
    skip_side_products(trainer)
    if not plan.mirroring:
        turn_off_mirroring(trainer)
    if plan.optimizer == "adam":
        use_adam(trainer)
    trainer.initialize()
    use_memory_format(trainer, plan.memory_format)
    return trainer


def _override_config(trainer: nnUNetTrainer, arm: Arm) -> None:
    """Replace fields of the trainer's frozen configuration (``config``) by the arm's values."""
    if not arm.config:
        return
    config = getattr(trainer, "config", None)
    if not dataclasses.is_dataclass(config):
        raise SettingsError(f"Arm {arm.name!r} sets {sorted(arm.config)}, but {arm.trainer} has no configuration.")
    known = {f.name for f in dataclasses.fields(config)}
    unknown = sorted(set(arm.config) - known)
    if unknown:
        raise SettingsError(f"Arm {arm.name!r} sets unknown fields {unknown}; there are {sorted(known)}.")
    trainer.config = dataclasses.replace(config, **arm.config)


def skip_side_products(trainer: nnUNetTrainer) -> None:
    """No plots, no checkpoints but the final one: they take seconds per epoch and nothing reads them."""
    trainer.plot_network_architecture = lambda: None
    trainer._save_debug_information = lambda: None
    trainer.logger.plot_progress_png = lambda output_folder: None
    trainer.save_every = trainer.num_epochs + 1
    trainer._best_ema = float("inf")  # no pseudo Dice is better, so checkpoint_best is never written


def turn_off_mirroring(trainer: nnUNetTrainer) -> None:
    """As nnUNetTrainerNoMirroring does, for any trainer class: no mirroring in augmentation and prediction."""
    configure = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size

    def configure_without_mirroring() -> tuple:
        rotation, dummy_2d, initial_patch_size, _ = configure()
        trainer.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, None

    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size = configure_without_mirroring


def use_adam(trainer: nnUNetTrainer, learning_rate: float = 3e-3) -> None:
    """Adam with nnU-Net's polynomial decay: nnU-Net's SGD, made for 250 000 steps, has learned little after 600."""

    def configure_optimizers() -> tuple:
        optimizer = torch.optim.Adam(trainer.network.parameters(), lr=learning_rate)
        return optimizer, PolyLRScheduler(optimizer, learning_rate, trainer.num_epochs)

    trainer.configure_optimizers = configure_optimizers


def use_memory_format(trainer: nnUNetTrainer, memory_format: str) -> None:
    """channels_last weights: the same mathematics, faster convolutions on CPU."""
    if memory_format != "channels_last":
        return
    dimensions = len(trainer.configuration_manager.patch_size)
    wanted = torch.channels_last_3d if dimensions == 3 else torch.channels_last
    trainer.network = trainer.network.to(memory_format=wanted)


def train(trainer: nnUNetTrainer) -> float:
    """Run the training; returns the seconds it took. The final checkpoint lies in ``trainer.output_folder``."""
    start = time.perf_counter()
    trainer.run_training()
    return time.perf_counter() - start


def describe_config(trainer: nnUNetTrainer) -> dict[str, Any]:
    """The trainer's configuration as plain values; empty for stock nnU-Net."""
    config = getattr(trainer, "config", None)
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) else {}
