from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nnunetv2_metadcseg.agreement import hard_labels
from nnunetv2_metadcseg.baselines import l2b_weight, nnUNetTrainerL2B, nnUNetTrainerMixed, nnUNetTrainerTrustedOnly
from nnunetv2_metadcseg.influence import HeadInfluence
from nnunetv2_metadcseg.losses import WeightedDiceCELoss
from tests.nnunetv2_metadcseg import tiny_dataset

SHAPE = (4, 5, 6)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def one_hot(shape=(4,), heads: int = 2) -> torch.Tensor:
    label = torch.randint(0, heads, (*shape, *SHAPE))
    return torch.nn.functional.one_hot(label, heads).movedim(-1, 1).float()


class TestL2BWeight:
    @pytest.mark.parametrize("regions", [False, True])
    def test_positive_part_of_the_influence(self, regions):
        features, logits, target = torch.randn(2, 3, *SHAPE), torch.randn(2, 2, *SHAPE), one_hot((2,))
        probabilities = torch.sigmoid(logits) if regions else torch.softmax(logits, 1)
        influence = HeadInfluence(0.0)
        influence.update(torch.randn(2, 4))
        valid = (torch.rand(2, 1, *SHAPE) > 0.3).float()
        weight = l2b_weight(influence, features, probabilities, target, valid, regions)
        change = torch.einsum("kc,bcxyz->bkxyz", influence.direction[:, :-1], features)
        change = change + influence.direction[:, -1].view(1, -1, 1, 1, 1)
        score = change * (probabilities - target)
        score = score if regions else score.sum(1, keepdim=True)
        torch.testing.assert_close(weight, score.clamp_min(0) * valid)
        assert (weight > 0).any()


class TestL2BTargets:
    """The rule on tensors: a stand-in for the trainer gives what it needs and nothing more."""

    @staticmethod
    def targets(regions: bool, num_given: int, flip: bool = False, ignore: bool = False):
        features = torch.randn(4, 3, *SHAPE)
        truth = torch.cat([features[:, :1] <= 0, features[:, :1] > 0], 1).float()
        label = truth.clone()
        label[:num_given, :, :2] = 1 - label[:num_given, :, :2]  # wrong labels in half of every given-label patch
        valid = torch.ones(4, 1, *SHAPE)
        if ignore:
            valid[..., 0] = 0
        trainer = SimpleNamespace(
            tap=SimpleNamespace(pop=lambda: features),
            label_manager=SimpleNamespace(has_regions=regions),
            probabilities=torch.sigmoid if regions else lambda z: torch.softmax(z, 1),
            local_loss=WeightedDiceCELoss(regions),
        )
        outputs = [0.01 * torch.randn(4, 2, *SHAPE)]
        batch = {"num_given": num_given}
        target, weight = nnUNetTrainerL2B.training_targets(trainer, batch, features, outputs, label, valid)
        pseudo = hard_labels(trainer.probabilities(outputs[0]), regions)
        return target, weight, label, valid, pseudo

    @pytest.mark.parametrize("regions", [False, True])
    def test_right_labels_weigh_and_wrong_ones_do_not(self, regions):
        target, weight, label, _, pseudo = self.targets(regions, 2)
        clear = (pseudo != label)[:2]  # where label and pseudo-label agree nothing can be chosen
        weight = weight[:2].expand_as(clear)
        right, wrong = weight[:, :, 2:][clear[:, :, 2:]], weight[:, :, :2][clear[:, :, :2]]
        # On wrong labels the pseudo-label is right: it takes the weight and the target.
        kept = target[:2, :, 2:] == label[:2, :, 2:]
        taken = target[:2, :, :2] == pseudo[:2, :, :2]
        assert kept[clear[:, :, 2:]].float().mean() > 0.8
        assert taken[clear[:, :, :2]].float().mean() > 0.8
        assert (right > 0).float().mean() > 0.8
        assert (wrong > 0).float().mean() > 0.8

    @pytest.mark.parametrize("regions", [False, True])
    def test_weights_sum_to_the_number_of_given_label_voxels(self, regions):
        target, weight, label, valid, _ = self.targets(regions, 2, ignore=True)
        assert weight[:2].sum().item() == pytest.approx(valid[:2].expand_as(weight[:2]).sum().item(), rel=1e-4)
        assert (weight[:2][valid[:2].expand_as(weight[:2]) == 0] == 0).all()
        assert weight.min() >= 0

    @pytest.mark.parametrize("regions", [False, True])
    def test_trusted_patches_keep_labels_and_unit_weight(self, regions):
        target, weight, label, valid, _ = self.targets(regions, 2, ignore=True)
        assert torch.equal(target[2:], label[2:])
        assert torch.equal(weight[2:], valid[2:].expand_as(weight[2:]))

    @pytest.mark.parametrize("num_given", [0, 4])
    def test_batches_of_one_kind_are_taken_as_they_are(self, num_given):
        target, weight, label, valid, _ = self.targets(False, num_given)
        assert torch.equal(target, label)
        assert torch.equal(weight, valid)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def nnunet(dataset, monkeypatch):
    for name, value in tiny_dataset.environment(dataset.folder.parents[1]).items():
        monkeypatch.setenv(name, value)
    return dataset


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerTrustedOnly, nnUNetTrainerMixed, nnUNetTrainerL2B])
def test_trains(nnunet, trainer_class):
    trainer = nnunet.trainer(trainer_class)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    batches = [next(trainer.dataloader_train) for _ in range(3)]
    losses = [float(trainer.train_step(batch)["loss"]) for batch in batches]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    expected = 0 if trainer_class is nnUNetTrainerTrustedOnly else 2
    assert all(batch["num_given"] == expected for batch in batches)


class OurTrusted(nnUNetTrainerTrustedOnly):
    """A subclass under a name that does not tell."""


@pytest.mark.parametrize(
    ("trainer_class", "first_seen", "both_seen"), [(OurTrusted, 2, 3), (nnUNetTrainerMixed, None, None)]
)
def test_a_checkpoint_says_whose_labels_were_seen(nnunet, tmp_path, trainer_class, first_seen, both_seen):
    first = nnunet.trainer(trainer_class)
    first.on_train_start()
    file = str(tmp_path / "checkpoint.pth")
    first.save_checkpoint(file)
    training = sorted(first.dataloader_train.data_loader.cases)
    assert torch.load(file, weights_only=False)["metadcseg"]["seen"] == training[:first_seen]
    resumed = nnunet.trainer(trainer_class, continue_training=True)
    resumed.dataset_json["trusted_cases"] = nnunet.cases[1:3]
    resumed.load_checkpoint(file)
    resumed.on_train_start()
    assert resumed.seen == training[:both_seen]


def test_trusted_only_loads_checkpoints_without_that_list(nnunet, tmp_path):
    trainer = nnunet.trainer(nnUNetTrainerTrustedOnly)
    trainer.initialize()
    file = tmp_path / "checkpoint.pth"
    trainer.save_checkpoint(str(file))
    for state, seen in (({}, []), ({"trusted": ["a"]}, ["a"])):  # before 2026-11-30, and until 2026-12-01
        checkpoint = torch.load(file, weights_only=False)
        del checkpoint["metadcseg"]["seen"]
        checkpoint["metadcseg"]["state"] = state
        torch.save(checkpoint, tmp_path / "older.pth")
        later = nnunet.trainer(nnUNetTrainerTrustedOnly)
        later.load_checkpoint(str(tmp_path / "older.pth"))
        assert later.seen == seen
