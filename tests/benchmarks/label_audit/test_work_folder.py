from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).resolve().parents[3] / "benchmarks" / "label_audit"
sys.path.append(str(AUDIT))  # run from their own folder, its scripts import each other by plain names

import run  # noqa: E402
from train import SOURCES, Cell  # noqa: E402
from work_folder import WorkFolderError, check_numbers, keep_settings  # noqa: E402


def test_settings_of_the_first_run_hold(tmp_path):
    keep_settings(tmp_path / "work", {"steps": 400, "cases": 70})
    keep_settings(tmp_path / "work", {"steps": 400, "cases": 70})
    with pytest.raises(WorkFolderError, match="made with steps 400, not 40: use another --work"):
        keep_settings(tmp_path / "work", {"steps": 40, "cases": 70})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Cell("nuclei", 0.8, 0), Cell("nuclei", 0.8, 4)),
        (Cell("nuclei", 0.8, 0), Cell("nuclei", 0.75, 0)),
        (Cell("nuclei", 0.8, 0), Cell("hippocampus", 0.9, 3)),
    ],
)
def test_data_sets_of_one_number_are_refused(tmp_path, first, second):
    with pytest.raises(WorkFolderError, match="the same number"):
        check_numbers(tmp_path, [first, second])
    (tmp_path / "nnUNet_raw" / first.dataset_name).mkdir(parents=True)
    (tmp_path / "nnUNet_raw" / first.source.raw_name).mkdir()
    with pytest.raises(WorkFolderError, match="the same number"):
        check_numbers(tmp_path, [second])


def test_what_can_be_told_apart_is_not(tmp_path):
    cells = [
        Cell(dataset, dice, seed, noise)
        for dataset in ("hippocampus", "nuclei")
        for dice in (0.6, 0.8)
        for seed in range(4)
        for noise in ("unbiased", "dilation", "erosion")
    ]
    check_numbers(tmp_path, cells)
    (tmp_path / "nnUNet_raw" / cells[0].dataset_name).mkdir(parents=True)
    check_numbers(tmp_path, [*cells, cells[0]])


def test_a_mistyped_data_folder_does_not_lock_the_working_folder(tmp_path):
    line = ["--data", str(tmp_path / "no_such_folder"), "--work", str(tmp_path / "work"), "--dataset", "nuclei"]
    assert run.main(line) == 2
    assert not (tmp_path / "work").exists()


def test_results_stay_where_writing_fails(tmp_path):
    cell, file = Cell("nuclei", 0.8, 0), tmp_path / "label_audit.csv"
    old = {"dataset": "nuclei", "label_dice": "0.6", "seed": "0"}
    run.add_rows(file, tuple(old), [old], cell)
    before = file.read_text()
    broken = old | {"dataset": "a", "more": 1}  # is written first
    with pytest.raises(ValueError, match="more"):
        run.add_rows(file, tuple(old), [broken], cell)
    assert file.read_text() == before
    run.add_rows(file, tuple(old), [old | {"label_dice": "0.8"}], cell)
    assert file.read_text().splitlines() == [*before.splitlines(), "nuclei,0.8,0"]


@pytest.fixture
def data(tmp_path) -> Path:
    """What the command takes for the clean data sets."""
    for source in SOURCES.values():
        (tmp_path / "data" / source.folder).mkdir(parents=True)
        (tmp_path / "data" / source.folder / "dataset.json").write_text("{}")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "40"], "use another --work"),
        (["--seed", "0", "4"], "same number"),
        (["--data", "no_such_folder"], "Found no Dataset004_Hippocampus/dataset.json in "),
    ],
)
def test_the_command_stops_with_one_sentence(tmp_path, data, options, message):
    keep_settings(tmp_path, {"data": str(data), "steps": 400, "cases": 70, "trusted": 10, "case_fraction": 0.5})
    command = [sys.executable, str(AUDIT / "run.py"), "--data", str(data), "--work", str(tmp_path)]
    command += ["--results", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
