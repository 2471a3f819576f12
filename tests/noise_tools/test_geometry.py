from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from noise_tools import geometry
from tests.noise_tools.noise.shapes import SPACING, ball


def test_bounding_box():
    mask = np.zeros((5, 6, 7), dtype=bool)
    assert geometry.bounding_box(mask) is None
    mask[1, 2:4, 6] = True
    assert geometry.bounding_box(mask) == (slice(1, 2), slice(2, 4), slice(6, 7))


def test_grow_box_is_in_mm_and_stays_in_the_image():
    box = (slice(5, 6), slice(5, 6))
    assert geometry.grow_box(box, (20, 8), (2.0, 0.5), 2.0) == (slice(3, 8), slice(0, 8))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (5.0, 1.0, 1.0), (0.7, 0.7)])
def test_signed_distance_of_a_ball(spacing):
    axes = [(np.arange(round(60 / step)) + 0.5) * step - 30 for step in spacing]
    truth = 16 - np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    distance = geometry.signed_distance(truth >= 0, spacing)
    error = (distance - truth)[np.abs(truth) < 10]
    assert abs(error.mean()) < 0.1 * max(spacing)
    assert np.percentile(np.abs(error), 95) < 0.5 * max(spacing)
    assert np.array_equal(distance > 0, truth >= 0)


def test_signed_distance_agrees_with_scipy_but_for_a_quarter_voxel():
    mask = ball(9, (1.0, 1.0, 1.0)) > 0
    naive = np.where(mask, distance_transform_edt(mask) - 0.25, 0.25 - distance_transform_edt(~mask))
    assert np.abs(geometry.signed_distance(mask, (1.0, 1.0, 1.0)) - naive).max() < 0.75


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("spacing", [(5.0, 0.5, 0.5), (8.0, 1.0, 1.0)])
def test_thin_structures_of_thick_slices_have_their_distance_in_the_slice(spacing, slices):
    """Smoothed across slices, the distance inside would lose up to half, and outside gain as much."""
    disc = ball(12, spacing[1:]) > 0
    mask = np.zeros((7, *disc.shape), dtype=bool)
    mask[3 : 3 + slices] = disc
    distance = geometry.signed_distance(mask, spacing)[3]
    in_slice = geometry.signed_distance(disc, spacing[1:])
    near = np.abs(in_slice) < 0.6 * spacing[0]
    assert np.abs(distance - in_slice)[near].max() < 0.75 * spacing[1]


def test_in_cubes_smoothing_is_the_same_along_all_axes(monkeypatch):
    """So that labels made before from isotropic data can be made again."""
    from scipy import ndimage

    used = []
    monkeypatch.setattr(
        ndimage, "gaussian_filter", lambda array, sigma, **_: used.append(sigma) or array.astype(np.float32)
    )
    geometry.signed_distance(ball(5, (0.7, 0.7, 0.7)) > 0, (0.7, 0.7, 0.7))
    assert used == [[0.7, 0.7, 0.7]]


@pytest.mark.parametrize("side", ["inside", "outside"])
def test_one_side_alone_is_the_same_there(side):
    mask = ball(12) > 0
    both, one = geometry.signed_distance(mask, SPACING), geometry.signed_distance(mask, SPACING, side)
    here = mask if side == "inside" else ~mask
    assert np.abs(both - one)[here].max() < 0.5
    assert np.array_equal(one > 0, mask)


def test_signed_distance_of_nothing_and_of_everything():
    assert (geometry.signed_distance(np.zeros((3, 3), dtype=bool), (1, 1)) == -np.inf).all()
    assert (geometry.signed_distance(np.ones((3, 3), dtype=bool), (1, 1)) == np.inf).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (0.5, 0.5)])
def test_typical_radius_of_a_ball_and_of_many(spacing):
    one = ball(12, spacing, size=30.0)
    assert geometry.typical_radius(one, (1,), spacing) == pytest.approx(12, rel=0.1)
    many = np.concatenate([one, one, one])
    assert geometry.typical_radius(many, (1,), spacing) == pytest.approx(12, rel=0.1)
    assert geometry.typical_radius(one, (2,), spacing) == 0.0


def test_smooth_field_has_unit_variance_at_every_voxel():
    fields = np.stack([geometry.smooth_field(np.random.default_rng(i), (5, 7), (1.0, 2.0), 3.0) for i in range(2000)])
    assert fields.dtype == np.float32 and fields.shape[1:] == (5, 7)
    assert np.abs(fields.mean(axis=0)).max() < 0.12
    assert np.abs(fields.std(axis=0) - 1).max() < 0.08


def test_smooth_field_has_the_length_asked_for_in_mm():
    field = geometry.smooth_field(np.random.default_rng(0), (60, 60, 60), (1.0, 1.0, 2.0), 8.0)
    near = np.corrcoef(field[:-2].ravel(), field[2:].ravel())[0, 1]
    far = np.corrcoef(field[:-32].ravel(), field[32:].ravel())[0, 1]
    assert near > 0.9 and abs(far) < 0.3
    along_long_voxels = np.corrcoef(field[..., :-4].ravel(), field[..., 4:].ravel())[0, 1]
    across = np.corrcoef(field[:-8].ravel(), field[8:].ravel())[0, 1]
    assert along_long_voxels == pytest.approx(across, abs=0.2)


@pytest.mark.parametrize("length", [0.1, 3.0, 50.0])
def test_part_of_a_smooth_field_is_that_part(length):
    part = (slice(3, 9), slice(0, 4), slice(17, 18))
    whole, alone = (
        geometry.smooth_field(np.random.default_rng(1), (10, 12, 20), (2.0, 1.0, 0.5), length, box)
        for box in (None, part)
    )
    assert alone.shape == (6, 4, 1) and np.allclose(whole[part], alone, atol=1e-5)


def test_nearest_claim():
    label = np.zeros((1, 10), dtype=np.uint8)
    label[0, 0], label[0, 9] = 1, 2
    claims = {value: geometry.claim(np.ones((1, 10), dtype=bool)) for value in (1, 2)}
    assert geometry.nearest_claim(claims, label, (1.0, 1.0)).tolist() == [[1] * 5 + [2] * 5]


def naive_claims(masks: dict[int, np.ndarray], label: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Voxel by voxel over the whole image."""
    result, best = np.zeros_like(label), np.full(label.shape, -np.inf)
    alone = sum(mask.astype(int) for mask in masks.values()) == 1
    for value, mask in masks.items():
        distance = geometry.signed_distance(label == value, spacing)
        wins = mask & (alone | (distance > best))
        result[wins], best[wins] = value, distance[wins]
    return result


@pytest.mark.parametrize("seed", range(5))
def test_nearest_claim_agrees_with_the_whole_image(seed):
    rng = np.random.default_rng(seed)
    label = np.zeros((12, 20, 20), dtype=np.int16)
    masks = {}
    for value in (1, 2, 3):
        corner = rng.integers((0, 0, 0), (6, 12, 12))
        label[tuple(slice(c + 1, c + 5) for c in corner)] = value
        masks[value] = np.zeros(label.shape, dtype=bool)
        masks[value][tuple(slice(c, c + 7) for c in corner)] = True
    got = geometry.nearest_claim({v: geometry.claim(mask) for v, mask in masks.items()}, label, (2.0, 1.0, 1.0))
    assert np.mean(got != naive_claims(masks, label, (2.0, 1.0, 1.0))) < 0.002  # but for distances cut at a border


def test_memory_of_claims_does_not_grow_with_their_number():
    import tracemalloc

    label = np.zeros((60, 100, 100), dtype=np.int16)
    for value in range(1, 41):
        label[value : value + 4, 2 * value : 2 * value + 6, 10:30] = value
    tracemalloc.start()
    claims = {value: geometry.claim(label == value) for value in range(1, 41)}
    geometry.nearest_claim(claims, label, (1.0, 1.0, 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * label.size


def test_slice_axis_is_the_coarsest():
    assert geometry.slice_axis((1.0, 3.0, 1.0)) == 1 and geometry.slice_axis((1.0, 1.0, 1.0)) == 0
