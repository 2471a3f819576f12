from __future__ import annotations

import numpy as np
import weight_maps


def test_best_slice():
    wrong = np.zeros((5, 4, 4), dtype=bool)
    assert weight_maps.best_slice(wrong) == 2
    wrong[3, 1:3, 1:3] = wrong[0, 0, 0] = True
    assert weight_maps.best_slice(wrong) == 3


def test_draw(tmp_path):
    label = np.zeros((8, 8), dtype=np.int8)
    label[2:5, 2:5] = 1
    item = weight_maps.Maps("case_1", np.random.default_rng(0).random((8, 8)), label, np.roll(label, 1, 0), label * 0.5)
    file = weight_maps.draw([item, item], tmp_path / "figures" / "maps.png")
    assert file.stat().st_size > 1000


def test_run_that_was_not_kept(config_file, capsys):
    assert weight_maps.main(["--config", str(config_file), "--cell", "toy_60"]) == 2
    assert "is not prepared" in capsys.readouterr().err
