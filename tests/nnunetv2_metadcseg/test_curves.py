"""Our curves beside nnU-Net's: through the interface of its loggers (Weights & Biases), and its progress.png."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from nnunetv2.training.logging.nnunet_logger import LocalLogger, WandbLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_metadcseg.self_trusted import nnUNetTrainerMetaDCSegSelfTrusted
from tests.nnunetv2_metadcseg import tiny_dataset
from tests.nnunetv2_metadcseg.test_trainer import ShortStart, seed

EPOCHS = 3
NNUNETS = {"train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs"}
OURS = {"disagreeing", "alpha", "beta", "boundary", "trusted_dice", "label_bias", "excess", "case_weight"}


class Recorder:
    """A logger of nnU-Net's interface that remembers what it is given: {name: {epoch: value}}."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = {}

    def update_config(self, config: dict) -> None:
        pass

    def log(self, key, value, step: int) -> None:
        assert isinstance(float(value), float)
        assert step not in self.values.setdefault(key, {}), f"{key} was logged twice in epoch {step}"
        self.values[key][step] = float(value)

    def log_summary(self, key, value) -> None:
        pass


def test_the_recorder_has_the_interface_of_nnunets_own_logger():
    methods = {name for name in vars(WandbLogger) if not name.startswith("_")}
    assert methods == {name for name in vars(Recorder) if not name.startswith("_")}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains a class for three epochs, its folder's progress.png included; gives the trainer and the recorder."""
    monkeypatch.setattr(nnUNetTrainer, "plot_network_architecture", lambda self: None)
    for name, value in tiny_dataset.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    # nnU-Net's figure is 30 by 54 inches; what is drawn is the same in a small one.
    make = plt.subplots
    monkeypatch.setattr(plt, "subplots", lambda *a, figsize=None, **k: make(*a, figsize=(15, 27), **k))
    seed(0)

    def train(trainer_class: type):
        trainer = tiny_dataset.make(tmp_path).trainer(trainer_class, epochs=EPOCHS, iterations=4)
        recorder = Recorder()
        trainer.logger.loggers.append(recorder)
        trainer.run_training()
        return trainer, recorder

    return train


def test_our_values_arrive_each_epoch_beside_nnunets(trained):
    trainer, recorder = trained(ShortStart)
    assert {f"metadcseg/{name}" for name in OURS} == {name for name in recorder.values if name.startswith("metadcseg/")}
    for name in {*NNUNETS, *(f"metadcseg/{name}" for name in OURS)}:
        assert sorted(recorder.values[name]) == list(range(EPOCHS)), name
        assert all(math.isfinite(value) for value in recorder.values[name].values()), name
    alpha, beta = (recorder.values[f"metadcseg/{name}"] for name in ("alpha", "beta"))
    assert all(alpha[epoch] + beta[epoch] == pytest.approx(1) for epoch in range(EPOCHS))


def test_progress_png_is_whole(trained, monkeypatch):
    drawn = []
    plot = LocalLogger.plot_progress_png
    monkeypatch.setattr(
        LocalLogger,
        "plot_progress_png",
        lambda self, folder: drawn.append([len(v) for v in self.my_fantastic_logging.values()]) or plot(self, folder),
    )
    trainer, _ = trained(ShortStart)
    # Every curve has one value per epoch, so that the figure is not cut to the shortest.
    assert drawn == [[epoch + 1] * len(drawn[0]) for epoch in range(EPOCHS)]
    assert not any(key.startswith("metadcseg") for key in trainer.logger.local_logger.my_fantastic_logging)
    file = Path(trainer.output_folder, "progress.png")
    assert plt.imread(file).std() > 0


def test_early_agreement_of_the_self_trusted_trainer(trained):
    _, recorder = trained(nnUNetTrainerMetaDCSegSelfTrusted)
    agreement = recorder.values["metadcseg/agreement"]
    assert sorted(agreement) == [0]  # 4 of 12 steps: the first epoch
    assert 0 <= agreement[0] <= 1
    assert sorted(recorder.values["metadcseg/trusted_dice"]) == [1, 2]
