from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from noise_tools.metrics import METRICS, assd, dice, hd95, iou, label_metrics, named_labels, surface_dice

SPACING = (2.5, 0.8, 1.1)


def ball(shape: tuple[int, ...], center: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape)
    return sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2


def random_blobs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.uniform(2, np.array(shape) - 2, size=(3, len(shape)))
    return np.logical_or.reduce([ball(shape, tuple(c), rng.uniform(1, 4)) for c in centers])


def test_values_that_can_be_counted_by_hand():
    reference, prediction = np.zeros((1, 10), dtype=int), np.zeros((1, 10), dtype=int)
    reference[0, 2:6] = 1
    prediction[0, 4:8] = 1
    values = label_metrics(reference, prediction, (1.0, 3.0), [1], tolerance=3.0)[1]
    assert values["dice"] == 0.5
    assert values["iou"] == pytest.approx(2 / 6)
    # A picture of one row: every voxel is surface. Distances from 2, 3, 4, 5 to 4..7: 2, 1, 0, 0 voxels of 3 mm.
    assert values["assd"] == pytest.approx((6 + 3) * 2 / 8)
    assert values["surface_dice"] == pytest.approx(6 / 8)
    assert values["hd95"] == pytest.approx(np.percentile([6, 3, 0, 0], 95))
    assert values["reference_volume"] == values["prediction_volume"] == 12.0
    assert values["volume_change"] == 0.0
    assert (values["components_gained"], values["components_lost"]) == (0, 0)
    assert tuple(values) == METRICS


def test_identical_maps_are_at_distance_zero():
    labels = random_blobs(0, (12, 20, 16)).astype(np.uint8) * 3
    values = label_metrics(labels, labels, SPACING, [3])[3]
    assert values["dice"] == values["iou"] == values["surface_dice"] == 1.0
    assert values["hd95"] == values["assd"] == values["volume_change"] == 0.0


def test_distances_follow_the_spacing_of_each_axis():
    reference = np.zeros((20, 20, 20), dtype=bool)
    reference[5, 5, 5] = True
    for axis, size in enumerate(SPACING):
        prediction = np.roll(reference, 4, axis=axis)
        assert hd95(reference, prediction, SPACING) == pytest.approx(4 * size)
        assert assd(reference, prediction, SPACING) == pytest.approx(4 * size)


def test_components_that_touch_nothing_are_gained_or_lost():
    reference, prediction = np.zeros((9, 30), dtype=int), np.zeros((9, 30), dtype=int)
    reference[1:4, 1:4] = prediction[2:5, 2:5] = 1
    reference[1:3, 10:12] = 1
    prediction[6:8, 20:22] = prediction[6:8, 26:28] = 1
    values = label_metrics(reference, prediction, (1, 1), [1])[1]
    assert (values["components_gained"], values["components_lost"]) == (2, 1)


def test_diagonal_neighbours_are_one_component():
    reference, prediction = np.zeros((6, 6), dtype=int), np.zeros((6, 6), dtype=int)
    prediction[1, 1] = prediction[2, 2] = 1
    assert label_metrics(reference, prediction, (1, 1), [1])[1]["components_gained"] == 1


@pytest.mark.parametrize(
    ("reference_filled", "prediction_filled", "overlap", "change"),
    [(False, False, math.nan, math.nan), (True, False, 0.0, -1.0), (False, True, 0.0, math.nan)],
)
def test_empty_structures(reference_filled, prediction_filled, overlap, change):
    filled = ball((8, 8, 8), (4, 4, 4), 2).astype(int)
    reference, prediction = filled * reference_filled, filled * prediction_filled
    values = label_metrics(reference, prediction, SPACING, [1])[1]
    for name in ("dice", "iou", "surface_dice"):
        assert values[name] == pytest.approx(overlap, nan_ok=True)
    assert math.isnan(values["hd95"]) and math.isnan(values["assd"])
    assert values["volume_change"] == pytest.approx(change, nan_ok=True)


def test_labels_by_name_and_regions():
    reference = np.zeros((10, 10), dtype=np.uint8)
    reference[2:5, 2:5], reference[5:8, 2:5] = 1, 2
    prediction = reference.copy()
    prediction[5:8, 2:5] = 1
    names = {"background": 0, "edema": 1, "whole": [1, 2], "ignore": 9}
    values = label_metrics(reference, prediction, (1, 1), names)
    assert list(values) == ["edema", "whole"]
    assert values["whole"]["dice"] == 1.0
    assert values["edema"]["dice"] == pytest.approx(2 * 9 / (9 + 18))
    assert named_labels([1, [1, 2]]) == {1: 1, (1, 2): (1, 2)}


def test_ignored_voxels_count_nowhere():
    reference = np.zeros((10, 10), dtype=np.uint8)
    reference[2:5, 2:8] = 1
    prediction = reference.copy()
    reference[2:5, 6:8] = 9
    assert label_metrics(reference, prediction, (1, 1), [1])[1]["dice"] < 1
    values = label_metrics(reference, prediction, (1, 1), [1], ignore_label=9)[1]
    assert values["dice"] == 1.0 and values["prediction_volume"] == 12
    assert label_metrics(reference, prediction, (1, 1), {"cell": 1, "ignore": 9})["cell"] == values


def test_distances_can_be_left_out():
    labels = random_blobs(1, (8, 16, 16)).astype(int)
    values = label_metrics(labels, labels, SPACING, [1], distances=False)[1]
    assert values["dice"] == 1.0
    assert math.isnan(values["hd95"]) and math.isnan(values["assd"]) and math.isnan(values["surface_dice"])


def test_the_surroundings_of_a_structure_change_nothing():
    reference, prediction = random_blobs(2, (10, 20, 16)), random_blobs(3, (10, 20, 16))
    small = label_metrics(reference, prediction, SPACING, [1])[1]
    large = label_metrics(np.pad(reference, 7), np.pad(prediction, 7), SPACING, [1])[1]
    assert large == pytest.approx(small)


def test_overlap_agrees_with_simpleitk():
    import SimpleITK as sitk

    for seed in range(5):
        reference, prediction = random_blobs(seed, (10, 20, 16)), random_blobs(seed + 50, (10, 20, 16))
        measures = sitk.LabelOverlapMeasuresImageFilter()
        measures.Execute(*(sitk.GetImageFromArray(m.astype(np.uint8)) for m in (reference, prediction)))
        assert dice(reference, prediction) == pytest.approx(measures.GetDiceCoefficient())
        assert iou(reference, prediction) == pytest.approx(measures.GetJaccardCoefficient())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("shape", [(10, 20, 16), (30, 24)])
def test_distances_agree_with_monai(shape):
    """MONAI is the second opinion: same definitions, code of other people."""
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    spacing = SPACING[: len(shape)]
    for seed in range(6):
        masks = random_blobs(seed, shape), random_blobs(seed + 100, shape)
        if seed == 5:  # structures cut by the border of the image
            masks = tuple(np.roll(m, shape[0] // 2, axis=0) for m in masks)
        reference, prediction = (torch.from_numpy(m)[None, None] for m in masks)
        theirs = {
            hd95: monai.compute_hausdorff_distance(prediction, reference, True, percentile=95, spacing=spacing),
            assd: monai.compute_average_surface_distance(prediction, reference, True, symmetric=True, spacing=spacing),
            surface_dice: monai.compute_surface_dice(prediction, reference, [1.0], True, spacing=spacing),
        }
        for ours, value in theirs.items():
            assert ours(*masks, spacing) == pytest.approx(float(value), rel=1e-5), ours.__name__


def test_bad_input_is_named_in_one_sentence():
    labels = np.zeros((4, 5), dtype=int)
    with pytest.raises(ValueError, match=r"shape \(4, 5\) and the prediction \(5, 4\)"):
        label_metrics(labels, labels.T, (1, 1), [1])
    with pytest.raises(ValueError, match="one positive number per array axis"):
        label_metrics(labels, labels, (1, 1, 1), [1])
    with pytest.raises(ValueError, match="one positive number per array axis"):
        hd95(labels, labels, (1, -1))
    with pytest.raises(ValueError, match="no label to compare"):
        label_metrics(labels, labels, (1, 1), {"background": 0})
    with pytest.raises(ValueError, match="0 mm or more, got -1"):
        label_metrics(labels, labels, (1, 1), [1], tolerance=-1)


def test_the_example_of_the_docs_runs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "noise_tools.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    exec(code, {})
    assert capsys.readouterr().out.strip() == re.search(r"# ([\d. ]+)$", code, re.MULTILINE)[1]
