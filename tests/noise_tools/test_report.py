from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from noise_tools import report
from noise_tools.errors import NoiseToolsError
from noise_tools.metrics import METRICS, label_metrics
from tests.noise_tools.label_files import two_balls, write, write_dataset


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def raters(tmp_path):
    """Two raters, three cases: equal, moved, and one in which the second rater missed label 2."""
    first, second = tmp_path / "rater1", tmp_path / "rater2"
    missed = np.where(two_balls() == 2, 0, two_balls())
    for case, label in {"equal": two_balls(), "missed": missed, "moved": two_balls(shift=2)}.items():
        write(first / f"{case}.nii.gz", two_balls())
        write(second / f"{case}.nii.gz", label)
    return first, second


def test_rows_are_the_metrics_of_each_case_and_label(raters):
    comparison = report.compare(*raters)
    assert [(row.case, row.label) for row in comparison.rows] == [
        (case, label) for case in ("equal", "missed", "moved") for label in ("1", "2")
    ]
    expected = label_metrics(two_balls(), two_balls(shift=2), (2.0, 1.0, 1.0), [1, 2])
    assert [row.values for row in comparison.rows if row.case == "moved"] == [expected[1], expected[2]]
    assert comparison.equal_cases == {"equal"}
    assert comparison.worst_cases(9) == sorted(["missed", "moved"], key=comparison.case_dice().get)
    assert comparison.worst_cases(1) == comparison.worst_cases(9)[:1]


def test_written_files(raters, tmp_path, capsys):
    report.run(arguments(*raters, "-o", tmp_path / "out" / "deep"))
    folder = tmp_path / "out" / "deep"
    assert sorted(p.name for p in folder.iterdir()) == ["report.csv", "report.html"]
    table = list(csv.DictReader((folder / "report.csv").open()))
    assert list(table[0]) == ["case", "label", *METRICS]
    missed = next(row for row in table if (row["case"], row["label"]) == ("missed", "2"))
    assert missed["dice"] == "0" and missed["hd95"] == "" and missed["components_lost"] == "1"
    moved = next(row for row in table if (row["case"], row["label"]) == ("moved", "1"))
    expected = label_metrics(two_balls(), two_balls(shift=2), (2.0, 1.0, 1.0), [1])[1]
    for name in METRICS:
        assert float(moved[name]) == pytest.approx(expected[name], rel=1e-5)
    printed = capsys.readouterr().out
    assert "3 cases compared, 2 differ." in printed and "report.html" in printed


def test_processes_change_nothing(raters):
    one, two = (report.compare(*raters, processes=n) for n in (1, 2))
    assert report.csv_text(one.rows) == report.csv_text(two.rows)
    assert one.equal_cases == two.equal_cases


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIOWithReorient"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_reader_that_turns_axes_reads_both(tmp_path, reader, order):
    """A bare folder of the very files of a data set that asks for it."""
    image = sitk.GetImageFromArray(two_balls())
    image.SetDirection([0, 1, 0, -1, 0, 0, 0, 0, 1])
    first = write_dataset(tmp_path / "first", {"a": two_balls()})
    sitk.WriteImage(image, str(first / "labelsTr" / "a.nii.gz"))
    (tmp_path / "bare").mkdir()
    sitk.WriteImage(image, str(tmp_path / "bare" / "a.nii.gz"))
    content = json.loads((first / "dataset.json").read_text())
    (first / "dataset.json").write_text(json.dumps(content | {"overwrite_image_reader_writer": reader}))
    assert report.compare(*[first, tmp_path / "bare"][::order]).equal_cases == {"a"}


def test_labels_that_were_not_asked_for_make_no_case_different(raters):
    comparison = report.compare(*raters, labels=[1])
    assert comparison.equal_cases == {"equal", "missed"} and comparison.worst_cases(9) == ["moved"]
    assert report.summary(comparison).startswith("3 cases compared, 1 differ.")
    assert report.compare(*raters, labels=[2]).equal_cases == {"equal"}


def test_a_label_that_nobody_drew_is_said(raters):
    with pytest.raises(NoiseToolsError, match=r"among the labels to compare \(9\); correct --labels, A or B."):
        report.compare(*raters, labels=[9])
    assert len(report.compare(*raters, labels=[1, 9]).rows) == 6


def test_only_what_is_compared_can_differ():
    a, b = np.zeros((2, 8, 8), dtype=np.int16), np.zeros((2, 8, 8), dtype=np.int16)
    a[0, 1:3], b[0, 1:3], b[1, 4] = 3, 2, 1
    part = report.Scope(ignore=3).part(a, b)
    assert [np.unique(label).tolist() for label in part] == [[0], [0, 1]] and not part[1][0].any()
    assert np.array_equal(*report.Scope(ignore=3, only=(2,)).part(a, b))


def test_names_regions_and_ignore_of_a_data_set(tmp_path):
    declared = {"background": 0, "whole": [1, 2], "tail": 2, "ignore": 3}
    noisy = two_balls()
    noisy[noisy == 1] = 3
    first = write_dataset(tmp_path / "first", {"a": two_balls()}, declared=declared)
    second = write_dataset(tmp_path / "second", {"a": noisy}, declared=declared)
    comparison = report.compare(first, second)
    assert comparison.labels == ("whole", "tail")
    assert all(row.values["dice"] == 1 for row in comparison.rows), "what one rater ignored counts nowhere"
    assert comparison.equal_cases == {"a"}
    chosen = report.compare(first, second, labels=[2, 1])
    assert chosen.labels == ("tail", "1")


DECLARED = {"background": 0, "head": 1, "tail": 2, "both": [1, 2]}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (DECLARED | {"head": 2, "tail": 1}, "'head' is 1 in A but 2 in B"),
        ({"background": 0, "head": 1, "both": [1, 2]}, "'tail' is 2 in A but not declared in B"),
        (DECLARED | {"edge": 3}, "'edge' is not declared in A but 3 in B"),
        (DECLARED | {"both": [1, 2, 3]}, "'both' is 1, 2 in A but 1, 2, 3 in B"),
        (DECLARED | {"ignore": 4}, "'ignore' is 3 in A but 4 in B"),
    ],
)
def test_data_sets_that_declare_different_labels_are_compared_by_value_only(tmp_path, other, says):
    first = write_dataset(tmp_path / "first", {"a": two_balls()}, declared=DECLARED | {"ignore": 3})
    second = write_dataset(tmp_path / "second", {"a": two_balls(shift=1)}, declared=other)
    with pytest.raises(NoiseToolsError, match=f"declare different labels .{says}.; make them agree, or .* --labels"):
        report.compare(first, second)
    assert report.compare(first, second, labels=[1, 2]).labels == ("head", "tail")


@pytest.mark.parametrize(
    "other",
    [
        {"both": [2, 1], "tail": 2, "head": 1, "background": 0},  # another order
        {"background": 0, "head": [1], "tail": "2", "both": [1, 1, 2]},  # written in another way
        DECLARED | {"ignore": 3},  # what either side ignores is left out of both
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_labels_that_are_declared_alike_are_compared(tmp_path, other, order):
    first = write_dataset(tmp_path / "first", {"a": two_balls()}, declared=DECLARED)
    second = write_dataset(tmp_path / "second", {"a": two_balls()}, declared=other)
    comparison = report.compare(*[first, second][::order])
    assert set(comparison.labels) == {"head", "tail", "both"} and comparison.equal_cases == {"a"}


def test_labels_that_one_side_declares_are_taken(tmp_path, raters):
    first = write_dataset(tmp_path / "first", {case: two_balls() for case in ("equal", "missed", "moved")})
    assert report.compare(first, raters[1]).labels == report.compare(raters[1], first).labels == ("head", "tail")


def test_pictures(tmp_path):
    first = write_dataset(tmp_path / "first", {"a": two_balls((24, 20))}, ".png")
    second = write_dataset(tmp_path / "second", {"a": two_balls((24, 20), shift=1)}, ".png")
    comparison = report.compare(first, second)
    assert (
        comparison.rows[0].values
        == label_metrics(two_balls((24, 20)), two_balls((24, 20), shift=1), (1, 1), {"head": 1})["head"]
    )


def test_a_label_that_neither_has_is_undefined(tmp_path):
    only_head = np.where(two_balls() == 2, 0, two_balls())
    first = write_dataset(tmp_path / "first", {"a": only_head})
    second = write_dataset(tmp_path / "second", {"a": np.roll(only_head, 1, axis=2)})
    comparison = report.compare(first, second)
    head, tail = comparison.rows
    assert math.isnan(tail.values["dice"])
    assert comparison.case_dice()["a"] == head.values["dice"] < 1
    assert "tail: mean Dice undefined" in report.summary(comparison)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_volume_is_not_compared_with_several(tmp_path, swapped):
    folders = tmp_path / "first", tmp_path / "second"
    image = sitk.ReadImage(str(write(folders[0] / "a.nii.gz", two_balls())))
    folders[1].mkdir()
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(folders[1] / "a.nii.gz"))
    with pytest.raises(NoiseToolsError, match="second/a.nii.gz holds several values per voxel"):
        report.compare(*(reversed(folders) if swapped else folders))


@pytest.mark.parametrize("ending", [".tif", ".mha"])
def test_pictures_in_colours_are_not_compared(tmp_path, ending):
    """A reader of volumes would take the three colours for three columns."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        colours = sitk.GetImageFromArray(np.stack([two_balls((24, 20))] * 3, axis=-1), isVector=True)
        sitk.WriteImage(colours, str(tmp_path / name / f"a{ending}"))
    with pytest.raises(NoiseToolsError, match="holds several values per voxel"):
        report.compare(tmp_path / "first", tmp_path / "second")


def test_cases_of_one_folder_only(raters):
    (raters[1] / "moved.nii.gz").unlink()
    with pytest.raises(NoiseToolsError, match=r"1 cases are in one folder only \(moved\).*--common.*the 2 that both"):
        report.compare(*raters)
    comparison = report.compare(*raters, common=True)
    assert comparison.cases == ("equal", "missed") and comparison.skipped == ("moved",)


def test_folders_that_cannot_be_compared(raters, tmp_path):
    first, second = raters
    with pytest.raises(NoiseToolsError, match="same label files"):
        report.compare(first, first)
    other = tmp_path / "other"
    write(other / "x.nii.gz", two_balls())
    with pytest.raises(NoiseToolsError, match=r"no case in common \(A has equal, missed, moved; B has x\)"):
        report.compare(first, other)
    write(second / "equal.nii.gz", two_balls((12, 24, 21)))
    with pytest.raises(NoiseToolsError, match=r"Case equal: .* \(12, 24, 20\) in A but \(12, 24, 21\) in B"):
        report.compare(*raters)
    write(second / "equal.nii.gz", two_balls(), spacing=(3.0, 1.0, 1.0))
    with pytest.raises(NoiseToolsError, match="Case equal: .* spacing"):
        report.compare(*raters)


def test_labels_in_another_orientation_are_refused(raters):
    image = sitk.DICOMOrient(sitk.ReadImage(str(raters[0] / "equal.nii.gz")), "RAS")
    sitk.WriteImage(image, str(raters[1] / "equal.nii.gz"))
    with pytest.raises(NoiseToolsError, match="Case equal: the axes of the label have the directions"):
        report.compare(*raters)


def test_another_origin_does_not_matter(raters):
    image = sitk.ReadImage(str(raters[1] / "equal.nii.gz"))
    image.SetOrigin((100.0, 0.0, 0.0))
    sitk.WriteImage(image, str(raters[1] / "equal.nii.gz"))
    assert "equal" in report.compare(*raters).equal_cases


def test_nothing_labelled_anywhere(tmp_path):
    for name in ("first", "second"):
        write(tmp_path / name / "a.nii.gz", np.zeros((4, 5, 6), np.uint8))
    with pytest.raises(NoiseToolsError, match="no foreground|any foreground"):
        report.compare(tmp_path / "first", tmp_path / "second")


def test_an_older_report_is_kept_unless_asked(raters, tmp_path):
    out = tmp_path / "out"
    report.run(arguments(*raters, "-o", out, "--worst", 0))
    before = (out / "report.csv").read_bytes()
    with pytest.raises(NoiseToolsError, match="exists already; give another folder with -o, or --overwrite"):
        report.run(arguments(*raters, "-o", out))
    report.run(arguments(*raters, "-o", out, "--worst", 0, "--labels", 1, "--overwrite"))
    assert (out / "report.csv").read_bytes() != before


@pytest.mark.parametrize("words", [("--worst", -1), ("--tolerance", -0.5), ("--tolerance", "nan"), ("-np", 0)])
def test_numbers_out_of_range(raters, tmp_path, words):
    with pytest.raises(NoiseToolsError, match=words[0]):
        report.run(arguments(*raters, "-o", tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_arguments_need_no_heavy_import():
    code = (
        "import argparse, sys; from noise_tools import preview, report;"
        "report.add_arguments(argparse.ArgumentParser()); preview.add_arguments(argparse.ArgumentParser());"
        "print([m for m in ('numpy', 'scipy', 'matplotlib', 'SimpleITK', 'torch', 'nnunetv2') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
