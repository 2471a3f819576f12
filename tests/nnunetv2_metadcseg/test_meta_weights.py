from __future__ import annotations

import copy

import pytest
import torch

from nnunetv2_metadcseg.meta_weights import MetaWeightNetwork, MetaWeights


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def planted(count: int = 500):
    """Voxels whose label helps (gain > 0) exactly where the first input is positive."""
    inputs = torch.randn(count, 4)
    return inputs, torch.zeros(count), torch.where(inputs[:, 0] > 0, 1.0, -1.0) * (0.5 + torch.rand(count))


def update(meta: MetaWeights, *tensors: torch.Tensor, rate: float = 1.0) -> None:
    meta.step(meta.objective(*tensors), rate)


def learn(meta: MetaWeights, steps: int, sign: float = 1.0, unit: float = 1.0) -> MetaWeights:
    for _ in range(steps):
        inputs, prior, gain = planted()
        update(meta, inputs, prior, sign * unit * gain)
    return meta


class TestStart:
    def test_starts_at_the_prior(self):
        prior = torch.linspace(-3, 3, 7)
        alpha = MetaWeights(4).alpha(torch.randn(7, 4), prior)
        torch.testing.assert_close(alpha, torch.sigmoid(prior))

    def test_correction_is_bounded(self):
        network = MetaWeightNetwork(4, max_correction=2.0)
        with torch.no_grad():
            network.layers[-1].bias.fill_(1e4)
        assert network(torch.randn(3, 4)).max() <= 2


class TestLearning:
    def test_learns_from_planted_gains(self):
        meta = learn(MetaWeights(4, learning_rate=1e-2), 100)
        inputs, prior, gain = planted()
        alpha = meta.alpha(inputs, prior)
        assert alpha[gain > 0].mean() > 0.7
        assert alpha[gain < 0].mean() < 0.3

    def test_turns_with_the_sign_of_the_gain(self):
        meta = learn(MetaWeights(4, learning_rate=1e-2), 100, sign=-1.0)
        inputs, prior, gain = planted()
        alpha = meta.alpha(inputs, prior)
        assert alpha[gain > 0].mean() < 0.3 < 0.7 < alpha[gain < 0].mean()

    def test_unit_of_the_gain_makes_no_difference(self):
        alphas = []
        for unit in (1.0, 1e-6):
            torch.manual_seed(0)
            meta = learn(MetaWeights(4, learning_rate=1e-2), 20, unit=unit)
            alphas.append(meta.alpha(torch.ones(1, 4), torch.zeros(1)))
        torch.testing.assert_close(*alphas, atol=1e-3, rtol=1e-3)

    def test_pull_draws_back_to_the_prior(self):
        distance = {}
        for pull in (0.0, 5.0):
            torch.manual_seed(0)
            meta = learn(MetaWeights(4, learning_rate=1e-2, pull=pull), 100)
            inputs, prior, _ = planted()
            distance[pull] = (meta.alpha(inputs, prior) - 0.5).abs().mean()
        assert distance[5.0] < 0.5 * distance[0.0]

    def test_rate_zero_learns_nothing(self):
        meta = MetaWeights(4)
        inputs, prior, gain = planted()
        update(meta, inputs, prior, gain, rate=0.0)
        torch.testing.assert_close(meta.alpha(inputs, prior), torch.full((500,), 0.5))


class TestNoVoxels:
    def test_update_and_alpha_of_zero_voxels(self):
        meta = learn(MetaWeights(4), 2)
        empty = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0)
        update(meta, *empty)
        assert meta.alpha(*empty[:2]).shape == (0,)
        assert all(torch.isfinite(parameter).all() for parameter in meta.network.parameters())

    def test_first_update_without_voxels_does_not_spoil_the_scale(self):
        meta = MetaWeights(4, learning_rate=1e-2)
        update(meta, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0))
        inputs, prior, gain = planted()
        alpha = learn(meta, 100).alpha(inputs, prior)
        assert alpha[gain > 0].mean() > 0.7


def test_state_round_trip_goes_on_as_if_never_stopped():
    meta = learn(MetaWeights(4), 5)
    other = MetaWeights(4)
    other.load_state_dict(copy.deepcopy(meta.state_dict()))
    for each in (meta, other):
        torch.manual_seed(1)
        learn(each, 3)
    for mine, theirs in zip(meta.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(meta.scale, other.scale)
