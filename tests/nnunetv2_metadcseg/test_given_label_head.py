from __future__ import annotations

import copy

import pytest
import torch

from nnunetv2_metadcseg.collective import Collective
from nnunetv2_metadcseg.given_label_head import SMALL_BALANCE, GivenLabelHead, LabelBias
from tests.nnunetv2_metadcseg.ranks import run_ranks

FEATURES, HEADS = 4, 3


def head(**settings) -> GivenLabelHead:
    torch.manual_seed(0)
    return GivenLabelHead(FEATURES, HEADS, **settings)


def features(seed: int = 0, count: int = 2) -> torch.Tensor:
    return torch.randn(count, FEATURES, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def backward(layer: GivenLabelHead, inputs: torch.Tensor, factor: float = 1.0) -> None:
    (factor * layer(inputs).square().mean()).backward()


def gradient_scaler(scale: float) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.ones(()))  # makes its tensors
    return scaler


class TestHead:
    @pytest.mark.parametrize("dim", [2, 3])
    def test_logits_per_voxel(self, dim):
        layer = GivenLabelHead(FEATURES, HEADS)
        inputs = torch.randn(2, FEATURES, *range(3, 3 + dim))
        expected = torch.nn.functional.linear(inputs.movedim(1, -1), layer.layer.weight, layer.layer.bias).movedim(
            -1, 1
        )
        torch.testing.assert_close(layer(inputs), expected)

    def test_learns(self):
        layer = head()
        losses = []
        for _ in range(30):
            losses.append(layer(features()).square().mean().item())
            backward(layer, features())
            layer.step()
        assert losses[-1] < 0.7 * losses[0]

    def test_scale_of_the_gradient_scaler_makes_no_difference(self):
        plain, scaled = head(), head()
        for layer, scaler in ((plain, None), (scaled, gradient_scaler(1024.0))):
            backward(layer, features(), 1024.0 if scaler else 1.0)
            layer.step(scaler=scaler)
        torch.testing.assert_close(plain.layer.weight, scaled.layer.weight)

    def test_gradients_that_overflowed_do_nothing_and_are_scaled_less_from_then_on(self):
        layer, scaler = head(), gradient_scaler(1024.0)
        before = layer.layer.weight.clone()
        backward(layer, features(), float("inf"))
        layer.step(scaler=scaler)
        scaler.update()
        assert torch.equal(before, layer.layer.weight) and scaler.get_scale() == 512

    def test_without_a_backward_pass_or_rate_nothing_moves(self):
        layer = head()
        before = layer.layer.weight.clone()
        layer.step()
        backward(layer, features())
        layer.step(rate=0.0)
        assert torch.equal(before, layer.layer.weight)

    def test_state_goes_on(self):
        layer, other = head(), head()
        for _ in range(2):
            backward(layer, features())
            layer.step()
        other.load_state_dict(copy.deepcopy(layer.state_dict()))
        for one in (layer, other):
            backward(one, features(1))
            one.step()
        assert torch.equal(layer.layer.weight, other.layer.weight)

    def test_two_ranks_step_as_one_process_with_the_joint_batch(self, tmp_path):
        joint = head()
        backward(joint, features(count=4))
        joint.step()
        for weight in run_ranks(step_on_half, tmp_path):
            torch.testing.assert_close(weight, joint.layer.weight, rtol=1e-5, atol=1e-6)


def step_on_half(rank: int) -> torch.Tensor:
    torch.manual_seed(0 if rank == 0 else 9)  # the first rank's initial weights count
    layer = GivenLabelHead(FEATURES, HEADS, collective=Collective())
    backward(layer, features(count=4)[2 * rank : 2 * rank + 2])
    layer.step()
    return layer.layer.weight.detach()


SIZE = 20  # voxels of the label in `maps`


def maps(extra: int = 0, missing: int = 0, classes: int = 1):
    """Decision and label of one patch with so many voxels too much and too little, per class."""
    label = torch.zeros(1, classes, 4, 10)
    label[:, :, :2] = 1
    decision = label.clone()
    decision[:, :, 2, :extra] = 1
    decision[:, :, 0, :missing] = 0
    return decision, label


def update(bias: LabelBias, decision: torch.Tensor, label: torch.Tensor) -> None:
    """The layer that predicts is right everywhere."""
    bias.update(decision, decision.round(), label, torch.ones_like(label))


def believed(balance: int, size: int = SIZE) -> float:
    """How far a balance of so many voxels is believed."""
    share = (balance / size) ** 2
    return share / (share + SMALL_BALANCE**2)


class TestBias:
    @pytest.mark.parametrize(("extra", "missing", "expected"), [(4, 4, 0.0), (6, 0, 1.0), (0, 6, 1.0), (6, 2, 0.5)])
    def test_share_that_does_not_cancel(self, extra, missing, expected):
        bias = LabelBias()
        update(bias, *maps(extra, missing))
        assert bias().item() == pytest.approx(expected * believed(extra - missing))

    def test_few_errors_may_be_one_sided_by_chance(self):
        bias = LabelBias()
        update(bias, *maps(extra=round(SMALL_BALANCE * SIZE)))
        assert bias().item() == pytest.approx(0.5)

    def test_classes_do_not_cancel_each_other(self):
        bias = LabelBias()
        update(bias, *(torch.cat(pair, 1) for pair in zip(maps(extra=5), maps(missing=5), strict=True)))
        assert bias().item() == pytest.approx(believed(10, 2 * SIZE))

    def test_sides(self):
        bias = LabelBias()
        update(bias, *maps(extra=6, missing=2))
        assert bias.sides().tolist() == pytest.approx([0.5 * believed(4), 0.0])
        bias = LabelBias()
        update(bias, *maps(extra=1, missing=4))
        assert bias.sides().tolist() == pytest.approx([0.0, 0.6 * believed(3)])

    def test_what_both_layers_get_wrong_does_not_count(self):
        bias, (decision, label) = LabelBias(), maps(extra=6, missing=6)
        predicted = label.clone()
        predicted[:, :, 0] = 0
        bias.update(decision, decision, label, (predicted == label).float())
        assert bias.sides().tolist() == pytest.approx([believed(6), 0.0])

    def test_probabilities_count_where_decisions_are_right(self):
        bias, (said, label) = LabelBias(), maps(missing=4)
        said[:, :, 0, :4] = 0.75
        update(bias, said, label)
        size = 0.02 * SIZE
        assert bias.counts.tolist() == [[pytest.approx([0, 0, size])], [pytest.approx([0, 0.02 * 4 * 0.25, size])]]
        assert bias.sides().tolist() == pytest.approx([0, believed(1)])

    def test_the_more_one_sided_of_decisions_and_probabilities_counts(self):
        bias, (said, label) = LabelBias(), maps(extra=6)
        said[:, :, 0] = 0.75  # unsure inside, but right
        update(bias, said, label)
        assert bias.sides().tolist() == pytest.approx([believed(6), 0])

    def test_counts_of_decisions_alone_are_those_of_both(self):
        bias, counts = LabelBias(), torch.tensor([[6.0, 2.0, SIZE]])
        bias.set_counts(counts)
        assert bias.sides().tolist() == pytest.approx([0.5 * believed(4), 0.0])
        assert torch.equal(bias.counts, torch.stack([counts, counts]))

    def test_unknown_counts_as_one_sided(self):
        assert LabelBias()() == 1.0
        assert LabelBias().sides().tolist() == [1.0, 1.0]

    def test_no_error_at_all(self):
        bias = LabelBias()
        update(bias, *maps())
        assert bias() == 0.0

    def test_no_trusted_patch(self):
        bias = LabelBias()
        update(bias, *(m[:0] for m in maps()))
        assert bias() == 0.0

    def test_batches_without_trusted_patches_change_nothing(self):
        bias = LabelBias()
        update(bias, *maps(extra=8))
        before = bias.counts
        update(bias, *(m[:0] for m in maps()))
        assert torch.equal(bias.counts, before)

    def test_forgets(self):
        bias = LabelBias(momentum=0.5)
        update(bias, *maps(extra=8))
        for _ in range(20):
            update(bias, *maps(missing=8))
        assert bias() > 0.99 * believed(8)
        assert bias.counts[:, 0, 0].max() < 1e-3
