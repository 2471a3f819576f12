from __future__ import annotations

import json

import numpy as np
import pytest

from noise_tools.errors import NoiseToolsError
from noise_tools.label_folders import open_label_folder
from tests.noise_tools.label_files import two_balls, write, write_dataset, write_sheared


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".png", ".tif"])
def test_reads_what_nnunet_reads(tmp_path, ending):
    label = two_balls((24, 20)) if ending in (".png", ".tif") else two_balls()
    write(tmp_path / f"a{ending}", label, (2.0, 0.5, 0.75))
    folder = open_label_folder(tmp_path)
    found, spacing = folder.read_label("a")
    assert np.array_equal(found, label) and np.issubdtype(found.dtype, np.integer)
    assert spacing == pytest.approx((2.0, 0.5, 0.75) if label.ndim == 3 else (1.0, 1.0))
    assert folder.labels is None and folder.read_image("a") is None


def test_a_data_set_by_folder_by_label_folder_or_by_number(tmp_path, monkeypatch):
    dataset = write_dataset(tmp_path / "Dataset007_Made", {"a": two_balls(), "b": two_balls()})
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    for where in (dataset, dataset / "labelsTr", "7", "Dataset007_Made"):
        folder = open_label_folder(where)
        assert folder.name == "Dataset007_Made"
        assert list(folder.cases) == ["a", "b"]
        assert folder.labels == {"head": 1, "tail": 2}
        assert folder.read_image("b").shape == (12, 24, 20)


def test_cases_listed_in_dataset_json(tmp_path):
    """As noise_tools corrupt writes it: own labels, images elsewhere."""
    source = write_dataset(tmp_path / "Dataset001_Source", {"a": two_balls()})
    target = write_dataset(tmp_path / "Dataset002_Target", {"a": two_balls(shift=2)}, images=False)
    content = json.loads((target / "dataset.json").read_text())
    content["dataset"] = {
        "a": {"images": ["../Dataset001_Source/imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
    }
    (target / "dataset.json").write_text(json.dumps(content))
    folder = open_label_folder(target)
    assert np.array_equal(folder.read_label("a")[0], two_balls(shift=2))
    assert np.array_equal(folder.read_image("a"), open_label_folder(source).read_image("a"))


def test_predictions_beside_a_copy_of_dataset_json(tmp_path):
    """nnUNetv2_predict writes dataset.json, with its list of training cases, into the folder of predictions."""
    dataset = write_dataset(tmp_path / "Dataset001_Source", {"train": two_balls()})
    content = json.loads((dataset / "dataset.json").read_text())
    content["dataset"] = {"train": {"images": ["imagesTr/train_0000.nii.gz"], "label": "labelsTr/train.nii.gz"}}
    write(tmp_path / "predictions" / "test.nii.gz", two_balls())
    for name in ("dataset.json", "plans.json", "predict_from_raw_data_args.json"):
        (tmp_path / "predictions" / name).write_text(json.dumps(content))
    folder = open_label_folder(tmp_path / "predictions")
    assert list(folder.cases) == ["test"] and folder.labels == {"head": 1, "tail": 2} and folder.images == {}


def test_regions_and_ignore_label(tmp_path):
    declared = {"background": 0, "whole": [1, 2], "tail": 2, "ignore": 3}
    folder = open_label_folder(write_dataset(tmp_path / "set", {"a": two_balls()}, declared=declared))
    assert folder.labels == {"whole": (1, 2), "tail": 2} and folder.ignore == 3


def test_labels_stored_as_whole_floats_are_labels(tmp_path):
    write(tmp_path / "a.nii.gz", two_balls().astype(np.float32))
    assert np.array_equal(open_label_folder(tmp_path).read_label("a")[0], two_balls())


def test_an_image_is_no_label(tmp_path):
    write(tmp_path / "a.nii.gz", two_balls().astype(np.float32) + 0.5)
    with pytest.raises(NoiseToolsError, match="no whole numbers"):
        open_label_folder(tmp_path).read_label("a")


def test_images_given_with_or_without_channel_number(tmp_path):
    write(tmp_path / "labels" / "a.nii.gz", two_balls())
    write(tmp_path / "labels" / "b.nii.gz", two_balls())
    write(tmp_path / "images" / "a_0000.nii.gz", two_balls())
    write(tmp_path / "images" / "b.nii.gz", two_balls())
    assert set(open_label_folder(tmp_path / "labels", tmp_path / "images").images) == {"a", "b"}


def test_bad_folders_are_named_in_one_sentence(tmp_path):
    with pytest.raises(NoiseToolsError, match="nowhere does not exist; expected a folder"):
        open_label_folder(tmp_path / "nowhere")
    with pytest.raises(NoiseToolsError, match="No label file in"):
        open_label_folder(tmp_path)
    write(tmp_path / "a.nii.gz", two_balls())
    with pytest.raises(NoiseToolsError, match="is a file"):
        open_label_folder(tmp_path / "a.nii.gz")
    with pytest.raises(NoiseToolsError, match="is no folder"):
        open_label_folder(tmp_path, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoiseToolsError, match="expected names such as a_0000"):
        open_label_folder(tmp_path, tmp_path / "empty")
    write(tmp_path / "a.mha", two_balls())
    with pytest.raises(NoiseToolsError, match="two label files of case a"):
        open_label_folder(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(NoiseToolsError, match="not valid JSON"):
        open_label_folder(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"not an image")
    with pytest.raises(NoiseToolsError, match="a.nii.gz"):
        open_label_folder(tmp_path).read_label("a")


def test_why_the_reader_that_was_asked_for_refuses_a_file_is_said(tmp_path):
    write_sheared(tmp_path / "a.nii.gz", two_balls())
    assert np.array_equal(open_label_folder(tmp_path).read_label("a")[0], two_balls())  # nibabel reads it
    (tmp_path / "dataset.json").write_text('{"overwrite_image_reader_writer": "SimpleITKIO"}')
    says = r"a.nii.gz .ITK ERROR: .*direction cosines.*\); expected a whole image file that nnU-Net's SimpleITKIO takes"
    with pytest.raises(NoiseToolsError, match=says) as error:
        open_label_folder(tmp_path).read_label("a")
    assert ".cxx" not in str(error.value)
