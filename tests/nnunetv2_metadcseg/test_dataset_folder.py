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


@pytest.mark.parametrize("dataset", ["5", "Dataset004", "Hippocampus"])
def test_unknown(preprocessed, dataset):
    with pytest.raises(FileNotFoundError, match=f"Found none for data set '{dataset}' in .*, expected exactly one"):
        preprocessed_folder(dataset)


def test_two_of_one_id(preprocessed):
    with pytest.raises(FileNotFoundError, match="Found Dataset041_Liver, Dataset041_Spleen for data set '41'"):
        preprocessed_folder("41")
    assert preprocessed_folder("Dataset041_Spleen").name == "Dataset041_Spleen"


def test_variable_not_set(monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with pytest.raises(FileNotFoundError, match="export nnUNet_preprocessed="):
        preprocessed_folder("4")
