"""MetaDCSeg with a tiny Primus inside nnU-Net's own loop."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.primus import primus_trainers
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import AbstractPrimus

from nnunetv2_metadcseg import primus
from nnunetv2_metadcseg.feature_tap import FeatureTap, last_segmentation_layer, with_features
from nnunetv2_metadcseg.primus import MetaDCSegPrimus, PrimusCheckpoints
from nnunetv2_metadcseg.trusted_trainer import stock_class_name
from tests.nnunetv2_metadcseg import tiny_dataset
from tests.nnunetv2_metadcseg.test_trainer import always_blur_alike, run, seed, start, steps, unbroken_and_resumed

NAMES = [f"nnUNetTrainerMetaDCSeg{family}{size}" for family in ("Primus", "PrimusV2", "PrimusV3") for size in "SBML"]


def tiny_primus(heads: int = 3, shape=(8, 16, 16)) -> Primus:
    """One block of attention, 24 features."""
    return Primus(1, 24, (8, 8, 8), heads, 1, 2, shape, drop_path_rate=0.2, scale_attn_inner=True, init_values=0.1)


class TinyPrimus(AbstractPrimus):
    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        return tiny_primus(num_output_channels, configuration_manager.patch_size)


class ShortPrimus(MetaDCSegPrimus, PrimusCheckpoints, TinyPrimus):
    """One step on trusted patches only, then batches of both kinds."""

    config = replace(MetaDCSegPrimus.config, start_fractions=(0.01, 0.01), warm_up_fraction=0.0)
    warm_up = 50

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.warmup_duration_whole_net = self.warm_up


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a data set in tmp_path and points nnU-Net at it."""
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda self, folder: None)
    for name, value in tiny_dataset.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    seed(0)
    return lambda **settings: tiny_dataset.make(tmp_path, **settings)


def test_features_give_the_full_resolution_logits():
    network = tiny_primus()
    tap = FeatureTap(network)
    logits = network(torch.randn(2, 1, 8, 16, 16))
    features, layer = tap.pop(), last_segmentation_layer(network)
    assert features.shape == (2, layer.in_channels, 8, 16, 16)
    for offset in ((0, 0, 0), (1, 0, 1)):
        where = (..., *(slice(start, None, 2) for start in offset))
        expected = torch.einsum("bcxyz,ck->bkxyz", features[where], layer.weight[(..., *offset)])
        torch.testing.assert_close(expected + layer.bias[:, None, None, None], logits[where])


def test_the_audit_sees_features_per_voxel():
    _, features = with_features(tiny_primus(), torch.randn(1, 1, 8, 16, 16))
    assert features.shape[2:] == (8, 16, 16)


@pytest.mark.parametrize("kind", ["classes", "regions and ignore"])
def test_runs_and_learns(make, kind):
    trainer = start(make(kind=kind), ShortPrimus)
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    steps(trainer, 4)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    assert 0 < trainer.weighting.statistics.means()["alpha"] < 1
    assert trainer.weighting.meta.scale is not None  # a meta step was made


def learned(trainer) -> dict[str, torch.Tensor]:
    parts = dict(trainer.network.state_dict())
    for i, state in enumerate(trainer.optimizer.state.values()):
        parts |= {f"{name}.{i}": value for name, value in state.items()}
    return parts


@pytest.mark.parametrize("warm_up", [1, 3])
def test_resumed_training_goes_on_as_if_never_stopped(make, monkeypatch, warm_up):
    always_blur_alike(monkeypatch)
    monkeypatch.setattr(ShortPrimus, "warm_up", warm_up)
    unbroken, second = unbroken_and_resumed(make(), ShortPrimus, 2, 2, epochs=4, iterations=2)
    expected = learned(unbroken)
    assert second.current_epoch == 2
    got = learned(run(second))
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []
    assert second.lr_scheduler.__class__ is unbroken.lr_scheduler.__class__


def test_patch_that_does_not_fit_is_named(make):
    dataset = make()
    dataset.plans["configurations"]["tiny"]["patch_size"] = [8, 16, 20]
    with pytest.raises(
        ValueError, match="blocks of 8 voxels per edge, but the planned patch is 8 x 16 x 20; plan a 3D"
    ):
        dataset.trainer(ShortPrimus).initialize()


def test_2d_is_refused(make):
    with pytest.raises(ValueError, match="cuts 3D patches .* but the planned patch is 16 x 16"):
        make(dim=2).trainer(ShortPrimus).initialize()


def test_network_influence_is_refused(make):
    class Network(ShortPrimus):
        config = replace(ShortPrimus.config, influence="network")

    with pytest.raises(ValueError, match="'network' compares two forward passes.*use the influence 'head'"):
        make().trainer(Network).initialize()


@pytest.mark.parametrize("name", NAMES)
def test_every_size_predicts_with_nnunets_own_trainer(name):
    trainer = getattr(primus, name)
    theirs = getattr(primus_trainers, stock_class_name(trainer))
    assert theirs.__name__.replace("_", "") == name.replace("nnUNetTrainerMetaDCSeg", "nnUNet") + "Trainer"
    assert trainer.build_network_architecture is theirs.build_network_architecture
    assert trainer.__doc__ and pickle.loads(pickle.dumps(trainer)) is trainer
