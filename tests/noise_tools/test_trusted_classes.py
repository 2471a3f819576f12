from __future__ import annotations

import numpy as np
import pytest

from noise_tools import cli
from noise_tools.trusted_classes import classes_not_trusted
from tests.noise_tools.label_files import two_balls, write_dataset


@pytest.fixture
def ball_missing(tmp_path, monkeypatch):
    """Four cases, of which a and b lack label 2."""
    whole = two_balls()
    only_head = np.where(whole == 2, 0, whole)
    labels = {"a": only_head, "b": only_head, "c": whole, "d": whole}
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))

    def declare(**declared):
        write_dataset(tmp_path / "Dataset003_Balls", labels, declared={"background": 0, **declared})

    return declare


def test_classes_of_some_case_but_of_no_trusted_one():
    regions, held = {"head": (1,), "tail": (2,), "nowhere": (3,)}, {"a": [1], "b": [1], "c": [1, 2], "d": [1, 2]}
    assert classes_not_trusted(regions, held, ["a", "b"]) == ["tail"]
    assert classes_not_trusted(regions, held, ["a", "c"]) == []
    assert classes_not_trusted(regions, {"a": [1], "b": [1]}, ["a"]) == []


def test_a_region_is_held_where_any_of_its_labels_is():
    assert classes_not_trusted({"whole": (1, 2), "core": (2,)}, {"a": [1], "c": [1, 2]}, ["a"]) == ["core"]


@pytest.mark.parametrize("declared", [{"head": 1, "tail": 2, "nowhere": 3}, {"whole": [1, 2], "tail": [2]}])
def test_corrupt_says_so(ball_missing, capsys, declared):
    ball_missing(**declared)
    arguments = "corrupt -d 3 -o 503 --noise dilation --label-dice 0.8 --trusted-cases".split()
    assert cli.main([*arguments, "a", "b"]) == 0
    assert "WARNING: no trusted case holds tail, so nothing vouches for such labels" in capsys.readouterr().out
    assert cli.main([*arguments, "a", "c", "--overwrite"]) == 0
    assert "WARNING" not in capsys.readouterr().out
