"""The command's options and errors; nothing here needs a trained model."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nnunetv2_metadcseg.cli import main
from nnunetv2_metadcseg.label_audit_cli import _folds, known_cases


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for kind in ("preprocessed", "results"):
        (tmp_path / kind).mkdir()
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    monkeypatch.delenv("nnUNet_raw", raising=False)
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
    assert "none for data set '7'" in error(capsys, "-d", 7, "-o", folders / "out")
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


def test_what_a_killed_audit_left_is_named(folders, capsys):
    remnant = folders / ".out.abcd1234"
    remnant.mkdir()
    assert main(["audit", "-d", "7", "-o", str(folders / "out")]) == 2
    assert capsys.readouterr().out == f"note: {remnant}: left of a killed audit; remove it, unless it still runs\n"


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
    text = capsys.readouterr().out
    assert "1 cases added (c)" in text and f"{out / 'to_check.1.json'}: your answers" in text
    assert "renames to to_check.1.json" in error(capsys, *confirm)
    assert main(["audit", "--apply", "trusted", "-o", str(out)]) == 0
    assert json.loads(file.read_text()) == {"b": "to check"}  # c is trusted now, though audit.json does not know


def test_empty_list_of_trusted_cases_does_not_block_the_first_confirmation(folders):
    trusted = folders / "preprocessed" / "Dataset504_Demo" / "trusted_cases.json"
    trusted.write_text("[]")
    (folders / "to_check.json").write_text(json.dumps({"b": "checked"}))
    assert main(["audit", "--apply", "trusted", "--confirm", str(folders / "to_check.json"), "-d", "504"]) == 0
    assert json.loads(trusted.read_text()) == ["b"]


def test_confirmation_needs_a_data_set_file(folders, capsys):
    (folders / "to_check.json").write_text(json.dumps({"b": "checked"}))
    confirm = ("--apply", "trusted", "--confirm", folders / "to_check.json", "-d", 504)
    file = folders / "preprocessed" / "Dataset504_Demo" / "dataset.json"
    for content, message in (("{", "dataset.json is not valid JSON"), ("[]", 'has no "file_ending"')):
        file.write_text(content)
        assert message in error(capsys, *confirm)


def test_confirmation_looks_at_the_raw_label(folders, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(folders / "raw"))
    labels = folders / "raw" / "Dataset504_Demo" / "labelsTr"
    labels.mkdir(parents=True)
    (labels / "b.nii.gz").write_bytes(b"corrected")
    (folders / "to_check.json").write_text(json.dumps({"b": "checked"}))
    confirm = ("--apply", "trusted", "--confirm", folders / "to_check.json", "-d", 504)
    assert "run nnUNetv2_preprocess for Dataset504_Demo" in error(capsys, *confirm)


def test_cases_are_taken_once_and_worst_is_no_negative_number(folders, capsys):
    assert known_cases(SimpleNamespace(cases=lambda: ["a", "b"]), ["b", "a", "b"]) == ["b", "a"]
    assert "--worst is -1" in error(capsys, "-d", 504, "-o", folders / "out", "--worst", -1)


def test_fold_names(folders, capsys):
    (folders / "results" / "Dataset504_Demo" / "nnUNetTrainer__nnUNetPlans__2d").mkdir(parents=True)
    common = ("-d", 504, "-tr", "nnUNetTrainer", "-c", "2d", "-o", folders / "out", "-device", "cpu")
    assert "'x', expected fold numbers or all" in error(capsys, *common, "-f", "x")
    assert "dataset.json" in error(capsys, *common, "-f", 0)


def test_a_fold_that_is_named_twice_counts_once():
    assert _folds(["0", "00", "1", "all", "01"]) == [0, 1, "all"]
