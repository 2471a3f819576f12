from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[3] / "benchmarks" / "demo"


@pytest.fixture
def run_demo(monkeypatch):
    """The module benchmarks/demo/run_demo.py, which is a script beside others and no package."""
    monkeypatch.syspath_prepend(str(DEMO))
    import run_demo

    yield run_demo
    del sys.modules["run_demo"]


def test_fresh_folder_makes_what_nnunet_needs(run_demo, tmp_path):
    folder = run_demo.fresh_folder(tmp_path / "demo")
    assert {f.name for f in folder.iterdir()} >= {"nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "logs"}


def test_fresh_folder_replaces_an_earlier_demo(run_demo, tmp_path):
    (run_demo.fresh_folder(tmp_path) / "report.md").write_text("old")
    assert not (run_demo.fresh_folder(tmp_path) / "report.md").exists()


def test_fresh_folder_keeps_what_is_not_its_own(run_demo, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert run_demo.main(["--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "--folder" in error
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("folder", ["notes", "notes/demo"])
def test_a_file_is_no_folder(run_demo, tmp_path, capsys, folder):
    (tmp_path / "notes").touch()
    assert run_demo.main(["--folder", str(tmp_path / folder)]) == 2
    error = capsys.readouterr().err
    assert "expected a new folder" in error and error.count("\n") == 1


def test_a_python_without_the_package_keeps_an_earlier_demo(run_demo, tmp_path, capsys, monkeypatch):
    (run_demo.fresh_folder(tmp_path) / "report.md").write_text("old")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert run_demo.main(["--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: There is no ") and "make demo" in error and error.count("\n") == 1
    assert (tmp_path / "report.md").is_file()


def test_worst_case_of_every_noise_type(run_demo):
    def entry(noise, dice):
        return {"noise": noise, "label_dice": {"achieved": dice}}

    cases = {
        "a": entry("erosion", 0.7),
        "b": entry("erosion", 0.5),
        "c": {"noise": None},
        "d": entry("affine", 0.6),
        "e": entry("erosion", 0.6),
    }
    assert run_demo.worst_cases({"cases": cases}) == ["b", "d"]


def test_table(run_demo, tmp_path):
    summary = {"foreground_mean": {"Dice": 0.5}, "mean": {"1": {"Dice": 0.75}, "2": {"Dice": 0.25}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    scores = run_demo.read_scores(tmp_path / "summary.json")
    lines = run_demo.score_table({"nnU-Net": scores}, {"1": "head", "2": "tail"}).splitlines()
    assert lines[2:] == [
        "| trained with | mean Dice | head | tail |",
        "|---|---|---|---|",
        "| nnU-Net | 0.500 | 0.750 | 0.250 |",
    ]


def test_failed_command_names_its_log(run_demo, tmp_path, capsys):
    demo = run_demo.Demo(run_demo.fresh_folder(tmp_path / "demo"), "cpu")
    with pytest.raises(
        run_demo.DemoError, match=r"python ended with status 3: no good; all of its output is in .*00_python.log"
    ):
        demo.run({}, "python", "-c", "import sys; print('no good'); sys.exit(3)")
    assert "$ python -c" in capsys.readouterr().out


def test_variables_of_one_command(run_demo, tmp_path, capsys):
    demo = run_demo.Demo(run_demo.fresh_folder(tmp_path / "demo"), "cpu")
    out = demo.run({"A": "1", "B": "2"}, "python", "-c", "import os; print(os.environ['A'], os.environ['B'])", B="3")
    assert out == "1 3\n"
    assert "$ B=3 python -c" in capsys.readouterr().out
