"""The last layer of a trained network is calibrated on trusted cases, whatever kind of data set and network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunetv2_metadcseg import final_calibration
from nnunetv2_metadcseg.feature_tap import last_segmentation_layer
from nnunetv2_metadcseg.final_calibration import calibrate_last_layer, describe
from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg
from tests.nnunetv2_metadcseg import tiny_dataset


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a trainer on a data set in tmp_path whose cases are all trusted here."""
    for name, value in tiny_dataset.environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    def trainer(**settings):
        trainer = tiny_dataset.make(tmp_path, **settings).trainer(nnUNetTrainerMetaDCSeg)
        trainer.initialize()
        cases = trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder)
        return trainer, sorted(cases)

    torch.manual_seed(0)
    return trainer


class ByBrightness:
    """Predicts the bright ball (value 1) too large: from a value of 0.2 on; its core (2) from 1.5 on."""

    def __init__(self, trainer) -> None:
        self.regions = trainer.label_manager.has_regions

    def predict_sliding_window_return_logits(self, image):
        ball, core = 6 * (image[0] - 0.2), 6 * (image[0] - 1.5)
        return torch.stack([ball, core] if self.regions else [0 * ball, ball, ball + core])


@pytest.mark.parametrize("settings", [{}, {"dim": 2}, {"kind": "ignore"}, {"kind": "regions"}])
def test_what_is_predicted_too_large_is_predicted_less(make, monkeypatch, settings):
    trainer, cases = make(**settings)
    monkeypatch.setattr(final_calibration, "_predictor", ByBrightness)
    layer = last_segmentation_layer(trainer.network)
    before = layer.bias.detach().clone()
    offsets = calibrate_last_layer(trainer, cases)
    assert (layer.bias.detach() - before).numpy() == pytest.approx(offsets, abs=1e-5)
    ball = 0 if settings.get("kind") == "regions" else 1
    assert -3 < offsets[ball] < -1 and len(offsets) == trainer.label_manager.num_segmentation_heads


def test_runs_the_network_and_leaves_it_as_it_was(make):
    trainer, cases = make()
    calibrate_last_layer(trainer, cases)
    assert trainer.network.decoder.deep_supervision
    assert all(parameter.requires_grad for parameter in trainer.network.parameters())


def test_one_case_changes_nothing(make):
    trainer, cases = make()
    before = last_segmentation_layer(trainer.network).bias.detach().clone()
    assert not calibrate_last_layer(trainer, cases[:1]).any()
    assert (last_segmentation_layer(trainer.network).bias == before).all()


def test_log_names_the_structures():
    labels = {"background": 0, "tumour": 2, "liver": 1, "ignore": 3}
    line = describe(np.array([0, -0.5, 0.25]), labels, regions=False, cases=4)
    assert line.startswith("Calibration on 4 trusted cases: liver -0.50, tumour +0.25")
    regions = {"background": 0, "whole": [1, 2], "core": [2]}
    assert "core +1.00" in describe(np.array([0, 1.0]), regions, regions=True, cases=4)
    assert "no structure" in describe(np.zeros(2), {"background": 0, "liver": 1}, regions=False, cases=4)
