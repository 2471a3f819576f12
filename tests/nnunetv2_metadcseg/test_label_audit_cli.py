"""The command's options and errors; nothing here needs a trained model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nnunetv2_metadcseg.cli import main


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for kind in ("preprocessed", "results"):
        (tmp_path / kind).mkdir()
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    data = tmp_path / "preprocessed" / "Dataset504_Demo"
    (data / "gt_segmentations").mkdir(parents=True)
    (data / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "trusted_cases": ["a"]}))
    for case in ("a", "b", "c"):
        (data / "gt_segmentations" / f"{case}.nii.gz").touch()
    return tmp_path


def error(capsys, *arguments) -> str:
    assert main(["audit", *map(str, arguments)]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_help_imports_neither_torch_nor_nnunet():
    code = (
        "import sys; from nnunetv2_metadcseg.cli import build_parser; build_parser('audit').format_help()\n"
        "assert not {'torch', 'nnunetv2', 'SimpleITK', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_options_are_named(folders, capsys):
    assert "-o OUT" in error(capsys)
    assert "-d ID" in error(capsys, "-o", folders / "out")
    assert "--apply trusted" in error(capsys, "--confirm", "x.json")


def test_data_set_and_model_that_are_not_there(folders, capsys, monkeypatch):
    assert "match '7'" in error(capsys, "-d", 7, "-o", folders / "out")
    (folders / "results" / "Dataset504_Demo" / "other__nnUNetPlans__2d").mkdir(parents=True)
    text = error(capsys, "-d", 504, "-tr", "nnUNetTrainer", "-c", "2d", "-o", folders / "out")
    assert "no model nnUNetTrainer__nnUNetPlans__2d" in text and "other__nnUNetPlans__2d" in text
    monkeypatch.delenv("nnUNet_preprocessed")
    assert "nnUNet_preprocessed is not set" in error(capsys, "-d", 504, "-o", folders / "out")


def test_existing_folder_is_not_replaced(folders, capsys):
    (folders / "out").mkdir()
    (folders / "out" / "mine.txt").touch()
    assert "--overwrite" in error(capsys, "-d", 504, "-o", folders / "out")
    assert "not the folder of an earlier audit" in error(capsys, "-d", 504, "-o", folders / "out", "--overwrite")
    assert (folders / "out" / "mine.txt").exists()


def test_loop_from_proposal_to_trusted_cases(folders, capsys):
    out = folders / "out"
    out.mkdir()
    ranks = {"b": 1, "a": 2, "c": 3}
    cases = {case: {"rank": rank, "trusted": case == "a"} for case, rank in ranks.items()}
    (out / "audit.json").write_text(json.dumps({"cases": cases}))
    trusted = folders / "preprocessed" / "Dataset504_Demo" / "trusted_cases.json"
    assert main(["audit", "--apply", "trusted", "--top", "2", "-o", str(out)]) == 0
    file = out / "to_check.json"
    assert json.loads(file.read_text()) == {"b": "to check", "c": "to check"} and not trusted.exists()
    confirm = ("--apply", "trusted", "--confirm", file, "-d", 504)
    assert "marks no case" in error(capsys, *confirm) and not trusted.exists()
    file.write_text(json.dumps({"b": "to check", "c": "checked"}))
    assert main(["audit", *map(str, confirm)]) == 0
    assert json.loads(trusted.read_text()) == ["a", "c"]
    assert "1 cases added (c)" in capsys.readouterr().out


def test_fold_names(folders, capsys):
    (folders / "results" / "Dataset504_Demo" / "nnUNetTrainer__nnUNetPlans__2d").mkdir(parents=True)
    common = ("-d", 504, "-tr", "nnUNetTrainer", "-c", "2d", "-o", folders / "out", "-device", "cpu")
    assert "'x', expected fold numbers or all" in error(capsys, *common, "-f", "x")
    assert "dataset.json" in error(capsys, *common, "-f", 0)
