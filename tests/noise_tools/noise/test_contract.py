"""What every noise type promises, checked for all of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from noise_tools import noise
from noise_tools.errors import NoiseToolsError
from noise_tools.severity import mean_label_dice

LABELS = (1, 2)
IGNORE, UNDECLARED = 3, 7
QUIET = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

spacings = st.floats(0.3, 4.0).map(lambda value: round(value, 2))


@st.composite
def cases(draw):
    """Small label maps in 2D and 3D, coarse enough to have structures, with ignored and undeclared voxels."""
    shape = draw(array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=5))
    coarse = draw(arrays(np.int16, shape, elements=st.sampled_from([0, 0, 0, 1, 1, 2, IGNORE, UNDECLARED])))
    label = coarse.repeat(2, axis=0).repeat(3, axis=1)
    return label, tuple(draw(spacings) for _ in shape)


def structure(ndim: int = 3) -> tuple[np.ndarray, tuple[float, ...]]:
    """Three balls, two of them touching halves with two labels, in anisotropic voxels."""
    spacing = (2.0, 1.0, 1.0)[-ndim:]
    shape = (20, 48, 48)[-ndim:]
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"))
    label = np.zeros(shape, dtype=np.uint8)
    for center, radius in (((20, 20, 20), 10), ((20, 38, 38), 5), ((20, 9, 38), 6)):
        ball = sum((axis - c) ** 2 for axis, c in zip(grid, center[-ndim:], strict=True)) <= radius**2
        label[ball] = 1
    label[..., 20:][label[..., 20:] == 1] = 2
    return label, spacing


@pytest.mark.parametrize("name", noise.NAMES)
@given(case=cases(), severity=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
@QUIET
def test_keeps_shape_type_and_what_it_may_not_touch(name, case, severity, seed):
    label, spacing = case
    before = label.copy()
    kind = noise.load(name)(LABELS)
    params = kind.sample(np.random.default_rng(seed), label, spacing, severity)
    noisy = kind.apply(label, spacing, params)
    assert np.array_equal(label, before)
    assert noisy.shape == label.shape and noisy.dtype == label.dtype
    frozen = ~np.isin(label, (0, *LABELS))
    assert np.array_equal(noisy[frozen], label[frozen])
    assert np.isin(noisy[~frozen], (0, *LABELS)).all()


@pytest.mark.parametrize("name", noise.NAMES)
@given(case=cases(), severity=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
@QUIET
def test_parameters_survive_json_and_decide_everything(name, case, severity, seed):
    label, spacing = case
    kind = noise.load(name)
    params = kind(LABELS).sample(np.random.default_rng(seed), label, spacing, severity)
    again = kind(LABELS).sample(np.random.default_rng(seed), label, spacing, severity)
    stored = json.loads(json.dumps(params, allow_nan=False))
    assert stored == json.loads(json.dumps(again))
    assert np.array_equal(kind.apply(label, spacing, params), kind.apply(label, spacing, stored))


@pytest.mark.parametrize("name", noise.NAMES)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
@QUIET
def test_severity_zero_changes_nothing(name, case, seed):
    label, spacing = case
    kind = noise.load(name)(LABELS)
    params = kind.sample(np.random.default_rng(seed), label, spacing, 0.0)
    assert np.array_equal(kind.apply(label, spacing, params), label)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", noise.NAMES)
def test_dice_falls_with_severity_in_expectation(name, ndim):
    label, spacing = structure(ndim)
    kind = noise.load(name)(LABELS)

    def dice(severity: float) -> float:
        values = []
        for seed in range(12):
            params = kind.sample(np.random.default_rng(seed), label, spacing, severity)
            values.append(mean_label_dice(label, kind.apply(label, spacing, params), [(1,), (2,)]))
        return float(np.mean(values))

    means = [dice(severity) for severity in (0.0, 0.1, 0.4, 0.8)]
    assert means[0] == 1.0
    assert means == sorted(means, reverse=True)
    assert means[1] > 0.5 and means[3] < 0.9


@pytest.mark.parametrize("name", noise.NAMES)
def test_the_same_direction_for_every_severity(name):
    """Severity must not change how many numbers are drawn: what follows in the stream stays the same."""
    label, spacing = structure()
    kind = noise.load(name)(LABELS)
    following = []
    for severity in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(5)
        kind.sample(rng, label, spacing, severity)
        following.append(rng.random())
    assert len(set(following)) == 1


@pytest.mark.parametrize("name", noise.NAMES)
def test_a_label_without_foreground_stays(name):
    label = np.zeros((6, 7, 8), dtype=np.uint8)
    kind = noise.load(name)(LABELS)
    params = kind.sample(np.random.default_rng(0), label, (1, 1, 1), 0.5)
    assert np.array_equal(kind.apply(label, (1, 1, 1), params), label)


@pytest.mark.parametrize("name", noise.NAMES)
def test_describes_itself(name):
    kind = noise.load(name)
    assert kind.name == name and kind.summary and kind.source and kind.__doc__
    for parameter in kind.parameters:
        assert parameter.help
        if not isinstance(parameter.default, str):
            assert parameter.unit and parameter.default[0] <= parameter.default[1]
    assert any(parameter.strength for parameter in kind.parameters)


def test_unknown_type_names_the_known_ones():
    with pytest.raises(NoiseToolsError, match="Unknown noise type 'erosoin'; choose from erosion, dilation, affine"):
        noise.load("erosoin")


@pytest.mark.parametrize("name", noise.NAMES)
def test_refuses_unknown_and_impossible_settings(name):
    kind = noise.load(name)
    with pytest.raises(NoiseToolsError, match="has no parameter 'colour'"):
        kind(LABELS, {"colour": (1.0, 2.0)})
    strength = next(parameter for parameter in kind.parameters if parameter.strength)
    with pytest.raises(NoiseToolsError, match="expected LOW <= HIGH"):
        kind(LABELS, {strength.name: (-2.0, -1.0)})
