"""Data sets on which even clean labels give a poor Dice."""

from __future__ import annotations

import json

import hard_data
import numpy as np
import pytest
import SimpleITK as sitk


@pytest.fixture
def source(tmp_path):
    """Raw data sets with the names that are expected, one case each."""
    for name, *_, whole in hard_data.DEGRADED:
        folder = tmp_path / "data" / name
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True)
        ending, shape = (".png", (24, 20)) if whole else (".nii.gz", (8, 12, 10))
        array = np.zeros(shape, np.uint8)
        array[2:6, 3:7] = 1
        label = sitk.GetImageFromArray(array)
        label.SetSpacing([2.0] * len(shape))
        sitk.WriteImage(label * 100, str(folder / "imagesTr" / f"case_0000{ending}"))
        sitk.WriteImage(label, str(folder / "labelsTr" / f"case{ending}"))
        (folder / "dataset.json").write_text(json.dumps({"name": name}))
    return tmp_path / "data"


def read(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_images_are_degraded_and_labels_stay(source, tmp_path):
    out = tmp_path / "out"
    assert hard_data.main(["--data", str(source), "--output", str(out)]) == 0
    for name, target, *_ in hard_data.DEGRADED:
        (image,) = (out / target / "imagesTr").iterdir()
        (label,) = (out / target / "labelsTr").iterdir()
        before = read(source / name / "imagesTr" / image.name).astype(float)
        assert 0.3 < np.corrcoef(before.ravel(), read(image).ravel())[0, 1] < 0.9
        assert np.array_equal(read(label), read(source / name / "labelsTr" / label.name))
    spacing = sitk.ReadImage(str(next((out / "Dataset005_HippocampusHard" / "imagesTr").iterdir()))).GetSpacing()
    assert spacing == (2.0, 2.0, 2.0)


def test_kinds_are_told_apart_by_the_median_size_of_an_image():
    label = np.zeros((64, 64), np.uint8)
    assert not hard_data.by_kind(label).any()
    label[:4, :4] = label[10:14, :4] = 1
    assert np.array_equal(hard_data.by_kind(label), label)
    label[20:40, 10:30] = label[44:64, 10:30] = label[44:64, 40:60] = 1
    assert np.array_equal(hard_data.by_kind(label), 2 * label)


def test_rims_are_the_border_of_what_is_labelled(source, tmp_path):
    label = np.zeros((20, 20), np.uint8)
    label[2:14, 3:20] = 255  # touches the image's edge, which is no border of the structure
    rim = hard_data.with_rim(label)
    assert set(np.unique(rim)) == {0, 1, 2} and np.array_equal(rim > 0, label > 0)
    assert (rim[5:11, 6:] == 1).all() and (rim[2:5, 3:] == 2).all()
    assert hard_data.main(["--data", str(source), "--output", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out" / hard_data.RIMS
    (image,), (written,) = ((folder / part).iterdir() for part in ("imagesTr", "labelsTr"))
    assert np.array_equal(read(image), read(source / hard_data.NUCLEI / "imagesTr" / image.name))
    assert np.array_equal(read(written) > 0, read(source / hard_data.NUCLEI / "labelsTr" / written.name) > 0)
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "inside": 1, "rim": 2}
    regions = json.loads((tmp_path / "out" / hard_data.REGIONS / "dataset.json").read_text())
    assert regions["labels"] == {"background": 0, "nucleus": [1, 2], "inside": 1}
    assert regions["regions_class_order"] == [2, 1]


def test_thick_slices_are_every_fourth_with_their_distance(source, tmp_path):
    assert hard_data.main(["--data", str(source), "--output", str(tmp_path / "out")]) == 0
    for part in ("imagesTr", "labelsTr"):
        (thick,) = (tmp_path / "out" / hard_data.THICK / part).iterdir()
        before, after = (
            sitk.ReadImage(str(file)) for file in (source / hard_data.HIPPOCAMPUS / part / thick.name, thick)
        )
        assert np.array_equal(sitk.GetArrayFromImage(after), sitk.GetArrayFromImage(before)[::4])
        assert after.GetSpacing() == (2.0, 2.0, 8.0) and after.GetOrigin() == before.GetOrigin()


def test_bad_folders_are_named(source, tmp_path, capsys):
    assert hard_data.main(["--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "lacks Dataset020_Nuclei, Dataset004_Hippocampus" in capsys.readouterr().err
    (tmp_path / "out" / "Dataset022_Lesions").mkdir(parents=True)
    assert hard_data.main(["--data", str(source), "--output", str(tmp_path / "out")]) == 2
    assert "already holds Dataset022_Lesions" in capsys.readouterr().err
    assert not (tmp_path / "out" / "Dataset021_NucleiHard").exists()
