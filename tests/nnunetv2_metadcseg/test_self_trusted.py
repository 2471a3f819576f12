"""The trainer that chooses its trusted cases itself, on the tiny data set; and the warning for classes they lack."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnunetv2_metadcseg.baselines import nnUNetTrainerMixed
from nnunetv2_metadcseg.self_trusted import FILE_NAME, nnUNetTrainerMetaDCSegSelfTrusted
from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg
from nnunetv2_metadcseg.trusted_cases import TrustedCasesError
from tests.nnunetv2_metadcseg import tiny_dataset
from tests.nnunetv2_metadcseg.test_trainer import (  # noqa: F401
    TwoRanks,
    everything,
    quick,
    run,
    start,
    steps,
    unbroken_and_resumed,
)
from tests.nnunetv2_metadcseg.tiny_dataset import TinyDataset


class Early(nnUNetTrainerMetaDCSegSelfTrusted):
    """Of 12 steps, four on all labels, one on trusted patches only."""

    config = replace(nnUNetTrainerMetaDCSegSelfTrusted.config, early_fractions=(4 / 12, 4 / 12), start_fractions=(0, 0))


EARLY = 4
SETTINGS = {"epochs": 4, "iterations": 3}


@pytest.fixture
def make(tmp_path, monkeypatch):
    for name, value in tiny_dataset.environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    def dataset(**settings) -> TinyDataset:
        made = tiny_dataset.make(tmp_path, **{"count": 8, **settings})
        made.set_trusted(None)
        return made

    return dataset


def log_of(trainer) -> str:
    return Path(trainer.log_file).read_text()


class TestTraining:
    @pytest.mark.parametrize("settings", [{}, {"dim": 2, "kind": "regions and ignore"}, {"batch_size": 1}])
    def test_all_labels_then_the_choice_then_metadcseg(self, make, settings):
        trainer = start(make(**settings), Early, **SETTINGS)
        batches = steps(trainer, EARLY - 1)
        assert trainer.chosen == [] and trainer.starting
        assert all(batch["undivided"] and batch["num_given"] == len(batch["keys"]) for batch in batches)
        steps(trainer, 1)
        assert len(trainer.chosen) == 2
        assert trainer.train_loader.trusted == trainer.chosen
        trusted = trainer.weighting.agreement.trusted
        assert [case for case, i in trainer.case_index.items() if trusted[i]] == trainer.chosen
        for batch in steps(trainer, 5):
            given = batch["num_given"]
            assert not batch["undivided"]
            assert not set(batch["keys"][:given]) & set(trainer.chosen)
            assert set(batch["keys"][given:]) <= set(trainer.chosen)
        if len(batch["keys"]) > 1:
            assert trainer.weighting.meta.scale is not None  # a meta step was made

    def test_the_teacher_forgets_the_early_phase(self, make):
        class WithTeacher(Early):
            config = replace(Early.config, teacher=True)

        trainer = start(make(), WithTeacher, **SETTINGS)
        steps(trainer, EARLY)
        assert trainer.teacher.updates == 0
        steps(trainer, 1)
        for mine, theirs in zip(trainer.teacher.module.network.parameters(), trainer.network.parameters(), strict=True):
            assert torch.equal(mine, theirs)

    def test_the_second_last_layer_takes_no_step_before_the_choice(self, make):
        trainer = start(make(), Early, **SETTINGS)
        before = trainer.given_head.layer.weight.clone()
        steps(trainer, EARLY)
        assert torch.equal(trainer.given_head.layer.weight, before)
        assert not trainer.given_head.optimizer.state  # Adam has counted nothing

    def test_the_start_on_trusted_patches_begins_at_the_choice(self, make):
        class WithStart(Early):
            config = replace(Early.config, start_fractions=(0.25, 0.25))

        trainer = start(make(), WithStart, **SETTINGS)
        steps(trainer, EARLY)
        starting = []
        for _ in range(5):
            starting.append(trainer.starting)
            steps(trainer, 1)
        assert starting == [True, True, True, False, False]

    def test_early_phase_is_plain_training_on_the_given_labels(self, make):
        trainer = start(make(), Early, **SETTINGS)
        batch = next(trainer.dataloader_train)
        data = trainer.to_device(batch["data"])
        label, valid = trainer.encoder(batch["target"])
        target, weight = trainer.training_targets(batch, data, trainer.forward(data), label, valid)
        assert torch.equal(target, label) and torch.equal(weight, valid)
        assert trainer.tap.features is None

    @pytest.mark.parametrize(
        ("visits", "fractions", "expected"),
        [
            ((4, 9), (0, 1), 7),
            ((4, 9), (0, 0.25), 3),
            ((4, 9), (0.9, 1), 11),
            ((4, 5), (0.9, 1), 9),
            ((4, 4), (0.9, 1), 8),  # few cases: steps at least
            ((0, 9), (0, 0), 1),
        ],
    )
    def test_length_of_the_early_phase(self, make, monkeypatch, visits, fractions, expected):
        class Length(Early):
            few, many = visits
            config = replace(
                Early.config, early_patches=few, early_visits=many / 2, early_steps=8, early_fractions=fractions
            )

        monkeypatch.setattr("nnunetv2_metadcseg.trainer.patches_per_view", lambda *arguments: 2)
        # 7 training cases, 4 patches per batch, 12 steps.
        assert start(make(), Length, **SETTINGS).early_steps == expected

    def test_worker_processes(self, make, monkeypatch):
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")
        dataset = make()
        trainer = dataset.trainer(Early, epochs=4, iterations=10)
        trainer.config = replace(Early.config, early_fractions=(0.1, 0.1))
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        try:
            batches = steps(trainer, 20)  # those cached before the choice come first, and are trained on as before it
        finally:
            for loader in (trainer.dataloader_train, trainer.dataloader_val):
                loader._finish()
        assert len(trainer.chosen) == 2
        assert batches[0]["undivided"] and not batches[-1]["undivided"]
        assert set(batches[-1]["keys"][batches[-1]["num_given"] :]) <= set(trainer.chosen)


class TestRanks:
    def test_a_batch_from_before_the_choice_on_another_rank(self, make):
        trainer = start(make(), Early, **SETTINGS)
        steps(trainer, EARLY + 1)
        batch = next(trainer.dataloader_train)
        trainer.collective = TwoRanks(1.0)
        data = trainer.to_device(batch["data"])
        label, valid = trainer.encoder(batch["target"])
        target, weight = trainer.training_targets(batch, data, trainer.forward(data), label, valid)
        assert trainer.collective.calls == 1
        assert torch.equal(target, label) and torch.equal(weight, valid)


class TestChoice:
    def test_is_logged_by_name_and_written_beside_the_checkpoints(self, make):
        dataset = make()
        before = {file: file.stat().st_mtime_ns for file in dataset.folder.rglob("*") if file.is_file()}
        trainer = start(dataset, Early, **SETTINGS)
        steps(trainer, EARLY)
        content = json.loads(Path(trainer.output_folder, FILE_NAME).read_text())
        assert content["cases"] == trainer.chosen and content["step"] == EARLY
        assert set(content["scores"]) == set(dataset.cases[:-1])
        known = {case: score for case, score in content["scores"].items() if score is not None}
        assert set(sorted(known, key=known.get)[-2:]) == set(trainer.chosen)
        (line,) = [line for line in log_of(trainer).splitlines() if "Chosen after 4 steps as trusted" in line]
        for case in trainer.chosen:
            assert f"{case} ({known[case]:+.3f})" in line
        after = {file: file.stat().st_mtime_ns for file in dataset.folder.rglob("*") if file.is_file()}
        assert after == before

    def test_declared_cases_are_ignored_and_that_is_said(self, make):
        dataset = make()
        dataset.set_trusted(["case_0", "case_1"])
        trainer = start(dataset, Early, **SETTINGS)
        assert "WARNING: 2 trusted cases are declared, but Early chooses its own" in log_of(trainer)
        trainer.scores.cases[:, :, 0] = 0
        trainer.scores.cases[1, :, 0] = 1e6
        trainer.scores.cases[6, :, 0] = 1e6
        trainer.scores.cases[:, :, 1:] = 10
        trainer.scores.labelled[:] = True
        trainer._choose()
        assert trainer.chosen == ["case_1", "case_6"]
        assert "1 of these 2 are declared trusted cases" in log_of(trainer)

    def test_no_labelled_foreground(self, make):
        trainer = start(make(), Early, **SETTINGS)
        with pytest.raises(TrustedCasesError, match="None of the 7 training cases showed labelled foreground"):
            trainer._choose()

    def test_too_few_cases(self, make):
        with pytest.raises(TrustedCasesError, match="Found 2 training cases, expected more than the 2"):
            start(make(count=3), Early, **SETTINGS)


class TestResume:
    @pytest.mark.parametrize("stop", [1, 2], ids=["before the choice", "after the choice"])
    def test_goes_on_as_if_never_stopped_bit_by_bit(self, make, stop):
        unbroken, second = unbroken_and_resumed(make(), Early, stop, 1, **SETTINGS)
        expected = everything(unbroken)
        got = everything(run(second))
        assert got.keys() == expected.keys()
        assert [name for name in got if not torch.equal(got[name], expected[name])] == []
        assert second.chosen == unbroken.chosen and len(second.chosen) == 2
        assert json.loads(Path(second.output_folder, FILE_NAME).read_text())["cases"] == second.chosen

    def test_checkpoint_predicts_without_this_package(self, make):
        trainer = run(make().trainer(Early, **SETTINGS))
        saved = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
        assert saved["trainer_name"] == "nnUNetTrainer"
        assert saved["metadcseg"]["state"]["self_trusted"] == {"chosen": trainer.chosen, "scores": None}
        assert saved["metadcseg"]["config"]["early_visits"] == Early.config.early_visits


class TestAbsentClasses:
    """In every trainer with trusted batches."""

    @staticmethod
    def remove(dataset: TinyDataset, label, cases: list[str]) -> None:
        """As if nnU-Net's preprocessing had found no voxel of that class or region in these cases."""
        for case in cases:
            (file,) = dataset.folder.glob(f"nnUNetPlans_tiny/{case}.pkl")
            properties = pickle.loads(file.read_bytes())
            properties["class_locations"][label] = []
            file.write_bytes(pickle.dumps(properties))

    @pytest.mark.parametrize("trainer_class", [nnUNetTrainerMetaDCSeg, nnUNetTrainerMixed])
    @pytest.mark.parametrize(
        ("kind", "label", "name"), [("classes", 2, "core"), ("regions and ignore", (1, 2), "whole")]
    )
    def test_named(self, make, trainer_class, kind, label, name):
        dataset = make(kind=kind)
        dataset.set_trusted(["case_0", "case_1"])
        self.remove(dataset, label, ["case_0", "case_1", "case_3"])
        trainer = dataset.trainer(trainer_class)
        trainer.on_train_start()
        assert f"WARNING: {name} absent from all 2 trusted cases" in log_of(trainer)

    @pytest.mark.parametrize(
        ("kind", "label", "heads"),
        [("classes", 2, [False, True]), ("regions and ignore", (1, 2), [True, False]), ("classes", None, None)],
    )
    def test_their_heads_are_known(self, make, kind, label, heads):
        dataset = make(kind=kind)
        dataset.set_trusted(["case_0", "case_1"])
        self.remove(dataset, label, ["case_0", "case_1"] if label else [])
        trainer = start(dataset, nnUNetTrainerMetaDCSeg)
        absent = trainer.weighting.known_classes.absent
        assert (absent if heads is None else absent.tolist()) == heads
        steps(trainer, 2)

    @pytest.mark.parametrize("cases", [["case_0"], [f"case_{i}" for i in range(7)]], ids=["in one", "exists nowhere"])
    def test_no_false_alarm(self, make, cases):
        dataset = make()
        dataset.set_trusted(["case_0", "case_1"])
        self.remove(dataset, 2, cases)
        trainer = dataset.trainer(nnUNetTrainerMixed)
        trainer.on_train_start()
        assert "absent from all" not in log_of(trainer)

    @pytest.mark.parametrize("trainer_class", [nnUNetTrainerMetaDCSeg, nnUNetTrainerMixed])
    def test_trusted_cases_without_any_class(self, make, trainer_class):
        dataset = make()
        dataset.set_trusted(["case_0", "case_1", "case_2"])
        trainer = start(dataset, trainer_class)
        assert "hold no structure" not in log_of(trainer)
        assert not trainer.dataloader_train.data_loader.empty
        for label in (1, 2):
            self.remove(dataset, label, ["case_0", "case_1", "case_4"])
        trainer = start(dataset, trainer_class)
        assert "2 of the 3 trusted cases hold no structure" in log_of(trainer)
        assert trainer.dataloader_train.data_loader.empty == {"case_0", "case_1", "case_4"}
        if trainer_class is nnUNetTrainerMetaDCSeg:
            empty = trainer.weighting.agreement.empty
            assert [case for case, i in trainer.case_index.items() if empty[i]] == ["case_0", "case_1", "case_4"]
        steps(trainer, 2)

    @pytest.mark.parametrize("trainer_class", [nnUNetTrainerMetaDCSeg, nnUNetTrainerMixed])
    def test_cases_without_an_annotated_voxel_are_not_drawn(self, make, trainer_class):
        dataset = make(kind="regions and ignore")
        dataset.set_trusted(["case_0", "case_1"])
        trainer = start(dataset, trainer_class)
        assert "no annotated voxel" not in log_of(trainer)
        annotated = next(key for key in trainer._class_locations("case_2") if isinstance(key, tuple) and -1 in key)
        self.remove(dataset, annotated, ["case_2"])
        trainer = start(dataset, trainer_class)
        assert "1 of 7 training cases hold no annotated voxel" in log_of(trainer)
        assert "case_2" not in trainer.dataloader_train.data_loader.cases
        steps(trainer, 2)

    def test_trusted_cases_that_all_lack_any_class(self, make):
        dataset = make()
        dataset.set_trusted(["case_0", "case_1"])
        for label in (1, 2):
            self.remove(dataset, label, ["case_0", "case_1"])
        with pytest.raises(TrustedCasesError, match="^None of the 2 trusted cases of this fold holds any structure"):
            start(dataset, nnUNetTrainerMixed)

    def test_of_the_cases_chosen(self, make):
        dataset = make()
        trainer = start(dataset, Early, **SETTINGS)
        steps(trainer, EARLY - 1)
        assert "absent from all" not in log_of(trainer)
        self.remove(dataset, 1, ["case_0", "case_1", "case_2", "case_3", "case_4", "case_5"])
        trainer.scores.cases[6] = -1e6
        trainer.scores.labelled[:] = True
        steps(trainer, 1)
        assert "case_6" not in trainer.chosen
        assert "WARNING: ball absent from all 2 trusted cases" in log_of(trainer)
        assert trainer.weighting.known_classes.absent.tolist() == [True, False]
        steps(trainer, 1)


def test_without_trusted_cases_the_other_trainers_name_this_one(make):
    with pytest.raises(TrustedCasesError, match="nnUNetTrainerMetaDCSegSelfTrusted, which chooses them itself"):
        start(make(), nnUNetTrainerMetaDCSeg)
