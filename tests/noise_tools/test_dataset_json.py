from __future__ import annotations

import json
from pathlib import Path

import pytest

from noise_tools import cli
from noise_tools.dataset_json import declared_labels, read_dataset_json
from noise_tools.errors import NoiseToolsError
from noise_tools.label_folders import open_label_folder
from noise_tools.raw_dataset import open_dataset


def test_declared_labels_with_regions_and_ignore():
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "edge": 3, "ignore": 4}
    declared = declared_labels(labels, Path("dataset.json"))
    assert declared.foreground == (1, 2, 3) and declared.ignore == 4
    assert declared.regions == {"whole": (1, 2, 3), "core": (2, 3), "edge": (3,)}
    assert declared.allowed == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("value", [1, 1.0, "1", [1]])
def test_numbers_that_nnunet_takes(value):
    assert declared_labels({"background": 0, "organ": value}, Path("dataset.json")).foreground == (1,)


def change(folder: Path, entries: dict) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


ENTRY = {"images": ["imagesTr/case_00_0000.nii.gz"], "label": "labelsTr/case_00.nii.gz"}


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (
            {"labels": {"0": "background", "1": "head"}},
            "in the order of nnU-Net v1, '0': 'background'; turn them round",
        ),
        ({"labels": ["background", "head"]}, "has a list as 'labels'; expected names with their values"),
        ({"labels": {"background": 0, "head": None}}, "gives label 'head' the value None; expected a whole number"),
        ({"labels": {"background": 0, "head": 1.5}}, "gives label 'head' the value 1.5; expected a whole number"),
        ({"labels": {"background": 0, "head": -1}}, "gives label 'head' the value -1; expected a whole number"),
        (
            {"labels": {"background": 0, "all": ["head"]}},
            "gives label 'all' the value ..head..; expected a whole number",
        ),
        ({"labels": {"background": 0, "head": 1, "ignore": []}}, "gives label 'ignore' the value ..; expected a whole"),
        (
            {"file_ending": "nii.gz"},
            "has 'nii.gz' as file_ending; expected an ending with its leading dot, .*'.nii.gz'",
        ),
        ({"file_ending": "png"}, "has 'png' as file_ending; expected an ending with its leading dot, such as '.png'"),
        ({"file_ending": None}, "has None as file_ending; expected an ending with its leading dot"),
        ({"dataset": ["case_00"]}, "has a list as 'dataset'; expected the files of each case by its name"),
        ({"dataset": {"case_00": {"images": []}}}, "the entry of case case_00 under 'dataset' is .*; expected"),
        ({"dataset": {"case_00": "case_00.nii.gz"}}, "the entry of case case_00 under 'dataset' is .*; expected"),
        ({"dataset": {"../evil": ENTRY}}, "has a case '../evil'; give cases names that can be file names"),
        ({"dataset": {"a/b": ENTRY}}, "has a case 'a/b'; give cases names that can be file names"),
    ],
)
def test_what_nnunet_does_not_take_is_one_sentence(raw, entries, says):
    """For `corrupt`, `preview` and `replay`, which open data sets, and for `report`, which opens label folders."""
    change(raw / "Dataset003_Balls", entries)
    with pytest.raises(NoiseToolsError, match=says):
        open_dataset(3)
    with pytest.raises(NoiseToolsError, match=says):
        open_label_folder(raw / "Dataset003_Balls")


def test_a_listed_case_without_images_is_no_training_case(raw):
    change(raw / "Dataset003_Balls", {"dataset": {"case_00": {"label": "labelsTr/case_00.nii.gz"}}})
    with pytest.raises(NoiseToolsError, match="lists no images of case case_00; add them"):
        open_dataset(3)
    assert list(open_label_folder(raw / "Dataset003_Balls").cases) == ["case_00"]


@pytest.mark.parametrize(("text", "says"), [("{", "is not valid JSON"), ("[]", "holds a list; expected an object")])
def test_no_object(tmp_path, text, says):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(NoiseToolsError, match=says):
        read_dataset_json(tmp_path / "dataset.json")


def test_the_command_says_it_without_a_traceback(raw, capsys):
    change(raw / "Dataset003_Balls", {"labels": {"0": "background", "1": "head"}})
    assert cli.main("corrupt -d 3 -o 503 --noise erosion".split()) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and len(error.splitlines()) == 1
