from __future__ import annotations

import numpy as np
import pytest

from tests.noise_tools.noise.shapes import SPACING, apply, ball


def cleared(label: np.ndarray, noisy: np.ndarray, axis: int) -> list[int]:
    others = tuple(a for a in range(label.ndim) if a != axis)
    return np.flatnonzero(label.any(axis=others) & ~noisy.any(axis=others)).tolist()


@pytest.mark.parametrize("axis", ["auto", "0", "2"])
def test_clears_the_share_of_labelled_slices(axis):
    label = ball(12)
    noisy = apply("slice_dropout", label, SPACING, share=(0.5, 0.5), axis=axis)
    number = 0 if axis == "auto" else int(axis)
    others = tuple(a for a in range(3) if a != number)
    count = np.count_nonzero(label.any(axis=others))
    gone = cleared(label, noisy, number)
    assert len(gone) == round(0.5 * count)
    kept = np.delete(np.arange(label.shape[number]), gone)
    assert np.array_equal(noisy.take(kept, axis=number), label.take(kept, axis=number))


def test_a_block_from_one_end():
    label = ball(12)
    gone = cleared(label, apply("slice_dropout", label, SPACING, share=(0.4, 0.4), pattern="end"), 0)
    filled = np.flatnonzero(label.any(axis=(1, 2))).tolist()
    assert gone in (filled[: len(gone)], filled[-len(gone) :])


def test_one_slice_stays():
    assert apply("slice_dropout", ball(12), SPACING, share=(1.0, 1.0)).any()
