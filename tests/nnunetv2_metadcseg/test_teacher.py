from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnunetv2_metadcseg.teacher import MeanTeacher


class Network(nn.Module):
    """A convolution with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, data):
        return self.norm(self.layer(data))


def trajectory(network: nn.Module, steps: int):
    """Moves the network's weights at random and yields after every step."""
    for _ in range(steps):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
            network.norm.running_mean.add_(1)
        yield


def test_plain_average_up_to_the_horizon():
    network = Network()
    teacher = MeanTeacher(network, horizon=10)
    history = []
    for _ in trajectory(network, 7):
        teacher.update()
        history.append(network.layer.weight.detach().clone())
    torch.testing.assert_close(teacher.module.layer.weight, torch.stack(history).mean(0))
    assert teacher.updates == 7


def test_exponential_average_beyond_the_horizon():
    network = Network()
    teacher = MeanTeacher(network, horizon=4)
    expected = None
    for step, _ in enumerate(trajectory(network, 12)):
        teacher.update()
        weight, share = network.layer.weight.detach().double(), 1 / min(step + 1, 4)
        expected = weight if expected is None else expected * (1 - share) + weight * share
    torch.testing.assert_close(teacher.module.layer.weight.double(), expected, atol=1e-6, rtol=1e-6)


def test_buffers_are_copied():
    network = Network()
    teacher = MeanTeacher(network, horizon=4)
    for _ in trajectory(network, 3):
        teacher.update()
    assert torch.equal(teacher.module.norm.running_mean, network.norm.running_mean)


def test_never_trains():
    network = Network().train()
    teacher = MeanTeacher(network, horizon=4)
    assert not teacher.module.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not teacher.module(torch.randn(1, 1, 4, 4)).requires_grad


def test_state_round_trip_goes_on_as_if_never_stopped():
    network = Network()
    teacher = MeanTeacher(network, horizon=4)
    for _ in trajectory(network, 3):
        teacher.update()
    other = MeanTeacher(network, horizon=4)
    other.load_state_dict(copy.deepcopy(teacher.state_dict()))
    for _ in trajectory(network, 2):
        teacher.update()
        other.update()
    for mine, theirs in zip(teacher.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_horizon_below_one():
    with pytest.raises(ValueError, match="at least 1 update, got 0"):
        MeanTeacher(Network(), horizon=0)
