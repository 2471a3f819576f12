"""From the phantom to a prediction with nnU-Net's own commands, in a workspace made for the tests."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODEL = "nnUNetTrainerShortMetaDCSeg"
METHODS = ("MetaDCSeg", "Mixed", "TrustedOnly", "L2B")
VARIANTS = ("", "_1epoch", "_5epochs", "_10epochs", "_20epochs", "_50epochs", "_100epochs", "_250epochs")
pytestmark = pytest.mark.integration


def checkpoint(model: Path, name: str = "checkpoint_final.pth") -> dict:
    import torch

    return torch.load(model / "fold_0" / name, map_location="cpu", weights_only=False)


def log_text(model: Path) -> str:
    return "".join(file.read_text() for file in sorted((model / "fold_0").glob("training_log_*.txt")))


def test_corrupted_data_set_is_one_that_nnunet_reads(prepared):
    dataset = json.loads(prepared.folder("raw", "Dataset901_PhantomNoisy", "dataset.json").read_text())
    assert len(dataset["trusted_cases"]) == 4 and set(dataset["trusted_cases"]) < set(dataset["dataset"])
    done = prepared.run("nnUNetv2_extract_fingerprint", "-d", 901, "--verify_dataset_integrity", "-np", 1)
    assert "verify_dataset_integrity Done." in done.stdout


def test_small_configuration_shares_the_preprocessed_data(prepared):
    plans = json.loads(prepared.folder("preprocessed", "Dataset901_PhantomNoisy", "nnUNetPlans.json").read_text())
    assert plans["configurations"]["tiny"]["inherits_from"] == "3d_fullres"
    folders = [f.name for f in prepared.folder("preprocessed", "Dataset901_PhantomNoisy").iterdir() if f.is_dir()]
    assert folders.count("nnUNetPlans_3d_fullres") == 1 and not [f for f in folders if "tiny" in f]


def test_training_writes_a_stock_checkpoint_with_provenance(trained):
    model = trained.model(MODEL)
    saved = checkpoint(model)
    assert saved["trainer_name"] == "nnUNetTrainer"
    assert saved["current_epoch"] == 2
    assert saved["metadcseg"]["trainer"] == MODEL
    assert (model / "fold_0" / "validation" / "summary.json").is_file()
    assert (model / "fold_0" / "progress.png").is_file()


def test_predicts_where_this_package_cannot_be_imported(trained, tmp_path):
    bare = {
        "fresh": True,
        "PYTHONPATH": str(HERE / "without_package"),
        "nnUNet_extTrainer": None,
        "nnUNet_raw": None,
        "nnUNet_preprocessed": None,
    }
    python = Path(sys.executable).name
    blocked = trained.run(python, "-c", "import nnunetv2_metadcseg", expect=1, **bare)
    assert "ModuleNotFoundError: No module named 'nnunetv2_metadcseg'" in blocked.stderr
    images = trained.folder("raw", "Dataset900_Phantom", "imagesTs")
    cases = sorted(f.name.removesuffix("_0000.nii.gz") for f in images.iterdir())[:2]
    (tmp_path / "images").mkdir()
    for case in cases:
        os.symlink(images / f"{case}_0000.nii.gz", tmp_path / "images" / f"{case}_0000.nii.gz")
    trained.run(
        *("nnUNetv2_predict", "-d", 901, "-i", tmp_path / "images", "-o", tmp_path / "out"),
        *("-c", "tiny", "-f", 0, "-tr", MODEL, "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta"),
        **bare,
    )
    import SimpleITK as sitk

    for case in cases:
        image = sitk.ReadImage(str(images / f"{case}_0000.nii.gz"))
        prediction = sitk.ReadImage(str(tmp_path / "out" / f"{case}.nii.gz"))
        assert prediction.GetSize() == image.GetSize() and prediction.GetSpacing() == image.GetSpacing()
        values = set(sitk.GetArrayFromImage(prediction).ravel().tolist())
        assert values <= {0, 1, 2}


@pytest.mark.parametrize(
    "trainer", ["nnUNetTrainerShortMixed", "nnUNetTrainerShortTrustedOnly", "nnUNetTrainerShortL2B"]
)
def test_baselines_train(prepared, trainer):
    prepared.train(trainer)
    assert checkpoint(prepared.model(trainer))["trainer_name"] == "nnUNetTrainer"


def make_region_dataset(workspace) -> None:
    """Dataset902: the noisy phantom with overlapping regions and, in every label, a corner that is ignored."""
    import SimpleITK as sitk

    source, target = (workspace.folder("raw", name) for name in ("Dataset901_PhantomNoisy", "Dataset902_Regions"))
    (target / "labelsTr").mkdir(parents=True)
    dataset = json.loads((source / "dataset.json").read_text())
    dataset |= {"labels": {"background": 0, "whole": [1, 2], "tail": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    (target / "dataset.json").write_text(json.dumps(dataset))
    for file in (source / "labelsTr").iterdir():
        label = sitk.ReadImage(str(file))
        label[:10, :10, :] = 3
        sitk.WriteImage(label, str(target / "labelsTr" / file.name))


def test_trains_on_regions_with_ignored_voxels_in_2d(prepared):
    make_region_dataset(prepared)
    prepared.run(*("nnUNetv2_plan_and_preprocess", "-d", 902, "-c", "2d", "-np", 1, "-npfp", 1), nnUNet_n_proc_DA="1")
    prepared.run("metadcseg", "small-config", "-d", 902, "-c", "2d", "--features", 4)
    trainer = "nnUNetTrainerShortMetaDCSegNoValidation"
    prepared.train(trainer, dataset=902, configuration="2d_small")
    model = prepared.model(trainer, "Dataset902_Regions", "2d_small")
    assert checkpoint(model)["current_epoch"] == 2
    lines = [line for line in log_text(model).splitlines() if "MetaDCSeg: disagreeing voxels" in line]
    assert len(lines) == 2 and "Dice on trusted patches nan" not in lines[-1]


def test_stopped_training_goes_on(prepared):
    trainer = "nnUNetTrainerShortMetaDCSegNoValidation"
    prepared.train(trainer, expect=None, METADCSEG_TEST_STOP_BEFORE_EPOCH="1")
    model = prepared.model(trainer)
    assert not (model / "fold_0" / "checkpoint_final.pth").exists()
    assert checkpoint(model, "checkpoint_latest.pth")["current_epoch"] == 1
    prepared.train(trainer, "--c")
    assert checkpoint(model)["current_epoch"] == 2
    epochs = [line for line in log_text(model).splitlines() if line.rstrip().endswith(("Epoch 0", "Epoch 1"))]
    assert [line.split()[-1] for line in epochs] == ["0", "1"]


def test_without_trusted_cases_training_says_how_to_name_them(prepared):
    preprocessed = prepared.folder("preprocessed", "Dataset901_PhantomNoisy", "dataset.json")
    before = preprocessed.read_text()
    dataset = json.loads(before)
    del dataset["trusted_cases"]
    preprocessed.write_text(json.dumps(dataset))
    try:
        done = prepared.train("nnUNetTrainerShortMixed", expect=1)
    finally:
        preprocessed.write_text(before)
    assert "trusted_cases.json" in done.stdout + done.stderr


def test_every_trainer_is_found_by_name(prepared):
    names = [f"nnUNetTrainer{method}{variant}" for method in METHODS for variant in VARIANTS]
    code = (
        "import sys; from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "for name in sys.argv[1:]: print('found', find(name).__name__)\n"
    )
    done = prepared.run(Path(sys.executable).name, "-c", code, *names, fresh=True)
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("found ")] == names


def test_doctor_is_content(prepared):
    done = prepared.run("metadcseg", "doctor", fresh=True)
    assert done.stdout.endswith("all is there\n")
