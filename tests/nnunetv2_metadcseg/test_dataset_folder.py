from __future__ import annotations

import pytest

from nnunetv2_metadcseg.dataset_folder import preprocessed_folder


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    for name in ("Dataset004_Hippocampus", "Dataset040_Liver", "Dataset041_Liver", "Dataset041_Spleen"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dataset", ["4", "004", "Dataset004_Hippocampus"])
def test_by_id_or_name(preprocessed, dataset):
    assert preprocessed_folder(dataset) == preprocessed / "Dataset004_Hippocampus"


def test_an_archive_beside_the_folder_is_no_data_set(preprocessed):
    (preprocessed / "Dataset004_Hippocampus.tar.gz").touch()
    (preprocessed / "Dataset000_Old.zip").touch()
    assert preprocessed_folder("4") == preprocessed / "Dataset004_Hippocampus"
    with pytest.raises(FileNotFoundError, match="there: Dataset004_Hippocampus, Dataset040_Liver"):
        preprocessed_folder("9")


@pytest.mark.parametrize("dataset", ["5", "Dataset004", "Hippocampus"])
def test_unknown(preprocessed, dataset):
    with pytest.raises(FileNotFoundError, match=f"Found none for data set '{dataset}' in .*, expected exactly one"):
        preprocessed_folder(dataset)


@pytest.mark.parametrize(
    ("dataset", "number"), [("5", "5"), ("Dataset005_Heart", "005"), ("Dataset004", "004"), ("Heart", "ID")]
)
def test_unknown_names_a_command_that_nnunet_takes(preprocessed, dataset, number):
    with pytest.raises(FileNotFoundError) as error:
        preprocessed_folder(dataset)
    assert f"run nnUNetv2_plan_and_preprocess -d {number}, or correct -d (" in str(error.value)
    assert "(there: Dataset004_Hippocampus, Dataset040_Liver, " in str(error.value)


def test_folder_that_is_not_there(preprocessed, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed / "x"))
    with pytest.raises(FileNotFoundError, match="nnUNet_preprocessed=.*x is not a folder"):
        preprocessed_folder("4")


def test_two_of_one_id(preprocessed):
    says = "Found Dataset041_Liver, Dataset041_Spleen for data set '41'.*give the name of one of them"
    with pytest.raises(FileNotFoundError, match=says):
        preprocessed_folder("41")
    assert preprocessed_folder("Dataset041_Spleen").name == "Dataset041_Spleen"


def test_variable_not_set(monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with pytest.raises(FileNotFoundError, match="export nnUNet_preprocessed="):
        preprocessed_folder("4")
