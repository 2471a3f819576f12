from __future__ import annotations

import argparse

import numpy as np
import pytest

from noise_tools import preview
from noise_tools.errors import NoiseToolsError
from noise_tools.noise import NAMES
from noise_tools.raw_dataset import open_dataset
from noise_tools.recipe import parse_components
from tests.noise_tools.label_files import two_balls, write_dataset


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    preview.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    volume = two_balls((16, 40, 30), radius=7)
    write_dataset(tmp_path / "raw" / "Dataset003_Volumes", {"a": volume, "b": np.roll(volume, 3, axis=2)})
    write_dataset(tmp_path / "raw" / "Dataset002_Pictures", {"p": two_balls((40, 30), radius=7)}, ".png")
    return tmp_path / "raw"


@pytest.mark.parametrize("dataset", [3, "Dataset002_Pictures"])
def test_one_picture_of_every_type(raw, tmp_path, dataset, capsys, monkeypatch):
    from PIL import Image

    path = tmp_path / "new" / "all.png"
    drawn = []
    monkeypatch.setattr(
        preview, "preview", lambda *args, original=preview.preview: drawn.append(original(*args)) or drawn[0]
    )
    preview.run(arguments("-d", dataset, "-o", path, "--label-dice", 0.8))
    assert [axes.get_title().split("\n")[0] for axes in drawn[0].axes[1 : 1 + len(NAMES)]] == list(NAMES)
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 200
    assert str(path) in capsys.readouterr().out
    assert [p.name for p in path.parent.iterdir()] == ["all.png"]


def test_types_that_do_not_fit_the_data_set_are_left_out_unless_named(raw, tmp_path):
    write_dataset(raw / "Dataset005_One", {"a": (two_balls() > 0) * 1}, declared={"background": 0, "one": 1})
    dataset = open_dataset(5)
    assert [name for name in NAMES if not preview._fits(name, dataset)] == ["swap"]
    with pytest.raises(NoiseToolsError, match="needs two foreground labels"):
        preview.run(arguments("-d", 5, "-o", tmp_path / "x.png", "--noise", "swap"))


def test_noise_outside_the_common_slice_is_shown_where_it_is(raw):
    """Label 2 lost, in a volume whose fullest slice has label 1 only."""
    label = np.zeros((16, 40, 30), np.uint8)
    label[2:5, 5:30, 5:25], label[10:12, 10:14, 10:14] = 1, 2
    write_dataset(raw / "Dataset006_Apart", {"a": label})
    components = parse_components(["omission"], ["omission.of=label"])
    for seed in range(8):
        figure = preview.preview(open_dataset(6), "a", components, label_dice=0.5, seed=seed)
        changed = figure.axes[1].images[-1].get_array()
        assert changed[..., 3].max() > 0, "some voxel is tinted"


def test_a_case_without_foreground(raw):
    write_dataset(raw / "Dataset007_Empty", {"a": np.zeros((5, 6, 7), np.uint8)})
    with pytest.raises(NoiseToolsError, match="Case a has no foreground"):
        preview.preview(open_dataset(7), "a", parse_components(["erosion"]))


def test_one_panel_per_type_with_the_dice_reached(raw):
    components = parse_components(["erosion", "dilation", "erosion+affine"])
    figure = preview.preview(open_dataset(3), "a", components, label_dice=0.8)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith("a\n")
    assert [title.split("\n")[0] for title in titles[1:4]] == ["erosion", "dilation", "erosion+affine"]
    for title in titles[1:4]:
        assert float(title.split("Dice ")[1].split(",")[0]) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("asked", [0.7, 0.0])
def test_noise_is_that_of_corrupt(raw, tmp_path, asked):
    """Same seed, case and type: the label drawn is the label written, also where one without foreground is nearer."""
    from noise_tools.corrupt import Request, corrupt
    from noise_tools.raw_dataset import load_dataset, read_label

    dataset = open_dataset(3)
    components = parse_components(["dilation" if asked == 0.7 else "erosion"])
    request = Request(components, case_fraction=1.0, seed=5, label_dice=asked, trusted=("b",))
    corrupt(dataset, raw / "Dataset004_Noisy", request)
    written, _ = read_label(load_dataset(raw / "Dataset004_Noisy"), load_dataset(raw / "Dataset004_Noisy").cases["a"])
    label, spacing = read_label(dataset, dataset.cases["a"])
    drawn, _ = preview._noisy(dataset, "a", components[0], label, spacing, asked, None, 5)
    assert np.array_equal(drawn, written) and written.any()


def test_fixed_severity_and_parameters(raw):
    dataset = open_dataset(3)
    label = two_balls((16, 40, 30), radius=7)
    for radius, same in ((0.0, True), (4.0, False)):
        component = parse_components(["erosion"], [f"erosion.radius={radius}"])[0]
        noisy, dice = preview._noisy(dataset, "a", component, label, (2.0, 1.0, 1.0), 0.7, 1.0, 0)
        assert np.array_equal(noisy, label) is same and (dice == 1.0) is same


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-d", 9), "No data set with id 9"),
        (("-d", 3, "--case", "c"), "has no case c; its cases are like a"),
        (("-d", 3, "--noise", "rust"), "'rust'"),
        (("-d", 3, "--severity", 2), "--severity is 2; give a number in"),
        (("-d", 3, "--label-dice", -1), "--label-dice is -1"),
        (("-d", 3, "--seed", -1), "--seed is -1"),
        (("-d", 3, "-o", "picture.jpg"), "ends in .png"),
    ],
)
def test_bad_input_is_named_in_one_sentence(raw, tmp_path, words, message):
    with pytest.raises(NoiseToolsError, match=message):
        preview.run(arguments("-o", tmp_path / "x.png", *words))
    assert not (tmp_path / "x.png").exists()


def test_an_older_picture_is_kept_unless_asked(raw, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"mine")
    with pytest.raises(NoiseToolsError, match="exists already"):
        preview.run(arguments("-d", 3, "-o", path, "--noise", "erosion"))
    assert path.read_bytes() == b"mine"
    preview.run(arguments("-d", 3, "-o", path, "--noise", "erosion", "--overwrite"))
    assert path.read_bytes() != b"mine"
