from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from nnunetv2_metadcseg import trusted_trainer
from nnunetv2_metadcseg.fusion import VERSIONS, fuse_like, fused, unfused
from tests.nnunetv2_metadcseg import tiny_dataset
from tests.nnunetv2_metadcseg.test_trainer import ShortStart, always_blur_alike, seed, start


def test_follows_the_network():
    network = nn.Linear(1, 1)
    assert fuse_like(network) is unfused
    assert fuse_like(torch.compile(network)) is fused


def test_what_cannot_be_compiled_stays_as_it_is(monkeypatch):
    calls = []

    def failing(function):
        def compiled(*args):
            calls.append(args)
            raise TorchDynamoException("no such kernel\nand so on")

        return compiled

    monkeypatch.setattr(torch, "compile", failing)
    double = fused(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="no such kernel$"):
        assert double(3) == 6
    assert double(4) == 8 and calls == [(3,)]  # asked once


def test_errors_of_the_function_are_its_own(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    with pytest.raises(ZeroDivisionError):
        fused(lambda x: 1 // x)(0)


@pytest.mark.parametrize("name", ["recompile_limit", "cache_size_limit"])
def test_the_number_of_versions_is_raised_under_the_name_that_this_torch_has(monkeypatch, name):
    config = SimpleNamespace(**{name: 8})
    monkeypatch.setattr(torch._dynamo, "config", config)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    fused(lambda x: x)
    assert vars(config) == {name: VERSIONS}


class TestTrainer:
    """Traced as on CUDA, without making kernels: what torch.compile makes of the functions, not how fast it is."""

    given = (0, 2, 1, 2, 1, 2, 1, 2, 1)  # given-label patches per step; none where the start begins

    def losses(self, dataset, monkeypatch, fuse) -> tuple[list[float], list[int]]:
        monkeypatch.setattr(trusted_trainer, "fuse_like", lambda network: fuse)
        seed(0)
        trainer = start(dataset, ShortStart, iterations=20)
        losses, graphs = [], []
        for step, given in enumerate(self.given):
            seed(step)
            trainer.train_loader.trusted_share = 1 - given / 3
            batch = next(trainer.dataloader_train)
            assert batch["num_given"] == given
            losses.append(float(trainer.train_step(batch)["loss"]))
            graphs.append(counters["stats"]["unique_graphs"])
        assert np.isfinite(trainer.weighting.statistics.means()["alpha"])
        return losses, graphs

    @pytest.mark.parametrize("kind", ["classes", "regions and ignore"])
    def test_trains_as_without(self, tmp_path, monkeypatch, kind):
        always_blur_alike(monkeypatch)
        for name, value in tiny_dataset.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        dataset = tiny_dataset.make(tmp_path, kind=kind, dim=2, batch_size=3)
        torch._dynamo.reset()
        counters.clear()
        expected, graphs = self.losses(dataset, monkeypatch, unfused)
        assert graphs[-1] == 0
        found, graphs = self.losses(dataset, monkeypatch, lambda f: torch.compile(f, backend="aot_eager"))
        assert found == pytest.approx(expected, abs=1e-5)
        assert graphs[0] > 0 and graphs[-1] == graphs[-3]  # nothing is compiled anew once both kinds of batch were seen
