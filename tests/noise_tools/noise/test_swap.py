from __future__ import annotations

import numpy as np
import pytest

from noise_tools import noise
from noise_tools.errors import NoiseToolsError
from tests.noise_tools.noise.shapes import apply
from tests.noise_tools.noise.test_omission import grid_of_squares


def test_names_change_shapes_do_not():
    label = grid_of_squares()
    noisy = apply("swap", label, (1.0, 1.0), rate=(0.4, 0.4))
    assert np.array_equal(noisy > 0, label > 0)
    assert 0 < np.count_nonzero(noisy != label) < label.size
    assert np.count_nonzero(noisy != label) % 16 == 0


def test_confusion_pairs_are_kept_to():
    label = grid_of_squares()
    noisy = apply("swap", label, (1.0, 1.0), rate=(1.0, 1.0), confusion="1>2")
    assert np.array_equal(noisy, np.where(label > 0, 2, 0))


def test_weights_share_out():
    label = np.zeros((3, 3000), dtype=np.uint8)
    label[0, ::2] = 1
    label[2, 0], label[2, 4] = 2, 3
    noisy = apply("swap", label, (1.0, 1.0), rate=(1.0, 1.0), confusion="1>2:3,1>3")
    assert (noisy[0] == 2).sum() / 1500 == pytest.approx(0.75, abs=0.05)
    assert noisy[2, 0] == 2 and noisy[2, 4] == 3


@pytest.mark.parametrize(
    ("confusion", "says"),
    [("1-2", "give pairs such as"), ("1>1", "give pairs"), ("1>9", "the labels are"), ("1>2:0", "give")],
)
def test_refuses_other_texts(confusion, says):
    with pytest.raises(NoiseToolsError, match=says):
        noise.load("swap")((1, 2), {"confusion": confusion})


def test_needs_two_labels():
    with pytest.raises(NoiseToolsError, match="needs two foreground labels or more, but there is 1"):
        noise.load("swap")((1,))
