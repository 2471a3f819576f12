"""Synthetic data sets of the study on hard data."""

from __future__ import annotations

import json

import numpy as np
import SimpleITK as sitk
import synthetic_data
from scipy.ndimage import binary_erosion


def cases(draw, count: int, first: int = 0) -> list:
    return [draw(np.random.default_rng(seed)) for seed in range(first, first + count)]


def test_lesions_are_bright_and_a_fifth_of_the_cases_has_none():
    drawn = cases(synthetic_data.lesion_case, 60)
    assert 5 <= sum(not label.any() for _, label in drawn) <= 19
    brighter = [image[label > 0].mean() - image[label == 0].mean() for image, label in drawn if label.any()]
    assert np.mean(brighter) > 10


def test_vessels_are_thin_and_dark_in_colour_pictures():
    drawn = cases(synthetic_data.vessel_case, 20)
    for image, label in drawn:
        assert image.shape == (*label.shape, 3) and image.dtype == np.uint8
        assert 0.01 < label.mean() < 0.2
        assert not binary_erosion(label, iterations=6).any()
    green = [image[..., 1].astype(float) for image, _ in drawn]
    darker = [g[label == 0].mean() - g[label > 0].mean() for g, (_, label) in zip(green, drawn, strict=True)]
    assert np.mean(darker) > 10


def test_organs_differ_in_size_and_the_smallest_may_be_missing():
    labels = [label for _, label in cases(synthetic_data.organ_case, 30)]
    sizes = np.array([[(label == value).sum() for value in range(1, 5)] for label in labels])
    liver, kidney, gallbladder, vessel = np.median(sizes, axis=0)
    assert liver > 4 * kidney > 8 * gallbladder and vessel > gallbladder
    assert sizes[:, [0, 1, 3]].min() > 0 and 2 <= (sizes[:, 2] == 0).sum() <= 12


def test_written_cases_are_a_raw_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_data, "CASES", 2)
    monkeypatch.setattr(synthetic_data, "ORGAN_CASES", 2)
    for name, write, ending, channels in (
        ("Dataset026_Vessels", synthetic_data.write_vessels, ".png", 3),
        ("Dataset027_Organs", synthetic_data.write_organs, ".nii.gz", 1),
    ):
        write(tmp_path / name)
        description = json.loads((tmp_path / name / "dataset.json").read_text())
        assert description["numTraining"] == 2 and description["file_ending"] == ending
        short = name.split("_")[1].lower()
        for number in range(2):
            image = sitk.ReadImage(str(tmp_path / name / "imagesTr" / f"{short}_{number:03d}_0000{ending}"))
            label = sitk.ReadImage(str(tmp_path / name / "labelsTr" / f"{short}_{number:03d}{ending}"))
            assert image.GetNumberOfComponentsPerPixel() == channels and image.GetSize() == label.GetSize()
            assert set(np.unique(sitk.GetArrayViewFromImage(label))) <= set(description["labels"].values())


def test_a_case_is_drawn_the_same_again():
    for draw in (synthetic_data.lesion_case, synthetic_data.vessel_case, synthetic_data.organ_case):
        (one,), (two,) = cases(draw, 1), cases(draw, 1)
        assert all(map(np.array_equal, one, two))
