from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_dilation

from noise_tools import cli, phantom
from noise_tools.raw_dataset import open_dataset, read_label


def make(*words: object) -> int:
    return cli.main(["phantom", *(str(word) for word in words)])


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    return tmp_path


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("dim", "ending"), [(3, ".nii.gz"), (2, ".png")])
def test_writes_a_data_set(root, dim, ending):
    assert make("-o", 900, "-n", 3, "--test", 2, "--dim", dim) == 0
    dataset = open_dataset(900)
    assert dataset.name == "Dataset900_Phantom" and dataset.file_ending == ending and len(dataset.cases) == 3
    assert json.loads((dataset.folder / "dataset.json").read_text())["numTraining"] == 3
    for case in dataset.cases.values():
        label, _ = read_label(dataset, case)
        assert set(np.unique(label)) == {0, 1, 2} and label.ndim == dim
    names = [f"phantom_{i:03d}" for i in (3, 4)]
    assert sorted(p.name for p in (dataset.folder / "labelsTs").iterdir()) == [name + ending for name in names]
    assert sorted(p.name for p in (dataset.folder / "imagesTs").iterdir()) == [f"{name}_0000{ending}" for name in names]


def test_same_seed_same_bytes_whatever_the_processes_and_the_count(root):
    make("-o", 900, "-n", 2, "--test", 1, "--seed", 3)
    make("-o", 901, "-n", 2, "--test", 1, "--seed", 3, "-np", 2)
    make("-o", 902, "-n", 3, "--test", 0, "--seed", 4)
    first, second = (files_of(root / f"Dataset{i}_Phantom") for i in (900, 901))
    assert first == second
    other = files_of(root / "Dataset902_Phantom")
    assert other["labelsTr/phantom_000.nii.gz"] != first["labelsTr/phantom_000.nii.gz"]


@pytest.mark.parametrize("dim", [2, 3])
def test_labels_touch_vary_and_are_of_useful_size(dim):
    sizes = []
    for seed in range(6):
        image, label = phantom.draw(np.random.default_rng(seed), dim)
        assert image.shape == label.shape
        assert (binary_dilation(label == 1) & (label == 2)).any()
        sizes.append([np.count_nonzero(label == value) for value in (1, 2)])
    sizes = np.array(sizes)
    assert sizes.min() > 100 and sizes.std(axis=0).min() > 20
    assert sizes.sum(axis=1).max() < 0.25 * label.size


@pytest.mark.parametrize("dim", [2, 3])
def test_brightness_alone_does_not_find_the_structure(dim):
    """Hard on purpose: the best threshold stays far from a good segmentation."""
    best = []
    for seed in range(4):
        image, label = phantom.draw(np.random.default_rng(seed), dim)
        scores = []
        for cut in np.percentile(image, range(50, 100, 2)):
            found = image > cut
            scores.append(2 * (found & (label > 0)).sum() / (found.sum() + (label > 0).sum()))
        best.append(max(scores))
    assert np.mean(best) < 0.7
    assert np.mean(best) > 0.1


def test_spacing_changes_the_grid_not_the_size(root):
    make("-o", 900, "-n", 1, "--test", 0, "--spacing", 2, 1, 1)
    image = sitk.ReadImage(str(root / "Dataset900_Phantom" / "imagesTr" / "phantom_000_0000.nii.gz"))
    assert image.GetSpacing() == (1.0, 1.0, 2.0) and image.GetSize() == (40, 40, 16)
    label = phantom.draw(np.random.default_rng(0), 3, (2.0, 1.0, 1.0))[1]
    fine = phantom.draw(np.random.default_rng(0), 3)[1]
    assert 2 * np.count_nonzero(label) == pytest.approx(np.count_nonzero(fine), rel=0.5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("-n 0", "-n is 0 and --test 8; give at least 1 training case"),
        ("--test -1", "give at least 1 training case and 0 test cases"),
        ("--seed -3", "--seed is -3"),
        ("--spacing 1 1", "--spacing is 1.0 1.0; give 3 sizes between 0.25 and 4 mm"),
        ("--spacing 9 1 1", "give 3 sizes between 0.25 and 4 mm"),
        ("--dim 2 --spacing 2 2", "PNG images have no spacing; leave it out with --dim 2"),
    ],
)
def test_bad_input(root, capsys, words, says):
    assert make("-o", 900, *words.split()) == 2
    assert says in capsys.readouterr().err
    assert not list(root.iterdir())


def test_does_not_overwrite(root, capsys):
    make("-o", 900, "-n", 1, "--test", 0)
    assert make("-o", 900, "-n", 1, "--test", 0) == 2
    assert "Dataset900_Phantom exists already" in capsys.readouterr().err


def test_images_that_a_corrupted_data_set_refers_to_are_not_overwritten(root, capsys):
    make("-o", 900, "-n", 3, "--test", 0)
    noisy = "corrupt -d 900 -o 901 --noise erosion --trusted 1 --overwrite".split()
    assert cli.main(noisy) == 0
    before = files_of(root)
    assert make("-o", 900, "-n", 3, "--test", 0, "--seed", 1, "--overwrite") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Files of Dataset900_Phantom are used by Dataset901_PhantomNoisy, to which --overwrite" in error
    assert error.endswith("another id with -o, or remove what uses them first and make it again afterwards.")
    assert files_of(root) == before
    assert cli.main(noisy) == 0  # nobody uses its labels
    shutil.rmtree(root / "Dataset901_PhantomNoisy")
    (root / "Dataset902_Broken").mkdir()
    (root / "Dataset902_Broken" / "dataset.json").write_text("{")
    assert make("-o", 900, "-n", 3, "--test", 0, "--seed", 1, "--overwrite") == 0
    assert (
        files_of(root)["Dataset900_Phantom/imagesTr/phantom_000_0000.nii.gz"]
        != (before["Dataset900_Phantom/imagesTr/phantom_000_0000.nii.gz"])
    )
