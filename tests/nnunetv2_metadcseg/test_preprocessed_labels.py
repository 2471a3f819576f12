from __future__ import annotations

import pytest

from nnunetv2_metadcseg.preprocessed_labels import listed_labels, outdated_labels
from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg
from tests.nnunetv2_metadcseg import tiny_dataset


@pytest.fixture
def folders(tmp_path):
    """Preprocessed and raw folder, with one label in both."""
    preprocessed, raw = tmp_path / "pre" / "Dataset504_Demo", tmp_path / "raw" / "Dataset504_Demo"
    for folder in (preprocessed / "gt_segmentations", raw / "labelsTr"):
        folder.mkdir(parents=True)
        (folder / "c.nii").write_bytes(b"label")
    return preprocessed, raw


def test_a_label_that_was_corrected(folders):
    assert outdated_labels(["c"], *folders, {}, ".nii") == {}
    (folders[1] / "labelsTr" / "c.nii").write_bytes(b"other")
    found = outdated_labels(["c"], *folders, {}, ".nii")
    assert list(found) == ["c"] and "run nnUNetv2_preprocess for Dataset504_Demo" in found["c"]


def test_a_copy_that_was_removed_has_not_been_made_anew(folders):
    (folders[0] / "gt_segmentations" / "c.nii").unlink()
    assert list(outdated_labels(["c"], *folders, {}, ".nii")) == ["c"]
    (folders[0] / "gt_segmentations").rmdir()
    assert outdated_labels(["c"], *folders, {}, ".nii") == {}


def test_labels_that_are_not_on_this_machine_are_not_compared(folders):
    assert outdated_labels(["d"], *folders, {}, ".nii") == {}


def test_listed_labels():
    assert listed_labels({"dataset": {"c": {"images": [], "label": "own.nii"}, "d": "?"}}) == {"c": "own.nii"}
    assert listed_labels({}) == listed_labels({"dataset": None}) == {}


def test_training_warns_of_trusted_labels_only(tmp_path, monkeypatch, capsys):
    for name, value in tiny_dataset.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    dataset = tiny_dataset.make(tmp_path)
    raw, copies = tmp_path / "raw" / tiny_dataset.NAME / "labelsTr", dataset.folder / "gt_segmentations"
    for folder in (raw, copies):
        folder.mkdir(parents=True)
        for case in dataset.cases:
            (folder / f"{case}.nii.gz").write_bytes(b"label")
    for case in ("case_1", "case_2"):
        (raw / f"{case}.nii.gz").write_bytes(b"other")
    dataset.trainer(nnUNetTrainerMetaDCSeg).on_train_start()
    warnings = [line for line in capsys.readouterr().out.splitlines() if "would not see it" in line]
    assert len(warnings) == 1
    assert "WARNING: The label" in warnings[0] and "case_1.nii.gz is not the one" in warnings[0]
