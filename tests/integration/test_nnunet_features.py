"""What nnU-Net can do with its own trainer, its commands do with ours: options, model selection, sharing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

TRAINER = "nnUNetTrainerShortMetaDCSeg"
DATASET = "Dataset901_PhantomNoisy"
FULL, CASCADE = "3d_fullres", "3d_cascade_fullres"
pytestmark = pytest.mark.integration


def load(file: Path) -> dict:
    import torch

    return torch.load(file, map_location="cpu", weights_only=False)


def array(file: Path):
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def validation_cases(workspace, fold: int = 0) -> list[str]:
    return json.loads(workspace.folder("preprocessed", DATASET, "splits_final.json").read_text())[fold]["val"]


def dice(validation: Path) -> float:
    return json.loads((validation / "summary.json").read_text())["foreground_mean"]["Dice"]


class Models:
    """Trains with the plans of the cascade, and finds what that wrote."""

    def __init__(self, workspace, plans: str) -> None:
        self.workspace, self.plans = workspace, plans

    def fold(self, configuration: str, fold: int | str = 0, trainer: str = TRAINER) -> Path:
        return self.workspace.model(trainer, DATASET, configuration, self.plans) / f"fold_{fold}"

    def train(self, configuration: str, *options, fold: int | str = 0, trainer: str = TRAINER, **more):
        line = (901, configuration, fold, "-p", self.plans, "-tr", trainer, "-device", "cpu", *options)
        return self.workspace.run("nnUNetv2_train", *line, **more)

    def predict(self, images: Path, output: Path, configuration: str = FULL, fold: int | str = 0, *options, **more):
        line = ("-d", 901, "-i", images, "-o", output, "-p", self.plans, "-c", configuration, "-f", fold)
        # No helper processes: they would import nnU-Net anew.
        fast = ("-device", "cpu", "-npp", 0, "-nps", 0, "--disable_tta")
        return self.workspace.run("nnUNetv2_predict", *line, "-tr", TRAINER, *fast, *options, **more)


@pytest.fixture(scope="session")
def models(prepared, cascade_plans) -> Models:
    return Models(prepared, cascade_plans)


@pytest.fixture(scope="session")
def images(prepared, tmp_path_factory) -> Path:
    """A folder with one test image."""
    folder = tmp_path_factory.mktemp("images")
    image = min(prepared.folder("raw", "Dataset900_Phantom", "imagesTs").iterdir())
    os.symlink(image, folder / image.name)
    return folder


@pytest.fixture(scope="session")
def full(models: Models) -> Path:
    """Fold 0 of 3d_fullres, with probabilities of its validation cases."""
    models.train(FULL, "--npz")
    return models.fold(FULL)


@pytest.fixture(scope="session")
def low(models: Models) -> Path:
    """3d_lowres on all cases."""
    models.train("3d_lowres", fold="all")
    return models.fold("3d_lowres", "all")


@pytest.fixture(scope="session")
def cascade(models: Models, low: Path) -> Path:
    """Fold 0 of 3d_cascade_fullres, which sees the segmentations of 3d_lowres."""
    models.train(CASCADE, "--npz")
    return models.fold(CASCADE)


@pytest.fixture(scope="session")
def predictions(models: Models, full: Path, images: Path) -> Path:
    """3d_fullres's predictions and probabilities of the test image."""
    output = models.workspace.root / "predictions" / FULL
    models.predict(images, output, FULL, 0, "--save_probabilities")
    return output


class TestTrainingOptions:
    def test_npz_keeps_the_probabilities_of_the_validation(self, models, full):
        import numpy as np

        cases = validation_cases(models.workspace)
        assert sorted(f.stem for f in (full / "validation").glob("*.npz")) == sorted(cases)
        probabilities = np.load(full / "validation" / f"{cases[0]}.npz")["probabilities"]
        assert probabilities.shape[0] == 3 and np.allclose(probabilities.sum(0), 1, atol=1e-3)

    def test_val_repeats_the_validation_of_a_finished_training(self, models, full):
        before, kept = dice(full / "validation"), full / "validation_of_training"
        (full / "validation").rename(kept)
        models.train(FULL, "--val")
        assert dice(full / "validation") == pytest.approx(before, abs=1e-3)
        shutil.rmtree(full / "validation")
        kept.rename(full / "validation")

    def test_val_best_takes_the_best_checkpoint(self, models, full):
        import torch

        other = models.fold(FULL, 1)
        other.mkdir()
        shutil.copy(full / "checkpoint_final.pth", other)
        best = load(full / "checkpoint_best.pth")
        assert best["metadcseg"]["trainer"] == TRAINER
        last = max(name for name in best["network_weights"] if name.endswith("bias") and "seg_layers" in name)
        best["network_weights"][last] = torch.tensor([0.0, 100.0, 0.0])  # everything is class 1
        torch.save(best, other / "checkpoint_best.pth")
        models.train(FULL, "--val", "--val_best", fold=1)
        for case in validation_cases(models.workspace, 1):
            assert (array(other / "validation" / f"{case}.nii.gz") == 1).all()

    def test_fold_all_trains_on_every_case(self, models, low):
        cases = {case for fold in range(5) for case in validation_cases(models.workspace, fold)}
        assert set(load(low / "checkpoint_final.pth")["metadcseg"]["state"]["cases"]) == cases

    def test_augmentation_in_worker_processes(self, models):
        trainer = "nnUNetTrainerShortMetaDCSegNoValidation"
        models.train(FULL, fold=2, trainer=trainer, nnUNet_n_proc_DA="2")
        folder = models.fold(FULL, 2, trainer)
        assert load(folder / "checkpoint_final.pth")["metadcseg"]["state"]["step"] == 8
        log = "".join(file.read_text() for file in folder.glob("training_log_*.txt"))
        assert log.count("MetaDCSeg: disagreeing voxels") == 2 and "Dice on trusted patches nan" not in log

    def test_without_trusted_cases_it_says_how_to_name_them(self, models):
        file = models.workspace.folder("preprocessed", DATASET, "trusted_cases.json")
        file.write_text("[]")
        try:
            done = models.train(FULL, fold=3, expect=1)
        finally:
            file.unlink()
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("nnunetv2_metadcseg.trusted_cases.TrustedCasesError: No trusted cases: expected")
        assert "write their case identifiers there" in last


class TestPretrainedWeights:
    def check(self, models: Models, file: Path, fold: int) -> None:
        trainer = "nnUNetTrainerShortMetaDCSegNoLearning"
        models.train(FULL, "-pretrained_weights", file, fold=fold, trainer=trainer)
        theirs = load(file)["network_weights"]
        checkpoint = load(models.fold(FULL, fold, trainer) / "checkpoint_final.pth")
        weights = checkpoint["network_weights"]
        kept = [name for name, value in weights.items() if value.equal(theirs[name])]
        # nnU-Net does not transfer the segmentation layers; the decoder names its encoder's weights again.
        assert {name for name in weights if ".seg_layers." not in name} <= set(kept)

    def test_of_stock_nnunet(self, models):
        trainer = "nnUNetTrainerShortStock"
        models.train(FULL, trainer=trainer)
        self.check(models, models.fold(FULL, 0, trainer) / "checkpoint_final.pth", 0)

    def test_of_ours(self, models, full):
        self.check(models, full / "checkpoint_final.pth", 1)


class TestSharing:
    def test_a_model_installed_from_zip_predicts_the_same(self, models, full, predictions, images, tmp_path):
        archive = tmp_path / "model.zip"
        where = ("-d", 901, "-o", archive, "-c", FULL, "-tr", TRAINER, "-p", models.plans, "-f", 0)
        models.workspace.run("nnUNetv2_export_model_to_zip", *where)
        (tmp_path / "results").mkdir()
        elsewhere = {"nnUNet_results": str(tmp_path / "results"), "nnUNet_extTrainer": None, "nnUNet_raw": None}
        models.workspace.run("nnUNetv2_install_pretrained_model_from_zip", archive, **elsewhere)
        models.predict(images, tmp_path / "out", **elsewhere)
        (expected,) = predictions.glob("*.nii.gz")
        assert (array(tmp_path / "out" / expected.name) == array(expected)).all()


class TestCascade:
    def test_first_stage_predicts_for_the_second(self, low, models):
        cases = load(low / "checkpoint_final.pth")["metadcseg"]["state"]["cases"]
        written = low.parent / "predicted_next_stage" / CASCADE
        assert {file.name.partition(".")[0] for file in written.iterdir()} == set(cases)

    def test_second_stage_sees_the_image_and_both_labels(self, cascade):
        weights = load(cascade / "checkpoint_final.pth")["network_weights"]
        first = next(value for name, value in weights.items() if name.endswith("conv.weight"))
        assert first.shape[1] == 3
        assert 0 <= dice(cascade / "validation") <= 1

    def test_predicts_and_ensembles(self, models, cascade, predictions, images, tmp_path):
        import numpy as np

        models.predict(images, tmp_path / "low", "3d_lowres", "all")
        second = ("--save_probabilities", "-prev_stage_predictions", tmp_path / "low")
        models.predict(images, tmp_path / "second", CASCADE, 0, *second)
        folders = (predictions, tmp_path / "second")
        models.workspace.run("nnUNetv2_ensemble", "-i", *folders, "-o", tmp_path / "both", "-np", 1)
        (file,) = predictions.glob("*.npz")
        mean = sum(np.load(folder / file.name)["probabilities"] for folder in folders) / 2
        ensembled = array(tmp_path / "both" / f"{file.stem}.nii.gz")
        clear = np.ptp(np.sort(mean, 0)[-2:], 0) > 1e-3  # a tie may fall either way in half precision
        assert (ensembled == mean.argmax(0))[clear].all()


class TestModelSelection:
    def test_best_configuration_is_found(self, models, full, cascade):
        line = (901, "-c", FULL, CASCADE, "-p", models.plans, "-tr", TRAINER, "-f", 0, "-np", 1)
        models.workspace.run("nnUNetv2_find_best_configuration", *line)
        found = json.loads(models.workspace.folder("results", DATASET, "inference_information.json").read_text())
        results = found["all_results"]
        assert len(results) == 3 and sum(name.startswith("ensemble___") for name in results) == 1
        assert results[full.parent.name] == pytest.approx(dice(full / "validation"))
        best = found["best_model_or_ensemble"]
        assert best["result_on_crossval_pre_pp"] == max(results.values())
        assert {model["trainer"] for model in best["selected_model_or_models"]} == {TRAINER}
        with open(best["postprocessing_file"], "rb") as file:
            assert len(pickle.load(file)) == 2


class TestResidualEncoder:
    def test_planned_shrunk_and_trained(self, models):
        run, plans = models.workspace.run, "nnUNetResEncUNetMPlans"
        # nnU-Net's planner sets as many threads as this variable says, and refuses the 0 of the training.
        run("nnUNetv2_plan_experiment", "-d", 901, "-pl", "nnUNetPlannerResEncM", nnUNet_n_proc_DA="1")
        small = ("-d", 901, "-p", plans, "-c", FULL, "--features", 4, "--patch", 24, 24, 24)
        assert run("metadcseg", "small-config", *small).stdout.split() == [f"{FULL}_small"]
        model = Models(models.workspace, plans)
        trainer = "nnUNetTrainerShortMetaDCSegNoValidation"
        model.train(f"{FULL}_small", trainer=trainer)
        checkpoint = load(model.fold(f"{FULL}_small", 0, trainer) / "checkpoint_final.pth")
        planned = checkpoint["init_args"]["plans"]["configurations"][f"{FULL}_small"]["architecture"]
        assert planned["network_class_name"].endswith("ResidualEncoderUNet")
        assert checkpoint["metadcseg"]["state"]["step"] == 8
