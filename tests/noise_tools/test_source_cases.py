from __future__ import annotations

import json
from pathlib import Path

import pytest

from noise_tools import cli
from noise_tools import manifest as manifests

SOURCE = "Dataset003_Balls"


def declare(raw: Path, *cases: str) -> None:
    path = raw / SOURCE / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trusted_cases": list(cases)}))


def corrupt(source: int, output: int, *words: str) -> int:
    start = [
        "corrupt",
        "-d",
        str(source),
        "-o",
        str(output),
        "--name",
        "New",
        "--noise",
        "dilation",
        "--severity",
        "0.2",
    ]
    return cli.main([*start, *words])


def trusted_in(raw: Path, number: int) -> list[str]:
    folder = raw / f"Dataset{number}_New"
    listed = json.loads((folder / "dataset.json").read_text())["trusted_cases"]
    manifest = manifests.read(folder / "noise_manifest.json")
    assert manifest["trusted_cases"] == listed and all(manifest["cases"][name]["noise"] is None for name in listed)
    return listed


def test_declared_trusted_cases_stay_so(raw, capsys):
    declare(raw, "case_01", "case_02", "case_07")
    assert corrupt(3, 503) == 0
    assert trusted_in(raw, 503) == ["case_01", "case_02", "case_07"]
    assert "Of the 3 trusted cases that Dataset003_Balls declares, 3 are trusted here." in capsys.readouterr().out


def test_the_file_among_the_preprocessed_wins(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    declare(raw, "case_01")
    (tmp_path / SOURCE).mkdir()
    (tmp_path / SOURCE / "trusted_cases.json").write_text('["case_03", "case_04"]')
    assert corrupt(3, 503) == 0
    assert trusted_in(raw, 503) == ["case_03", "case_04"]


def test_a_number_picks_among_the_declared(raw, capsys):
    declare(raw, "case_01", "case_02", "case_07")
    assert corrupt(3, 503, "--trusted", "2") == 0
    assert len(trusted_in(raw, 503)) == 2 and set(trusted_in(raw, 503)) < {"case_01", "case_02", "case_07"}
    assert corrupt(3, 504, "--trusted", "4") == 2
    assert "--trusted is 4, but of Dataset003_Balls only 3 cases" in capsys.readouterr().err


def test_declared_cases_are_held_out_only_by_name(raw):
    declare(raw, *(f"case_0{i}" for i in range(8)))
    assert corrupt(3, 503, "--test-cases", "1") == 0
    assert len(trusted_in(raw, 503)) == 8
    assert corrupt(3, 504, "--test-cases", "case_03") == 0
    assert len(trusted_in(raw, 504)) == 7


@pytest.mark.parametrize(("content", "says"), [(["nobody"], "trusted cases nobody"), (7, "expected a")])
def test_a_list_that_cannot_be_used_is_said(raw, capsys, content, says):
    path = raw / SOURCE / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trusted_cases": content}))
    assert corrupt(3, 503) == 2
    assert says in capsys.readouterr().err


def test_corrupted_cases_are_never_trusted_again_however_long_the_chain(raw, capsys):
    assert corrupt(3, 503, "--trusted", "2", "--case-fraction", "0.5") == 0
    wrong = manifests.corrupted_cases(manifests.read(raw / "Dataset503_New" / "noise_manifest.json"))
    assert len(wrong) == 4
    # Six clean cases are known there, so more may be trusted than are declared.
    assert corrupt(503, 504, "--trusted", "3", "--case-fraction", "0.3", "--seed", "3") == 0
    assert len(trusted_in(raw, 504)) == 3 and wrong.isdisjoint(trusted_in(raw, 504))
    manifest = manifests.read(raw / "Dataset504_New" / "noise_manifest.json")
    assert manifest["corrupted_before"] == sorted(wrong)
    twice = manifests.corrupted_cases(manifest)
    assert wrong <= twice
    right = 10 - len(twice)
    assert corrupt(504, 505, "--trusted", str(right)) == 0
    assert twice.isdisjoint(trusted_in(raw, 505))
    assert corrupt(504, 506, "--trusted", str(right + 1)) == 2
    assert f"only {right} cases that are not held out are known to be right" in capsys.readouterr().err
    assert corrupt(504, 506, "--trusted-cases", min(twice)) == 2
    assert f"--trusted-cases names {min(twice)}, which Dataset504_New has with a wrong label" in capsys.readouterr().err


def test_corrupted_cases_are_not_held_out_by_number(raw):
    assert corrupt(3, 503, "--trusted", "2", "--case-fraction", "0.5") == 0
    wrong = manifests.corrupted_cases(manifests.read(raw / "Dataset503_New" / "noise_manifest.json"))
    assert corrupt(503, 504, "--test-cases", "4") == 0
    assert wrong.isdisjoint(manifests.read(raw / "Dataset504_New" / "noise_manifest.json")["test_cases"])


def test_a_corrupted_case_that_is_declared_trusted_is_said(raw, capsys):
    assert corrupt(3, 503, "--trusted", "2", "--case-fraction", "0.5") == 0
    wrong = min(manifests.corrupted_cases(manifests.read(raw / "Dataset503_New" / "noise_manifest.json")))
    path = raw / "Dataset503_New" / "dataset.json"
    content = json.loads(path.read_text())
    content["trusted_cases"].append(wrong)
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert corrupt(503, 504) == 0
    assert len(trusted_in(raw, 504)) == 2 and wrong not in trusted_in(raw, 504)
    assert f"WARNING: Dataset503_New declares {wrong} trusted, but by its" in capsys.readouterr().out
