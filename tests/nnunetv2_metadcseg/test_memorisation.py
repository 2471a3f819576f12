from __future__ import annotations

import math

import pytest
import torch

from nnunetv2_metadcseg.memorisation import MemorisationWatch


def watched(values: list[float], multiples: list[float] | None = None) -> MemorisationWatch:
    """Excess, and the multiples of the network's own mistakes; unless named they take the same course."""
    watch = MemorisationWatch(horizon=4, share=0.8)
    for pair in zip(values, multiples or values, strict=True):
        watch.update(torch.tensor(pair))
    return watch


def test_is_full_after_a_horizon():
    assert [watched([0.3] * count).is_full() for count in (0, 3, 4, 5)] == [False, False, True, True]


def test_begins_when_the_excess_has_fallen():
    watch = watched([0.3] * 10)
    assert not watch.has_begun()
    for _ in range(3):
        watch.update(torch.tensor([0.1, 0.1]))
    assert watch.has_begun()


@pytest.mark.parametrize(
    ("multiples", "begun"),
    [
        ([1.0] * 10 + [0.5] * 10, True),  # the excess falls, the network's own mistakes do not
        ([1.0] * 10 + [1.5] * 10, False),  # the network becomes better: its mistakes fall by more
        ([1.0] * 20, False),
    ],
)
def test_the_excess_must_fall_by_more_than_the_networks_own_mistakes(multiples, begun):
    assert watched([0.3] * 10 + [0.1] * 10, multiples).has_begun() == begun


@pytest.mark.parametrize(
    "values",
    [
        [0.3] * 20,  # it generalises
        [0.1, 0.2, 0.3, 0.4, 0.5] * 4,  # noise around a mean
        [0.04] * 10 + [0.0] * 20,  # nothing wrong with the labels
        [-0.2] * 20,  # labels agree better than trusted ones
        [0.9, 0.3, 0.3, 0.3, 0.3, 0.3],  # less than a horizon is no highest mean
        [0.9] * 4 + [0.3] * 20,  # nor is the first horizon
        [],
    ],
)
def test_does_not_begin(values):
    assert not watched(values).has_begun()


def test_what_is_not_known_changes_nothing():
    watch = watched([0.3] * 5)
    before = watch.mean.clone()
    watch.update(torch.tensor([math.nan, math.nan]))
    assert torch.equal(watch.mean, before)


def test_state_goes_on_where_it_stopped():
    values = [0.3, 0.4, 0.2] * 10
    whole, first = watched(values + [0.2] * 3), watched(values)
    second = watched([])
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.update(torch.tensor([0.2, 0.2]))
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)
    assert first.updates == 30 and whole.squares.all()  # the state was copied


def noisy_excess(steps: int, level: float = 0.3, seed: int = 0) -> list[float]:
    """Correlated over about ten updates, as an excess that is a mean of what cases had on their last visits."""
    noise, values = torch.randn(steps, generator=torch.Generator().manual_seed(seed)), [0.0]
    for shock in noise.tolist():
        values.append(0.9 * values[-1] + 0.01 * shock)
    return [level + value for value in values[1:]]


def test_a_long_training_does_not_begin_by_chance():
    watch, fallen = MemorisationWatch(horizon=20, share=0.85), 0
    for i, value in enumerate(noisy_excess(3000, seed=5)):
        watch.update(torch.tensor([value, value]))
        if i % 5 == 0:
            fallen += bool((watch.mean < watch.shares * watch.highest).all())
            assert not watch.has_begun()
    assert fallen > 0  # the share of the highest alone would not do
    for value in noisy_excess(100, level=0.05):
        watch.update(torch.tensor([value, value]))
    assert watch.has_begun()


def test_spread_is_that_of_the_means():
    watch, means = MemorisationWatch(horizon=20, share=0.85), []
    for value in noisy_excess(8000):
        watch.update(torch.tensor([value, value]))
        means.append(watch.mean[0])
    assert float(watch.spread()[0]) == pytest.approx(float(torch.stack(means[100:]).std()), rel=0.2)


def test_a_steady_fall_is_no_chance():
    watch = watched([0.5 - 0.005 * i for i in range(60)])
    assert float(watch.spread()[0]) < 0.01 and watch.has_begun()
