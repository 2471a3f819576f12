from __future__ import annotations

import pytest
import torch

from nnunetv2_metadcseg import network_gain
from nnunetv2_metadcseg.collective import Collective
from nnunetv2_metadcseg.losses import voxel_cross_entropy
from nnunetv2_metadcseg.network_gain import RADIUS_AUTOCAST, RADIUS_FP32, NetworkGain, keep_compiled_graphs
from tests.nnunetv2_metadcseg.networks import small_unet
from tests.nnunetv2_metadcseg.test_influence import TestNetwork as Oracle
from tests.nnunetv2_metadcseg.test_influence import cosine, random_target, trusted_loss


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch._dynamo.reset()


def gain_of(network, forward, given, pseudo, trusted, regions, scale: float = 1.0):
    """Gain after one update; `forward` is the network or its compiled self."""
    gain = NetworkGain(0.9, Collective())
    loss = trusted_loss(forward(trusted[0])[0], trusted[1], regions)
    gain.update(network, loss, scale)
    return gain(network, given[0], forward(given[0])[0], given[1], pseudo, regions)


@pytest.mark.parametrize("regions", [False, True])
def test_is_the_exact_influence_of_the_label_minus_that_of_the_pseudo_label(regions):
    network, given, trusted = Oracle.problem(regions, torch.float32)
    pseudo = random_target(given[1].shape, regions, torch.float32)
    gain = gain_of(network, network, given, pseudo, trusted, regions)
    exact = Oracle.exact(network, given, trusted, regions) - Oracle.exact(network, (given[0], pseudo), trusted, regions)
    assert gain.shape == exact.shape
    assert cosine(gain, exact) >= 0.99


def test_no_gain_where_label_and_pseudo_label_agree():
    network, given, trusted = Oracle.problem(False, torch.float32)
    assert gain_of(network, network, given, given[1], trusted, False).abs().max() == 0


def test_none_before_an_update():
    network, given, _ = Oracle.problem(False, torch.float32)
    assert NetworkGain(0.9, Collective())(network, *given, given[1], given[1], False) is None


def test_what_overflows_is_no_gain(monkeypatch):
    network, given, _ = Oracle.problem(False, torch.float32)
    gain = NetworkGain(0.9, Collective())
    gain.direction = {}
    monkeypatch.setattr(network_gain, "network_influence", lambda *_: torch.tensor([1.0, torch.inf, torch.nan]))
    assert gain(network, *given, given[1], given[1], False).tolist() == [1, 0, 0]


def test_scale_of_the_loss_makes_no_difference():
    network, given, trusted = Oracle.problem(False, torch.float32)
    pseudo = random_target(given[1].shape, False, torch.float32)
    plain = gain_of(network, network, given, pseudo, trusted, False)
    scaled = gain_of(network, network, given, pseudo, trusted, False, scale=1024.0)
    torch.testing.assert_close(plain, scaled, atol=1e-3, rtol=1e-2)


def test_momentum_averages_directions():
    network, _, trusted = Oracle.problem(False, torch.float32)
    directions = []
    gain = NetworkGain(0.75, Collective())
    for factor in (1.0, -3.0):
        fresh = NetworkGain(0.0, Collective())
        for each in (gain, fresh):
            each.update(network, factor * trusted_loss(network(trusted[0])[0], trusted[1], False))
        directions.append(fresh.direction)
    for name, value in gain.direction.items():
        torch.testing.assert_close(value, 0.75 * directions[0][name] + 0.25 * directions[1][name])


def test_the_step_can_still_go_backward():
    network, _, trusted = Oracle.problem(False, torch.float32)
    loss = trusted_loss(network(trusted[0])[0], trusted[1], False)
    NetworkGain(0.9, Collective()).update(network, loss)
    assert all(parameter.grad is None for parameter in network.parameters())
    loss.backward()
    assert network.decoder.seg_layers[-1].weight.grad.abs().max() > 0


@pytest.mark.parametrize(("half", "radius"), [(False, RADIUS_FP32), (True, RADIUS_AUTOCAST)])
def test_radius_follows_the_precision(monkeypatch, half, radius):
    seen = []

    def influence(*arguments):
        seen.append(arguments[-1])
        return torch.zeros(1)

    monkeypatch.setattr(network_gain, "network_influence", influence)
    gain = NetworkGain(0.9, Collective())
    gain.direction = {}
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        gain(None, torch.zeros(1), None, None, None, False)
    assert seen == [radius]


def test_half_precision_sees_the_same_direction():
    network, given, trusted = Oracle.problem(False, torch.float32)
    pseudo = random_target(given[1].shape, False, torch.float32)
    full = gain_of(network, network, given, pseudo, trusted, False)
    with torch.autocast("cpu", torch.bfloat16):
        half = gain_of(network, network, given, pseudo, trusted, False)
    assert half.dtype == torch.float32
    assert cosine(full, half) > 0.8


@pytest.fixture
def compile_settings():
    """Puts back what keep_compiled_graphs changes."""
    settings = torch._functorch.config
    with settings.patch(donated_buffer=settings.donated_buffer):
        yield


def compiled_network_gives_the_same_gain(backend: str) -> None:
    keep_compiled_graphs()
    network, given, trusted = Oracle.problem(False, torch.float32)
    pseudo = random_target(given[1].shape, False, torch.float32)
    compiled = torch.compile(network, backend=backend)
    # As in a training: the start goes backward without keeping the graph, later steps keep it.
    trusted_loss(compiled(trusted[0])[0], trusted[1], False).backward()
    plain = gain_of(network, network, given, pseudo, trusted, False)
    assert cosine(plain, gain_of(network, compiled, given, pseudo, trusted, False)) > 0.99


def test_compiled_with_aot_eager(compile_settings):
    compiled_network_gives_the_same_gain("aot_eager")


@pytest.mark.integration
def test_compiled_with_inductor(compile_settings):
    compiled_network_gives_the_same_gain("inductor")


def test_unused_parameters_have_no_direction():
    network = small_unet(3, 2).train()
    gain = NetworkGain(0.9, Collective())
    gain.update(network, network(torch.randn(1, 1, 8, 8, 8))[0].square().mean())
    assert set(gain.direction) <= {name for name, _ in network.named_parameters()}
    label = torch.zeros(1, 2, 8, 8, 8)
    assert voxel_cross_entropy(label, label).shape == (1, 1, 8, 8, 8)
