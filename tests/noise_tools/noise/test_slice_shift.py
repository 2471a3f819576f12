from __future__ import annotations

import numpy as np

from tests.noise_tools.noise.shapes import SPACING, apply, ball


def test_slices_move_in_their_plane_by_half_to_all_of_the_shift():
    label = ball(10, SPACING, size=80.0)
    noisy = apply("slice_shift", label, SPACING, shift=(8.0, 8.0), share=(1.0, 1.0))
    assert np.array_equal(noisy.sum(axis=(1, 2)), label.sum(axis=(1, 2)))
    for clean, moved in zip(label, noisy, strict=True):
        if clean.any():
            way = (np.argwhere(moved).mean(axis=0) - np.argwhere(clean).mean(axis=0)) * SPACING[1:]
            assert 3.0 <= np.linalg.norm(way) <= 9.0


def test_only_the_share_moves():
    label = ball(20, (1.0, 1.0, 1.0), size=80.0)
    noisy = apply("slice_shift", label, (1.0, 1.0, 1.0), shift=(6.0, 6.0), share=(0.5, 0.5))
    moved = (noisy != label).any(axis=(1, 2)).sum() / label.any(axis=(1, 2)).sum()
    assert 0.25 < moved < 0.75


def test_a_shift_beyond_the_image_clears_the_slice():
    label = np.ones((3, 4, 4), dtype=np.uint8)
    assert not apply("slice_shift", label, (1.0, 1.0, 1.0), shift=(50.0, 50.0), share=(1.0, 1.0)).any()
