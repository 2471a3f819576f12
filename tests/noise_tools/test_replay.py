from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from noise_tools import cli, noise
from tests.noise_tools.label_files import two_balls, write

EVERYTHING = [name for name in noise.NAMES if name != "omission"] + ["omission+elastic", "erosion+affine"]


def corrupt(*words: object) -> None:
    assert cli.main(["corrupt", "-d", "3", "-o", "503", "--seed", "7", *(str(word) for word in words)]) == 0


def replay(manifest: Path, *words: object) -> int:
    return cli.main(["replay", "-d", "3", "--manifest", str(manifest), *(str(word) for word in words)])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("processes", [1, 2])
def test_every_type_again_with_the_same_bytes(raw, capsys, processes):
    corrupt("--noise", *EVERYTHING, "--trusted", 1, "--test-cases", 1, "--severity", "0.1:0.3", "--allow-empty")
    first = raw / "Dataset503_BallsNoisy"
    assert replay(first / "noise_manifest.json", "-o", 504, "-np", processes) == 0
    assert "9 labels, 9 of them with the bytes the manifest records" in capsys.readouterr().out
    assert files_of(first) == files_of(raw / "Dataset504_BallsNoisy")


@pytest.mark.parametrize("kind", EVERYTHING)
def test_each_type(raw, kind):
    corrupt("--noise", kind, "--trusted", 9, "--severity", 0.2)
    assert replay(raw / "Dataset503_BallsNoisy" / "noise_manifest.json", "-o", 504) == 0
    assert files_of(raw / "Dataset503_BallsNoisy") == files_of(raw / "Dataset504_BallsNoisy")


@pytest.fixture
def manifest(raw) -> Path:
    corrupt("--noise", "dilation", "--label-dice", 0.7, "--trusted", 2)
    return raw / "Dataset503_BallsNoisy" / "noise_manifest.json"


def test_labels_of_another_version_are_counted(raw, manifest, capsys):
    content = json.loads(manifest.read_text())
    name = next(name for name, entry in content["cases"].items() if entry["noise"])
    content["cases"][name]["sha256"] = "0"
    manifest.write_text(json.dumps(content))
    assert replay(manifest, "-o", 504) == 0
    out = capsys.readouterr().out
    assert "10 labels, 9 of them with the bytes" in out and "numpy" in out


def test_another_clean_label_is_refused(raw, manifest, capsys):
    write(raw / "Dataset003_Balls" / "labelsTr" / "case_04.nii.gz", np.roll(two_balls((14, 30, 24), radius=6), 1))
    assert replay(manifest, "-o", 504) == 2
    assert "Case case_04: " in (error := capsys.readouterr().err) and "is not the clean label" in error
    assert not (raw / "Dataset504_BallsNoisy").exists()


def test_another_data_set_is_refused(raw, manifest, capsys):
    (raw / "Dataset003_Balls" / "imagesTr" / "case_04_0000.nii.gz").unlink()
    assert replay(manifest, "-o", 504) == 2
    assert "Dataset003_Balls lacks 1 cases of noise_manifest.json (first: case_04)" in capsys.readouterr().err


def test_a_missing_test_case_is_said(raw, capsys):
    corrupt("--noise", "dilation", "--trusted", 2, "--test-cases", "case_04")
    manifest = raw / "Dataset503_BallsNoisy" / "noise_manifest.json"
    (raw / "Dataset003_Balls" / "imagesTr" / "case_04_0000.nii.gz").unlink()
    assert replay(manifest, "-o", 504) == 2
    assert "lacks 1 cases of noise_manifest.json (first: case_04); the manifest" in capsys.readouterr().err
    assert not (raw / "Dataset504_BallsNoisy").exists()


def test_a_manifest_that_lost_a_key_is_said(raw, manifest, capsys):
    content = json.loads(manifest.read_text())
    del content["test_cases"]
    manifest.write_text(json.dumps(content))
    assert replay(manifest, "-o", 504) == 2
    assert "lacks the key 'test_cases'; give the noise_manifest.json as it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a JSON file"),
        ("[]", "is not a noise manifest: expected the key 'schema' to be 'noise_tools.manifest'"),
        ('{"schema": "noise_tools.manifest", "schema_version": 99}', "has schema_version 99, this noise_tools reads 1"),
    ],
)
def test_no_manifest(raw, tmp_path, capsys, text, says):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    assert replay(path, "-o", 504) == 2
    assert says in capsys.readouterr().err


def test_missing_manifest(raw, tmp_path, capsys):
    assert replay(tmp_path / "no.json", "-o", 504) == 2
    assert "no.json does not exist; give the noise_manifest.json of a corrupted data set" in capsys.readouterr().err
