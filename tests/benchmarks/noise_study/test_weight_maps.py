from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import weight_maps
from settings import Run, load_study


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


def test_the_trained_network_predicts_as_in_the_study(config_file, monkeypatch):
    """With the study's mirroring, memory format and optimiser, as run_arm.py and weight_check.py do it."""
    import scoring
    import training

    class Seen(Exception):
        pass

    def build_predictor(trainer, mirroring):
        raise Seen(trainer.plan, mirroring)

    study = dataclasses.replace(load_study(config_file), mirroring=True, optimizer="adam")
    run = Run("toy_60", 0, "metadcseg", 0)
    study.run_folder(run).mkdir(parents=True)
    (study.run_folder(run) / "checkpoint_final.pth").touch()
    monkeypatch.setattr(weight_maps, "prepared_folders", lambda *arguments: (study.work, study.work, {}))
    monkeypatch.setattr(weight_maps, "choose_device", lambda name, threads: "cpu")  # it sets variables of the process
    monkeypatch.setattr(weight_maps, "set_nnunet_paths", lambda *arguments, **options: None)
    monkeypatch.setattr(training, "build_trainer", lambda arm, plan, device: SimpleNamespace(plan=plan))
    monkeypatch.setattr(scoring, "build_predictor", build_predictor)
    with pytest.raises(Seen) as seen:
        weight_maps.collect_maps(study, run, 1)
    plan, mirroring = seen.value.args
    assert (mirroring, plan.mirroring, plan.optimizer, plan.steps) == (True, True, "adam", 50)
