"""What benchmarks/step_cost.py does around `metadcseg benchmark`; no network is trained here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def step_cost(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step_cost

    yield step_cost
    del sys.modules["step_cost"]


def test_preprocessing_that_was_interrupted_is_done_again(step_cost, tmp_path, monkeypatch):
    folder = tmp_path / "preprocessed" / "Dataset904_Noisy"
    planned = []

    def run_module(variables: dict, module: str, *arguments: str) -> None:
        """nnU-Net's planner, which writes the plans and makes the folder first, and fails the first time."""
        if "plan_and_preprocess" in module:
            planned.append(arguments)
            (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True, exist_ok=True)
            (folder / "nnUNetPlans.json").write_text("{}")
            if len(planned) == 1:
                raise OSError("interrupted")

    monkeypatch.setattr(step_cost, "run_module", run_module)
    monkeypatch.setattr(step_cost, "raw_dataset", lambda *_: "900")
    case = step_cost.CASES["hippocampus_full"]
    with pytest.raises(OSError, match="interrupted"):
        step_cost.prepare(case, tmp_path, None, {})
    for _ in range(2):
        assert step_cost.prepare(case, tmp_path, None, {}) == (folder / "nnUNetPlans.json", "3d_fullres")
    assert len(planned) == 2  # once more, but not a third time


def test_fewer_steps_than_the_costs_take_to_repeat_are_refused(step_cost, tmp_path, capsys):
    line = ["--work", str(tmp_path / "work"), "--only", "large", "--arms", "stock", "metadcseg_head_every_8"]
    assert step_cost.main(line) == 2
    assert "give --steps 8 or more" in capsys.readouterr().err and not (tmp_path / "work").exists()


@pytest.mark.parametrize(("option", "message"), [("--steps", "Got --steps 0"), ("--threads", "Got --threads 0")])
def test_none_at_all_is_refused_before_data_are_prepared(step_cost, tmp_path, capsys, option, message):
    assert step_cost.main(["--work", str(tmp_path / "work"), "--only", "large", option, "0"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "work").exists()
