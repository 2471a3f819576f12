"""The trainer inside nnU-Net's own loop, on a tiny preprocessed data set."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._functorch.config
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss
from torch._dynamo import OptimizedModule

from nnunetv2_metadcseg.collective import Collective
from nnunetv2_metadcseg.feature_tap import last_segmentation_layer
from nnunetv2_metadcseg.losses import present_soft_dice
from nnunetv2_metadcseg.memorisation import MemorisationWatch
from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg
from nnunetv2_metadcseg.trusted_cases import TrustedCasesError
from nnunetv2_metadcseg.trusted_trainer import EARLIER_MODEL, random_state, set_random_state, stock_class_name
from nnunetv2_metadcseg.variants import (
    nnUNetTrainerMetaDCSeg_1epoch,
    nnUNetTrainerMetaDCSegMeanTeacher,
    nnUNetTrainerMetaDCSegNetworkInfluence,
)
from nnunetv2_metadcseg.weighting import LabelWeighting
from tests.nnunetv2_metadcseg import tiny_dataset
from tests.nnunetv2_metadcseg.tiny_dataset import TinyDataset


class ShortStart(nnUNetTrainerMetaDCSeg):
    """One step of the start, which lasts at least that long."""

    config = replace(nnUNetTrainerMetaDCSeg.config, start_fractions=(0.01, 0.01), warm_up_fraction=0.0)


class ShortStartNetwork(nnUNetTrainerMetaDCSegNetworkInfluence):
    config = replace(nnUNetTrainerMetaDCSegNetworkInfluence.config, start_fractions=(0.01, 0.01), warm_up_fraction=0.0)


class ShortStartMeanTeacher(nnUNetTrainerMetaDCSegMeanTeacher):
    config = replace(nnUNetTrainerMetaDCSegMeanTeacher.config, start_fractions=(0.01, 0.01), warm_up_fraction=0.0)


class NoDeepSupervision(ShortStart):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No drawings, always the same blur, always the same random numbers."""
    monkeypatch.setattr(nnUNetTrainer, "plot_network_architecture", lambda self: None)
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda self, folder: None)
    always_blur_alike(monkeypatch)
    seed(0)


def always_blur_alike(monkeypatch) -> None:
    """nnU-Net's blur chooses its algorithm by its speed, and the choices differ by rounding."""
    from batchgeneratorsv2.transforms.noise import gaussian_blur

    blur = gaussian_blur.blur_dimension
    monkeypatch.setattr(
        gaussian_blur.GaussianBlurTransform,
        "_benchmark_wrapper",
        lambda self, image, sigma, axis: blur(image, sigma, axis, force_use_fft=False),
    )


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)


class LongStart(nnUNetTrainerMetaDCSeg):
    config = replace(nnUNetTrainerMetaDCSeg.config, start_fractions=(1.0, 1.0), start_visits=(math.inf, math.inf))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a data set in tmp_path and points nnU-Net at it."""
    for name, value in tiny_dataset.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return lambda **settings: tiny_dataset.make(tmp_path, **settings)


def errors_go_one_way(monkeypatch, degree: float) -> None:
    monkeypatch.setattr(LabelWeighting, "bias", torch.tensor(degree))


@pytest.fixture
def known_by_heart(monkeypatch):
    """As soon as the excess has been measured once; the first given label is doubted."""

    def first(history: torch.Tensor, trusted: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(trusted)) == int(trusted.int().argmin())

    monkeypatch.setattr(MemorisationWatch, "has_begun", lambda self: self.updates > 0)
    errors_go_one_way(monkeypatch, 0.4)
    monkeypatch.setattr("nnunetv2_metadcseg.trainer.doubted_cases", first)


def start(dataset: TinyDataset, trainer_class: type = ShortStart, **settings):
    """A trainer ready to step."""
    trainer = dataset.trainer(trainer_class, **settings)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def steps(trainer, count: int) -> list[dict]:
    """Trains and returns the batches; every loss must be a number."""
    batches = []
    for _ in range(count):
        batches.append(next(trainer.dataloader_train))
        assert math.isfinite(trainer.train_step(batches[-1])["loss"])
    return batches


class TestSteps:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"dim": 2},
            {"kind": "ignore"},
            {"kind": "regions"},
            {"kind": "regions and ignore"},
            {"dim": 2, "kind": "regions and ignore"},
            {"residual": True},
            {"batch_size": 2},
            {"dim": 2, "channels": 3},
        ],
        ids=lambda s: ", ".join(str(v) for v in s.values()) or "default",
    )
    def test_runs_and_learns(self, make, settings):
        trainer = start(make(**settings))
        before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
        batches = steps(trainer, 4)
        assert all(len(batch["keys"]) // 2 <= batch["num_given"] < len(batch["keys"]) for batch in batches)
        assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
        means = trainer.weighting.statistics.means()
        assert 0 < means["alpha"] < 1
        assert 0 <= means["trusted_dice"] <= 1
        assert trainer.weighting.meta.scale is not None  # a meta step was made

    @pytest.mark.parametrize("trainer_class", [ShortStartNetwork, ShortStartMeanTeacher, NoDeepSupervision])
    @pytest.mark.parametrize("kind", ["classes", "regions and ignore"])
    def test_variants_run(self, make, trainer_class, kind):
        trainer = start(make(kind=kind), trainer_class)
        steps(trainer, 4)
        assert trainer.weighting.meta.scale is not None
        assert isinstance(trainer.network(torch.zeros(1, 1, 8, 16, 16)), torch.Tensor) == (
            trainer_class is NoDeepSupervision
        )

    def test_network_influence_leaves_the_students_parameters_trainable(self, make):
        trainer = start(make(), ShortStartNetwork)
        identities = [id(parameter) for parameter in trainer.network.parameters()]
        steps(trainer, 3)
        assert [id(parameter) for parameter in trainer.network.parameters()] == identities
        assert all(isinstance(parameter, torch.nn.Parameter) for parameter in trainer.network.parameters())

    def test_batch_of_one(self, make):
        trainer = start(make(batch_size=1), iterations=10)
        kinds = {batch["num_given"] for batch in steps(trainer, 14)[1:]}
        assert kinds == {0, 1}

    def test_case_that_the_split_names_twice(self, make):
        dataset = make()
        twice = {"train": [*dataset.cases[:-1], "case_3"], "val": dataset.cases[-1:]}
        (dataset.folder / "splits_final.json").write_text(json.dumps([twice]))
        trainer = start(dataset)
        steps(trainer, 3)
        assert list(trainer.case_index) == dataset.cases[:-1]

    def test_patches_without_structure(self, make):
        trainer = start(make())
        batch = steps(trainer, 2)[-1]
        batch["target"] = torch.zeros_like(batch["target"])
        assert math.isfinite(trainer.train_step(batch)["loss"])

    def test_patches_with_nothing_but_ignored_voxels(self, make):
        trainer = start(make(kind="ignore"))
        batch = steps(trainer, 2)[-1]
        batch["target"] = torch.full_like(batch["target"], 3)
        trainer.train_step(batch)
        assert all(torch.isfinite(parameter).all() for parameter in trainer.network.parameters())
        steps(trainer, 1)

    def test_teacher_follows_the_student(self, make):
        trainer = start(make(), ShortStartMeanTeacher)
        steps(trainer, 1)
        student = [*trainer.network.parameters(), *trainer.given_head.layer.parameters()]
        for mine, theirs in zip(trainer.teacher.module.parameters(), student, strict=True):
            assert torch.equal(mine, theirs)
        steps(trainer, 2)
        assert trainer.teacher.updates == 3

    def test_where_the_teacher_overflows_the_student_speaks(self, make, monkeypatch):
        trainer = start(make(), ShortStartMeanTeacher)
        steps(trainer, 1)
        student = torch.tensor([0.5, 0.25])
        monkeypatch.setattr(trainer.teacher.module, "probabilities", lambda data: torch.tensor([torch.nan, 0.75]))
        trainer.grad_scaler = object()  # half precision
        assert trainer._teacher_opinion(torch.zeros(2), student, 2).tolist() == [0.5, 0.75]

    def test_goes_back_when_wrong_labels_are_known_by_heart(self, make, monkeypatch, capsys):
        trainer = start(make())
        steps(trainer, 2)
        trainer.on_train_epoch_start()
        assert trainer.teacher.updates == 2 and not trainer.has_memorised
        assert trainer.extra_state()["teacher"] is None  # the audit asks whose opinion alpha was made of
        monkeypatch.setattr(trainer.weighting.memorisation, "has_begun", lambda: True)
        doubted = trainer.train_loader.given[:1]
        history = trainer.weighting.agreement.history
        history[:] = 1.0
        history[trainer.case_index[doubted[0]], 0] = 20.0
        errors_go_one_way(monkeypatch, 0.6)
        trainer.on_train_epoch_start()
        assert trainer.doubted == doubted and trainer.left_out is None  # the labels left would be wrong the same way
        errors_go_one_way(monkeypatch, 0.4)
        trainer.on_train_epoch_start()
        assert trainer.left_out == doubted and doubted[0] not in trainer.train_loader.given
        assert f"Left out: {doubted[0]}." in capsys.readouterr().out
        average = [*trainer.teacher.module.parameters()]
        assert all(map(torch.equal, trainer.opinion.parameters(), average))
        trusted, given = len(trainer.train_loader.trusted), len(trainer.train_loader.given)
        assert trainer.train_loader.trusted_share == trusted / (trusted + given)
        assert trainer.train_loader.least_trusted == 0  # else the few would be drawn more often than the others
        before = [parameter.clone() for parameter in average]
        steps(trainer, 2)
        assert all(map(torch.equal, trainer.teacher.module.parameters(), before))
        assert not all(map(torch.equal, trainer.opinion.parameters(), before))
        assert trainer.extra_state()["teacher"]["updates"] == 2

    def test_goes_on_with_its_weights_where_nobody_is_doubted(self, make, monkeypatch):
        trainer = start(make())
        steps(trainer, 2)
        monkeypatch.setattr(trainer.weighting.memorisation, "has_begun", lambda: True)
        trainer.weighting.agreement.history[:] = 1.0
        trainer.on_train_epoch_start()
        assert trainer.doubted == [] and not trainer.has_memorised

    def test_a_batch_made_before_teaches_nothing_of_left_out_cases(self, make):
        trainer = start(make())
        batch = steps(trainer, 2)[-1]
        trainer._leave_out(batch["keys"][: batch["num_given"]])
        data, (label, valid) = batch["data"], trainer.encoder(batch["target"][:, :1])
        target, weight = trainer.training_targets(batch, data, trainer.forward(data), label, valid)
        assert torch.equal(target, label)
        kept = torch.tensor([key not in trainer.left_out for key in batch["keys"]])
        assert not weight[~kept].any() and torch.equal(weight[kept], valid[kept]) and weight.any()

    def test_the_users_trust_weighs_what_is_taught(self, make):
        trainer = start(make())
        first, second = (trainer.case_index[case] for case in trainer.train_loader.given[:2])
        trainer.taught[second] = 0.0
        trust = torch.full((2, 1, 4, 4, 4), 0.25)
        taught = trainer._taught_patches(torch.tensor([first, second]), trust, 5)
        assert taught.flatten(1).amin(1).tolist() == taught.flatten(1).amax(1).tolist() == [0.25, 0.0]
        assert trainer._taught_patches(torch.tensor([first, second]), None, 5).shape == (2, 1, 1, 1, 1)

    def test_doubted_labels_teach_as_far_as_errors_are_one_sided(self, make, capsys):
        trainer = start(make())
        steps(trainer, 2)
        doubted = trainer.train_loader.given[0]
        history = trainer.weighting.agreement.history
        history[:] = 1.0
        history[trainer.case_index[doubted], 0] = 20.0
        trainer.on_train_epoch_start()
        assert "1 cases doubted" in trainer.phase and doubted in trainer.train_loader.given
        taught = dict(zip(trainer.case_index, trainer.taught.tolist(), strict=True))
        assert taught.pop(doubted) == pytest.approx(float(trainer.weighting.bias)) and set(taught.values()) == {1.0}
        trainer.on_train_end()
        assert (
            f"1 labels disagree with the second opinion more than trusted ones do: {doubted}."
            in capsys.readouterr().out
        )

    @pytest.mark.parametrize("taught", [0.0, 1.0])
    def test_the_second_last_layer_learns_what_is_taught(self, make, taught):
        trainer = start(make())
        batch = steps(trainer, 2)[-1]
        trainer.taught[:] = taught
        data, (label, valid) = batch["data"], trainer.encoder(batch["target"][:, :1])
        _, weight = trainer.training_targets(batch, data, trainer.forward(data), label, valid)
        trainer.further_loss().backward()
        assert trainer.given_head.layer.weight.grad.any() == (taught > 0)
        assert weight[: batch["num_given"]].any()  # what predicts learns from their images all the same

    @pytest.mark.parametrize("kind", ["regions", "ignore"])
    def test_trains_on_without_doubted_cases(self, make, known_by_heart, kind):
        trainer = start(make(kind=kind))
        steps(trainer, 2)
        trainer.on_train_epoch_start()
        assert trainer.has_memorised
        before = [parameter.clone() for parameter in trainer.network.parameters()]
        steps(trainer, 2)
        assert not any(map(torch.equal, before[:1], trainer.network.parameters()))

    def test_trains_on_when_all_given_labels_are_doubted(self, make, monkeypatch):
        trainer = start(make())
        steps(trainer, 2)
        monkeypatch.setattr(trainer.weighting.memorisation, "has_begun", lambda: True)
        history = trainer.weighting.agreement.history
        history[:] = 1.0
        history[~trainer.weighting.agreement.trusted, 0] = 20.0
        errors_go_one_way(monkeypatch, 0.4)
        trainer.on_train_epoch_start()
        assert trainer.train_loader.given == [] and trainer.train_loader.trusted_share == 1
        assert {batch["num_given"] for batch in steps(trainer, 2)} == {0}

    @pytest.mark.parametrize(("visits", "degree", "goes"), [(0, 0.6, True), (0, 0.8, False), (1000, 0.6, False)])
    def test_goes_on_with_trusted_cases_where_hardly_any_label_is_right(self, make, monkeypatch, visits, degree, goes):
        class Often(ShortStart):
            config = replace(ShortStart.config, all_doubted_visits=visits)

        trainer = start(make(), Often)
        steps(trainer, 2)
        history = trainer.weighting.agreement.history
        history[:] = 1.0
        history[~trainer.weighting.agreement.trusted, 0] = 20.0
        errors_go_one_way(monkeypatch, degree)
        trainer.on_train_epoch_start()
        assert trainer.has_memorised == goes and (trainer.train_loader.given == []) == goes
        steps(trainer, 1)

    def test_no_teacher_where_memorisation_is_not_watched(self, make):
        class Never(ShortStart):
            config = replace(ShortStart.config, memorised_share=0.0)

        trainer = start(make(), Never)
        steps(trainer, 2)
        assert trainer.teacher is None and trainer.extra_state()["teacher"] is None

    def test_validation_step_is_nnunets(self, make):
        for kind in ("classes",):
            trainer = start(make(kind=kind))
            trainer.on_validation_epoch_start()
            with torch.no_grad():
                result = trainer.validation_step(next(trainer.dataloader_val))
            assert set(result) == {"loss", "tp_hard", "fp_hard", "fn_hard"}


class TestStart:
    def test_lasts_while_the_dice_is_low_and_ends_within_bounds(self, make):
        class Bounds(nnUNetTrainerMetaDCSeg):
            config = replace(nnUNetTrainerMetaDCSeg.config, start_fractions=(0.1, 0.5), start_dice=0.99)

        trainer = start(make(), Bounds, epochs=1, iterations=10)
        assert self.starting(trainer, 7) == [True] * 5 + [False] * 2

    def test_ends_early_once_the_trusted_patches_are_learned(self, make):
        class Learned(nnUNetTrainerMetaDCSeg):
            config = replace(nnUNetTrainerMetaDCSeg.config, start_fractions=(0.2, 0.9), start_dice=0.0)

        trainer = start(make(), Learned, epochs=1, iterations=10)
        assert self.starting(trainer, 4) == [True] * 2 + [False] * 2

    def test_long_trainings_count_visits_of_the_cases(self, make, monkeypatch):
        class Soon(nnUNetTrainerMetaDCSeg):
            config = replace(
                nnUNetTrainerMetaDCSeg.config,
                start_visits=(2, 3),
                start_steps=0,
                warm_up_steps=0,
                memorisation_visits=4,
            )

        monkeypatch.setattr("nnunetv2_metadcseg.trainer.patches_per_view", lambda *arguments: 2)
        trainer = start(make(batch_size=4), Soon, epochs=10, iterations=100)
        assert len(trainer.case_index) == 5
        assert trainer.weighting.memorisation.horizon == 10  # not 10 % of 1000 steps
        trainer.start_dice = 1.0
        assert self.starting(trainer, 6) == [True] * 5 + [False]  # not 5 %
        trainer.start_dice = -1.0
        assert self.starting(trainer, 4) == [True] * 2 + [False] * 2  # not 60 %

    def test_steps_that_few_cases_take_at_least(self, make):
        class Soon(nnUNetTrainerMetaDCSeg):
            config = replace(
                nnUNetTrainerMetaDCSeg.config, start_visits=(2, 3), start_steps=9, warm_up_visits=1, warm_up_steps=7
            )

        trainer = start(make(batch_size=4), Soon, epochs=10, iterations=100)
        trainer.start_dice = -1.0
        assert self.starting(trainer, 11) == [True] * 9 + [False] * 2
        trainer.training_step = 6
        assert trainer.warming_up
        trainer.training_step = 7
        assert trainer.starting and not trainer.warming_up

    def test_neither_absent_classes_nor_empty_patches_hold_it_up(self, make):
        trainer = start(make())
        heads = trainer.label_manager.num_segmentation_heads
        assert heads > 2
        label, valid = torch.zeros(1, heads, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)
        label[:, 0] = 1
        trainer._note(0.0, present_soft_dice(label, label, valid), None)
        assert trainer.start_dice == 0
        label[:, :2, 0] = torch.tensor([0.0, 1.0]).view(2, 1, 1)
        trainer._note(0.0, present_soft_dice(label, label, valid), None)
        assert trainer.start_dice == pytest.approx(0.05)
        assert trainer.weighting.statistics.means()["trusted_dice"] == pytest.approx(1)

    def test_warm_up_ends_once_trusted_patches_begin_to_be_learned(self, make):
        class Long(nnUNetTrainerMetaDCSeg):
            config = replace(nnUNetTrainerMetaDCSeg.config, start_fractions=(0.1, 0.6), warm_up_fraction=0.6)

        trainer = start(make(), Long, epochs=1, iterations=20)
        steps(trainer, 2)
        assert trainer.warming_up and trainer.starting
        trainer._note(0.0, torch.tensor(10.0), None)  # once above warm_up_dice
        assert trainer.has_features
        trainer.start_dice = 0.3  # a dip is no reason to warm up again
        steps(trainer, 2)
        assert trainer.starting and not trainer.warming_up

    def test_warm_up_lasts_two_fifths_of_the_training_at_most(self, make):
        trainer = start(make(), nnUNetTrainerMetaDCSeg, epochs=1, iterations=10)
        assert [batch["num_given"] for batch in steps(trainer, 4)] == [2] * 4
        assert trainer.starting and not trainer.warming_up
        # What was counted so far is of layers that had learned little.
        assert trainer.weighting.bias == 1.0 and not trainer.weighting.label_depth.counts.any()

    def test_predictions_warm_up_on_all_labels_but_for_what_the_user_does_not_trust(self, make, monkeypatch):
        trainer = start(make(), nnUNetTrainerMetaDCSeg, epochs=1, iterations=40)
        trust = torch.full((2, 1, 1, 1, 1), 0.25)
        monkeypatch.setattr(trainer, "_user_trust", lambda batch, given: trust)
        batch = next(trainer.dataloader_train)
        data, (label, valid) = trainer.to_device(batch["data"]), trainer.encoder(batch["target"])
        target, weight = trainer.training_targets(batch, data, trainer.forward(data), label, valid)
        assert torch.equal(target, label)
        assert torch.equal(weight[:2], 0.25 * valid[:2]) and torch.equal(weight[2:], valid[2:])

    def test_predictions_learn_from_trusted_patches_only_and_features_from_all(self, make):
        trainer = start(make())
        batch = next(trainer.dataloader_train)
        data, (label, valid) = trainer.to_device(batch["data"]), trainer.encoder(batch["target"])
        target, weight = trainer.training_targets(batch, data, trainer.forward(data), label, valid)
        assert torch.equal(target, label)
        assert (weight[:2] == 0).all()
        assert torch.equal(weight[2:], valid[2:])
        loss = trainer.further_loss()
        loss.backward()
        assert trainer.given_head.layer.weight.grad.abs().sum() > 0
        encoder = next(trainer.network.encoder.parameters())
        assert encoder.grad.abs().sum() > 0
        assert trainer.network.decoder.seg_layers[-1].weight.grad is None
        assert trainer.further_loss() == 0.0  # handed out once

    def test_without_the_second_last_layer_it_sees_trusted_patches_only(self, make):
        class WithoutHead(ShortStart):
            config = replace(ShortStart.config, given_head=0.0)

        trainer = start(make(), WithoutHead)
        assert [batch["num_given"] for batch in steps(trainer, 3)] == [0, 2, 2]  # of the start, then after it
        assert trainer.weighting.bias == 1.0

    @staticmethod
    def starting(trainer, count: int) -> list[bool]:
        """Whether each of the next steps belongs to the start."""
        found = []
        for _ in range(count):
            found.append(trainer.starting)
            steps(trainer, 1)
        return found


class TestCompiled:
    @pytest.mark.parametrize("trainer_class", [ShortStart, ShortStartNetwork, ShortStartMeanTeacher])
    def test_whole_steps_through_torch_compile(self, make, monkeypatch, trainer_class):
        """nnU-Net compiles on CUDA only; here with a backend that needs no compiler."""
        dataset, compile_network = make(batch_size=2), torch.compile
        plain = start(dataset, trainer_class)
        steps(plain, 3)
        seed(0)
        monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: True)
        monkeypatch.setattr(torch, "compile", lambda network: compile_network(network, backend="aot_eager"))
        with torch._functorch.config.patch(donated_buffer=torch._functorch.config.donated_buffer):
            compiled = start(dataset, trainer_class)
            assert isinstance(compiled.network, OptimizedModule)
            steps(compiled, 3)
        assert compiled.weighting.meta.scale is not None
        pairs = [(compiled.network, plain.network)]
        if plain.teacher is not None:
            pairs.append((compiled.teacher.module, plain.teacher.module))
        for mine, theirs in pairs:
            for got, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


class TwoRanks(Collective):
    """As if another rank, with the same numbers or with `other`, took part in every sum."""

    world_size = 2

    def __init__(self, other: float | None = None) -> None:
        self.other, self.calls = other, 0

    def sum(self, tensor):
        self.calls += 1
        return tensor + (tensor if self.other is None else self.other)

    def first(self, tensor):
        return tensor

    def mean(self, tensor):
        return self.sum(tensor) / 2


class TestRanks:
    """What a rank does when its batch, or another's, holds one kind of patch only."""

    @pytest.mark.parametrize(("num_given", "other"), [(0, None), (2, 1.0)])
    def test_all_skip_the_reductions_and_train_on_trusted_patches(self, make, num_given, other):
        trainer = start(make())
        steps(trainer, 2)
        batch = next(trainer.dataloader_train)
        batch["num_given"] = num_given
        trainer.collective = TwoRanks(other)
        data = trainer.to_device(batch["data"])
        label, valid = trainer.encoder(batch["target"])
        target, weight = trainer.training_targets(batch, data, trainer.forward(data), label, valid)
        assert trainer.collective.calls == 1
        assert torch.equal(target, label)
        assert (weight[:num_given] == 0).all()
        assert torch.equal(weight[num_given:], valid[num_given:])

    def test_batches_of_both_kinds_go_on(self, make):
        trainer = start(make())
        steps(trainer, 2)
        trainer.collective = TwoRanks()
        before = trainer.weighting.direction.direction.clone()
        steps(trainer, 1)
        assert not torch.equal(before, trainer.weighting.direction.direction)

    def test_one_patch_per_rank_is_refused(self, make):
        trainer = make(batch_size=1).trainer(ShortStart)
        trainer.initialize()
        trainer.collective = TwoRanks()
        with pytest.raises(ValueError, match="Batch size 1 on one of 2 GPUs; MetaDCSeg needs"):
            trainer.on_train_start()


class TestTrustedCases:
    def test_none(self, make):
        dataset = make()
        dataset.set_trusted(None)
        with pytest.raises(TrustedCasesError, match="No trusted cases"):
            dataset.trainer(nnUNetTrainerMetaDCSeg).on_train_start()

    def test_unknown(self, make):
        dataset = make()
        dataset.set_trusted(["case_0", "case_77"])
        with pytest.raises(TrustedCasesError, match="case_77 are not among the 6 preprocessed cases"):
            dataset.trainer(nnUNetTrainerMetaDCSeg).on_train_start()

    def test_all(self, make):
        dataset = make()
        dataset.set_trusted(dataset.cases)
        with pytest.raises(TrustedCasesError, match="All 5 training cases are trusted"):
            dataset.trainer(nnUNetTrainerMetaDCSeg).on_train_start()

    def test_only_in_the_validation_split(self, make):
        dataset = make()
        dataset.set_trusted(["case_5"])
        with pytest.raises(TrustedCasesError, match="None of the 1 trusted cases is in this fold's training split"):
            dataset.trainer(nnUNetTrainerMetaDCSeg).on_train_start()

    def test_the_file_beside_the_splits_wins(self, make):
        dataset = make()
        (dataset.folder / "trusted_cases.json").write_text('["case_3"]')
        trainer = dataset.trainer(nnUNetTrainerMetaDCSeg)
        trainer.on_train_start()
        assert trainer.train_loader.trusted == ["case_3"]


def run(trainer, epochs: int | None = None):
    """nnU-Net's own loop, stopped after so many epochs as by an interruption."""
    if epochs is None:
        trainer.run_training()
        return trainer

    class Interrupted(Exception):
        pass

    end = trainer.on_epoch_end

    def stop() -> None:
        end()
        if trainer.current_epoch == epochs:
            raise Interrupted

    trainer.on_epoch_end = stop
    with pytest.raises(Interrupted):
        trainer.run_training()
    return trainer


def everything(trainer) -> dict[str, torch.Tensor]:
    """All that was learned, by name."""
    weighting = trainer.weighting
    parts = {f"student.{k}": v for k, v in trainer.network.state_dict().items()}
    if trainer.teacher is not None:
        parts |= {f"teacher.{k}": v for k, v in trainer.teacher.module.state_dict().items()}
    parts |= {f"meta.{k}": v for k, v in weighting.meta.network.state_dict().items()}
    parts |= {f"given.{k}": v for k, v in trainer.given_head.layer.state_dict().items()}
    parts |= {"bias": weighting.label_bias.counts, "depth": weighting.label_depth.counts, "odds": weighting.mean_odds}
    parts |= {"centers": weighting.centers.centers, "rates": weighting.agreement.rates()}
    if weighting.direction.direction is not None:
        parts["direction"] = weighting.direction.direction
    for i, value in enumerate(trainer.optimizer.state.values()):
        if value.get("momentum_buffer") is not None:
            parts[f"momentum.{i}"] = value["momentum_buffer"]
    return parts


def unbroken_and_resumed(dataset: TinyDataset, trainer_class: type, stop: int, save_every: int, **settings):
    """A finished training, and one of the same start that was stopped after `stop` epochs and loaded again."""

    def begin(**more):
        trainer = dataset.trainer(trainer_class, **settings, **more)
        trainer.save_every = save_every
        return trainer

    unbroken = run(begin())
    seed(0)
    run(begin(), epochs=stop)
    seed(123)
    resumed = begin(continue_training=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    return unbroken, resumed


class TestResume:
    @pytest.mark.parametrize("trainer_class", [ShortStart, ShortStartNetwork, ShortStartMeanTeacher])
    def test_goes_on_as_if_never_stopped_bit_by_bit(self, make, trainer_class):
        unbroken, second = unbroken_and_resumed(make(), trainer_class, 2, 2, epochs=4, iterations=3)
        expected = everything(unbroken)
        assert (second.current_epoch, second.training_step) == (2, 6)
        got = everything(run(second))
        assert got.keys() == expected.keys()
        assert [name for name in got if not torch.equal(got[name], expected[name])] == []
        assert second.best_trusted_dice == unbroken.best_trusted_dice

    def test_goes_on_without_doubted_cases(self, make, known_by_heart):
        unbroken, second = unbroken_and_resumed(make(), ShortStart, 2, 2, epochs=4, iterations=3)
        assert unbroken.has_memorised and second.has_memorised
        expected, got = everything(unbroken), everything(run(second))
        assert [name for name in got if not torch.equal(got[name], expected[name])] == []

    def test_a_finished_training_is_left_as_it_is(self, make):
        dataset = make()
        expected = everything(run(dataset.trainer(ShortStart)))
        again = dataset.trainer(ShortStart, continue_training=True)
        again.load_checkpoint(f"{again.output_folder}/checkpoint_final.pth")
        got = everything(run(again))
        assert again.current_epoch == 2
        assert [name for name in got if not torch.equal(got[name], expected[name])] == []

    def test_a_new_training_is_not_continued_from_the_model_that_it_replaces(self, make):
        dataset = make()
        old = run(dataset.trainer(ShortStart))
        final, aside = (Path(old.output_folder, name) for name in ("checkpoint_final.pth", EARLIER_MODEL))
        content = final.read_bytes()
        new = start(dataset)  # and nnU-Net's --c would look for checkpoint_final.pth first
        assert not final.exists() and aside.read_bytes() == content
        assert f"until then it is {EARLIER_MODEL}" in open(new.log_file).read()
        steps(new, 2)
        new.on_train_end()
        assert final.is_file() and not aside.exists()

    def test_a_training_that_saves_nothing_leaves_the_finished_model(self, make):
        dataset = make()
        final = Path(run(dataset.trainer(ShortStart)).output_folder, "checkpoint_final.pth")
        content = final.read_bytes()
        trainer = dataset.trainer(ShortStart)
        trainer.disable_checkpointing = True
        trainer.on_train_start()
        trainer.on_train_end()
        assert final.read_bytes() == content

    def test_other_cases_than_those_of_the_checkpoint(self, make):
        dataset = make()
        trainer = start(dataset)
        steps(trainer, 2)
        trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
        (dataset.folder / "splits_final.json").write_text('[{"train": ["case_0", "case_3"], "val": ["case_5"]}]')
        other = dataset.trainer(ShortStart, continue_training=True)
        other.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
        with pytest.raises(ValueError, match="trained on 5 cases that are not the 2 of this fold now"):
            other.on_train_start()

    def test_other_trusted_cases_than_those_of_the_checkpoint(self, make):
        dataset = make()
        trainer = start(dataset)
        steps(trainer, 2)
        trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
        dataset.set_trusted(["case_2"])
        other = dataset.trainer(ShortStart, continue_training=True)
        other.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
        with pytest.raises(ValueError, match="trained with 2 trusted cases that are not the 1 of this fold now"):
            other.on_train_start()

    def test_random_state_round_trip(self):
        state = random_state()
        drawn = torch.rand(3), np.random.rand(3)
        set_random_state(state)
        assert torch.equal(drawn[0], torch.rand(3))
        assert (drawn[1] == np.random.rand(3)).all()

    def test_ranks_do_not_all_take_the_random_numbers_of_the_first(self, make, monkeypatch):
        trainer = start(make())
        monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)
        for trainer.is_ddp, same in ((False, True), (True, False)):
            trainer._random_state = random_state()
            drawn = np.random.rand(3)
            trainer.on_train_start()
            assert (np.random.rand(3) == drawn).all() == same


class TestEnd:
    """What predicts after the last step is the second opinion."""

    def test_the_last_layer_becomes_the_mixture(self, make, capsys):
        trainer = start(make())
        steps(trainer, 3)
        trainer.weighting.label_bias.sides = lambda: torch.tensor([0.25, 0.0])
        layer, given = last_segmentation_layer(trainer.network), trainer.given_head.layer
        own = layer.weight.detach().clone()
        trainer.on_train_end()
        torch.testing.assert_close(layer.weight.flatten(1), 0.25 * own.flatten(1) + 0.75 * given.weight)
        assert "has a share of 0.75 of what was learned of the given labels" in capsys.readouterr().out
        checkpoint = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
        assert torch.equal(checkpoint["metadcseg"]["state"]["own_layer"]["weight"], own)

    def test_a_training_that_goes_on_does_so_with_the_layer_that_it_had(self, make):
        dataset = make()
        trainer = start(dataset)
        steps(trainer, 3)
        own = last_segmentation_layer(trainer.network).weight.detach().clone()
        trainer.on_train_end()
        again = dataset.trainer(ShortStart, continue_training=True)
        again.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
        assert not torch.equal(last_segmentation_layer(again.network).weight, own)
        again.on_train_start()
        assert torch.equal(last_segmentation_layer(again.network).weight, own) and again.own_layer is None

    @pytest.mark.parametrize("field, value", [("predict_opinion", False), ("given_opinion", False), ("given_head", 0)])
    def test_it_stays_as_it_is_without_a_second_opinion(self, make, monkeypatch, field, value):
        monkeypatch.setattr(ShortStart, "config", replace(ShortStart.config, **{field: value}))
        trainer = start(make())
        steps(trainer, 2)
        before = last_segmentation_layer(trainer.network).weight.detach().clone()
        trainer.on_train_end()
        assert torch.equal(last_segmentation_layer(trainer.network).weight, before) and trainer.own_layer is None


class TestCheckpoint:
    @pytest.fixture
    def trained(self, make):
        trainer = start(make())
        steps(trainer, 3)
        file = f"{trainer.output_folder}/checkpoint_final.pth"
        trainer.save_checkpoint(file)
        return trainer, file

    def test_names_nnunets_own_class_and_says_where_it_came_from(self, trained):
        trainer, file = trained
        checkpoint = torch.load(file, weights_only=False)
        assert checkpoint["trainer_name"] == "nnUNetTrainer"
        ours = checkpoint["metadcseg"]
        assert ours["trainer"] == "ShortStart"
        assert ours["config"]["start_fractions"] == (0.01, 0.01)
        assert ours["version"]

    def test_names_no_module_of_this_package(self, trained):
        with zipfile.ZipFile(trained[1]) as archive:
            (pickled,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
            assert b"nnunetv2_metadcseg" not in archive.read(pickled)

    def test_stock_nnunet_loads_it(self, trained, make):
        trainer, file = trained
        plans = {**trainer.plans_manager.plans, "continue_training": False}
        stock = nnUNetTrainer(plans, trainer.configuration_name, 0, trainer.dataset_json, torch.device("cpu"))
        stock.load_checkpoint(file)
        for mine, theirs in zip(trainer.network.parameters(), stock.network.parameters(), strict=True):
            assert torch.equal(mine, theirs)

    def test_a_stock_checkpoint_gives_its_weights(self, trained):
        trainer, file = trained
        checkpoint = torch.load(file, weights_only=False)
        del checkpoint["metadcseg"]
        torch.save(checkpoint, file)
        steps(trainer, 1)
        trainer.load_checkpoint(file)
        for name, value in trainer.network.state_dict().items():
            assert torch.equal(value, checkpoint["network_weights"][name])

    def test_nothing_half_written(self, trained, monkeypatch):
        trainer, file = trained
        good = torch.load(file, weights_only=False)["network_weights"]
        steps(trainer, 1)
        monkeypatch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            trainer.save_checkpoint(file)
        monkeypatch.undo()
        again = torch.load(file, weights_only=False)["network_weights"]
        assert all(torch.equal(good[name], again[name]) for name in good)


def full_disk(*_, **__):
    raise OSError("No space left on device")


def test_stock_class_name():
    assert stock_class_name(nnUNetTrainerMetaDCSeg_1epoch) == "nnUNetTrainer"


def test_a_network_of_the_users_own_is_built_by_his_own_class():
    class Own(nnUNetTrainerMetaDCSeg):
        @staticmethod
        def build_network_architecture(*args, **kwargs):
            return nnUNetTrainerMetaDCSeg.build_network_architecture(*args, **kwargs)

    assert stock_class_name(Own) == "Own"


def test_another_loss_is_refused(make):
    class OtherLoss(nnUNetTrainerMetaDCSeg, nnUNetTrainerCELoss):
        pass

    with pytest.raises(ValueError, match="OtherLoss defines a loss"):
        make().trainer(OtherLoss).initialize()


class TestWholeRun:
    def test_log_tells_every_epoch_what_was_learned(self, make):
        trainer = run(make().trainer(ShortStart, epochs=3, iterations=3))
        with open(trainer.log_file) as log:
            lines = [line for line in log if "MetaDCSeg: disagreeing voxels" in line]
        assert len(lines) == 3
        for part in ("alpha there", "beta there", "boundary share", "Dice on trusted patches", "one-sidedness"):
            assert part in lines[-1]
        assert "nan" not in lines[-1]
        assert "2 trusted cases in this fold: case_0, case_1" in open(trainer.log_file).read()

    def test_best_checkpoint_follows_the_trusted_patches(self, make):
        trainer = run(make().trainer(ShortStart, epochs=3, iterations=3))
        best = torch.load(f"{trainer.output_folder}/checkpoint_best.pth", weights_only=False)
        assert best["_best_ema"] == trainer.best_trusted_dice
        assert 0 <= trainer.best_trusted_dice <= 1
        assert 1 <= best["current_epoch"] <= 3

    def test_there_is_a_checkpoint_to_go_on_from_during_the_start(self, make):
        trainer = run(make().trainer(LongStart, epochs=3, iterations=3), epochs=2)
        best = torch.load(f"{trainer.output_folder}/checkpoint_best.pth", weights_only=False)
        assert trainer.starting and best["current_epoch"] == 2 and best["_best_ema"] is None
