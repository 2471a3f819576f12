from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from nnunetv2_metadcseg import losses
from nnunetv2_metadcseg.agreement import probabilities_of
from nnunetv2_metadcseg.losses import (
    WeightedDiceCELoss,
    pool_target,
    present_soft_dice,
    voxel_cross_entropy,
    weighted_cross_entropy,
    weighted_soft_dice,
)

SHAPES = {2: (8, 6), 3: (4, 6, 8)}


def soft_case(dim: int, heads: int, regions: bool, dtype=torch.float64, batch: int = 2):
    """Random logits, soft target and voxel weight, some of it zero."""
    shape = (batch, heads, *SHAPES[dim])
    logits = torch.randn(shape, dtype=dtype)
    target = torch.rand(shape, dtype=dtype) if regions else torch.softmax(torch.randn(shape, dtype=dtype), 1)
    weight = torch.rand(batch, heads if regions else 1, *SHAPES[dim], dtype=dtype)
    return logits, target, torch.where(weight < 0.3, 0, weight)


def hard_case(dim: int, heads: int, regions: bool, ignore: bool, block: int = 1):
    """Logits, target and mask as we take them, and the target as nnU-Net's losses take it.

    The labels are constant on blocks of `block` voxels per axis, so that every way to down-sample them agrees.
    """
    small = [n // block for n in SHAPES[dim]]
    logits = torch.randn(2, heads, *SHAPES[dim])

    def grow(x: torch.Tensor) -> torch.Tensor:
        for axis in range(2, x.ndim):
            x = x.repeat_interleave(block, axis)
        return x

    mask = grow((torch.rand(2, 1, *small) > 0.3).float()) if ignore else torch.ones(2, 1, *SHAPES[dim])
    if regions:
        target = grow((torch.rand(2, heads, *small) > 0.6).float())
        theirs = torch.cat([target, 1 - mask], 1).bool() if ignore else target.bool()
    else:
        label = grow(torch.randint(0, heads, (2, 1, *small)))
        target = torch.nn.functional.one_hot(label[:, 0], heads).movedim(-1, 1).float()
        theirs = torch.where(mask > 0, label, heads)
    return logits, target, mask, theirs


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_the_example_of_the_docstring_runs():
    result = doctest.testmod(losses)
    assert result.attempted > 0
    assert result.failed == 0


class TestGradients:
    @pytest.mark.parametrize("regions", [False, True])
    @pytest.mark.parametrize("dim", [2, 3])
    def test_cross_entropy_gradcheck(self, dim, regions):
        logits, target, weight = soft_case(dim, 3, regions)
        assert torch.autograd.gradcheck(
            lambda z: weighted_cross_entropy(z, target, weight, regions), logits.requires_grad_(), fast_mode=True
        )

    @pytest.mark.parametrize("batch_dice", [False, True])
    @pytest.mark.parametrize("regions", [False, True])
    @pytest.mark.parametrize("dim", [2, 3])
    def test_dice_gradcheck(self, dim, regions, batch_dice):
        logits, target, weight = soft_case(dim, 3, regions)
        assert torch.autograd.gradcheck(
            lambda z: weighted_soft_dice(z, target, weight, regions, batch_dice),
            logits.requires_grad_(),
            fast_mode=True,
        )

    @pytest.mark.parametrize("regions", [False, True])
    def test_cross_entropy_has_gradient_prediction_minus_target(self, regions):
        logits, target, _ = soft_case(3, 3, regions)
        (gradient,) = torch.autograd.grad(voxel_cross_entropy(logits.requires_grad_(), target, regions).sum(), logits)
        prediction = torch.sigmoid(logits) if regions else torch.softmax(logits, 1)
        torch.testing.assert_close(gradient, prediction - target)

    @pytest.mark.parametrize("dim", [2, 3])
    @pytest.mark.parametrize("regions", [False, True])
    def test_zero_weight_means_zero_gradient(self, dim, regions):
        logits, target, weight = soft_case(dim, 3, regions, torch.float32)
        loss = WeightedDiceCELoss(regions)
        (gradient,) = torch.autograd.grad(loss(logits.requires_grad_(), target, weight), logits)
        dropped = (weight == 0).expand_as(gradient)
        assert dropped.any()
        assert (gradient[dropped] == 0).all()
        assert (gradient[~dropped] != 0).any()

    @pytest.mark.parametrize("regions", [False, True])
    def test_all_weights_zero_gives_a_finite_loss_without_gradient(self, regions):
        logits, target, weight = soft_case(3, 3, regions, torch.float32)
        loss = WeightedDiceCELoss(regions)(logits.requires_grad_(), target, torch.zeros_like(weight))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert weighted_cross_entropy(logits, target, torch.zeros_like(weight), regions) == 0
        assert torch.isfinite(loss)
        assert (gradient == 0).all()


class TestWeights:
    def test_weights_are_normalised(self):
        logits, target, weight = soft_case(3, 3, False)
        torch.testing.assert_close(
            weighted_cross_entropy(logits, target, weight), weighted_cross_entropy(logits, target, 7 * weight)
        )

    @pytest.mark.parametrize("regions", [False, True])
    def test_a_dropped_voxel_leaves_no_trace(self, regions):
        logits, target, weight = soft_case(3, 3, regions, torch.float32)
        loss = WeightedDiceCELoss(regions, output_weights=(0.7, 0.3))
        coarse = torch.nn.functional.avg_pool3d(logits, 2)
        dropped = (weight == 0).expand_as(target)
        changed = torch.where(dropped, 1 - target, target)
        torch.testing.assert_close(loss([logits, coarse], target, weight), loss([logits, coarse], changed, weight))

    def test_whole_weights_count_like_repeated_voxels(self):
        logits, target, _ = soft_case(2, 3, False)
        doubled = torch.ones(2, 1, *SHAPES[2], dtype=torch.float64)
        doubled[..., :3] = 2
        repeated = [torch.cat([x, x[..., :3]], -1) for x in (logits, target)]
        ones = torch.ones(2, 1, 8, 9, dtype=torch.float64)
        torch.testing.assert_close(
            weighted_cross_entropy(logits, target, doubled), weighted_cross_entropy(*repeated, ones)
        )
        for i in range(2):  # one by one: the mean weight of their structure also says how much patches count
            once, again = ([x[i : i + 1] for x in xs] for xs in ((logits, target, doubled), (*repeated, ones)))
            torch.testing.assert_close(weighted_soft_dice(*once), weighted_soft_dice(*again))

    def test_dice_is_one_for_a_perfect_prediction(self):
        target = torch.nn.functional.one_hot(torch.randint(0, 3, (2, 4, 4)), 3).movedim(-1, 1).float()
        torch.testing.assert_close(weighted_soft_dice(100 * target, target, torch.ones(2, 1, 4, 4)), torch.tensor(1.0))

    def test_a_patch_counts_as_much_as_its_weight(self):
        logits, target, weight = soft_case(3, 3, False)
        parts = [weighted_soft_dice(*(t[i : i + 1] for t in (logits, target, weight))) for i in range(len(logits))]
        scale = torch.linspace(0, 1, len(logits)).view(-1, 1, 1, 1, 1)
        dice = weighted_soft_dice(logits, target, scale * weight)
        share = (scale * weight.flatten(1).mean(1).view_as(scale)).flatten()
        expected = sum(p * s for p, s in zip(parts, share, strict=True)) / share.sum()
        torch.testing.assert_close(dice, expected, rtol=1e-4, atol=1e-4)

    def test_gather_is_used_only_with_batch_dice(self):
        logits, target, weight = soft_case(3, 3, False)
        calls = []

        def gather(x):
            calls.append(x.shape)
            return torch.stack([x, x])

        per_case = weighted_soft_dice(logits, target, weight, gather=gather)
        assert not calls
        assert per_case == weighted_soft_dice(logits, target, weight)
        both = weighted_soft_dice(logits, target, weight, batch_dice=True, gather=gather)
        assert calls == [(2,)] * 3
        torch.testing.assert_close(both, weighted_soft_dice(*(torch.cat([x, x]) for x in (logits, target, weight)),
                                                            batch_dice=True))  # fmt: skip


class TestDiceOfWhatIsPresent:
    @pytest.mark.parametrize("regions", [False, True])
    def test_absent_classes_do_not_count(self, regions):
        logits, label, valid, _ = hard_case(2, 4, regions, True)
        label[:, -1] = 0
        if not regions:
            label[:, 0] = 1 - label[:, 1:].sum(1)
        present = slice(0 if regions else 1, -1)
        expected = []
        probabilities = probabilities_of(logits, regions)
        for prediction, right in zip(*(x.movedim(1, 0)[present] for x in (probabilities, label)), strict=True):
            prediction, right = prediction * valid[:, 0], right * valid[:, 0]
            expected.append(2 * (prediction * right).sum() / (prediction + right).sum())
        found = present_soft_dice(probabilities, label, valid, regions)
        torch.testing.assert_close(found, torch.stack(expected).mean())

    def test_equals_the_dice_of_the_loss_where_all_are_present(self):
        logits, label, valid, _ = hard_case(3, 3, False, True)
        dice = weighted_soft_dice(logits, label, valid, batch_dice=True)
        torch.testing.assert_close(present_soft_dice(torch.softmax(logits, 1), label, valid), dice)

    def test_is_nan_without_structure(self):
        label = torch.zeros(1, 3, 4, 4)
        label[:, 0] = 1
        assert present_soft_dice(torch.rand(1, 3, 4, 4), label, torch.ones(1, 1, 4, 4)).isnan()


class TestPooling:
    def test_target_is_averaged_under_the_weight(self):
        target = torch.tensor([[[[0.0, 1.0], [1.0, 1.0]]]])
        weight = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
        coarse, coarse_weight = pool_target(target, weight, (1, 1))
        assert coarse.item() == pytest.approx(0.5)
        assert coarse_weight.item() == pytest.approx(0.5)

    def test_full_resolution_is_returned_as_it_is(self):
        target, weight = torch.rand(1, 3, 4, 4, 4), torch.rand(1, 1, 4, 4, 4)
        assert pool_target(target, weight, (4, 4, 4)) == (target, weight)

    def test_anisotropic_strides(self):
        target, weight = torch.rand(1, 3, 4, 8, 8), torch.rand(1, 1, 4, 8, 8)
        coarse, coarse_weight = pool_target(target, weight, torch.Size((4, 4, 2)))
        assert coarse.shape == (1, 3, 4, 4, 2)
        expected = (target * weight)[0, :, 1, 2:4, 4:8].sum((1, 2)) / weight[0, :, 1, 2:4, 4:8].sum()
        torch.testing.assert_close(coarse[0, :, 1, 1, 1], expected)
        assert coarse_weight.shape == (1, 1, 4, 4, 2)


class TestDeepSupervision:
    def test_outputs_are_weighted(self):
        logits, target, weight = soft_case(3, 3, False, torch.float32)
        coarse = torch.randn(2, 3, 2, 3, 4)
        loss = WeightedDiceCELoss(output_weights=(0.75, 0.25))
        expected = 0.75 * loss.single(logits, target, weight) + 0.25 * loss.single(
            coarse, *pool_target(target, weight, (2, 3, 4))
        )
        torch.testing.assert_close(loss([logits, coarse], target, weight), expected)

    def test_an_output_of_weight_zero_is_not_looked_at(self):
        logits, target, weight = soft_case(3, 3, False, torch.float32)
        poisoned = torch.full((2, 3, 1, 1, 1), float("nan"))
        loss = WeightedDiceCELoss(output_weights=(1.0, 0.0))
        torch.testing.assert_close(loss([logits, poisoned], target, weight), loss.single(logits, target, weight))

    def test_wrong_number_of_outputs(self):
        logits, target, weight = soft_case(2, 3, False, torch.float32)
        with pytest.raises(ValueError, match="gave 1 outputs but the loss has 2 output weights"):
            WeightedDiceCELoss(output_weights=(0.5, 0.5))(logits, target, weight)

    def test_half_precision_logits_are_computed_in_full(self):
        logits, target, weight = soft_case(2, 3, False, torch.float32)
        loss = WeightedDiceCELoss()(logits.half(), target, weight)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, WeightedDiceCELoss()(logits, target, weight), atol=1e-3, rtol=1e-3)


class TestEqualToNNUNet:
    """Hard targets and unit weights: the values of nnU-Net's own losses."""

    @staticmethod
    def theirs(regions: bool, batch_dice: bool, ignore_label: int | None):
        from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
        from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

        dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": regions, "ddp": False}
        if regions:
            return DC_and_BCE_loss(
                {}, dice, use_ignore_label=ignore_label is not None, dice_class=MemoryEfficientSoftDiceLoss
            )
        return DC_and_CE_loss(dice, {}, ignore_label=ignore_label, dice_class=MemoryEfficientSoftDiceLoss)

    @pytest.mark.parametrize("batch_dice", [False, True])
    @pytest.mark.parametrize("ignore", [False, True])
    @pytest.mark.parametrize("dim", [2, 3])
    def test_classes(self, dim, ignore, batch_dice):
        logits, target, mask, label = hard_case(dim, 3, False, ignore)
        theirs = self.theirs(False, batch_dice, 3 if ignore else None)(logits, label)
        torch.testing.assert_close(WeightedDiceCELoss(batch_dice=batch_dice)(logits, target, mask), theirs)

    @pytest.mark.parametrize("batch_dice", [False, True])
    @pytest.mark.parametrize("dim", [2, 3])
    def test_regions(self, dim, batch_dice):
        logits, target, mask, label = hard_case(dim, 2, True, False)
        theirs = self.theirs(True, batch_dice, None)(logits, label)
        torch.testing.assert_close(WeightedDiceCELoss(True, batch_dice)(logits, target, mask), theirs)

    @pytest.mark.parametrize("batch_dice", [False, True])
    def test_regions_with_ignore_up_to_the_number_of_heads(self, batch_dice):
        # With an ignore label nnU-Net sums the binary cross entropies over the heads, without one it takes their mean;
        # we always take the mean.
        logits, target, mask, label = hard_case(3, 2, True, True)
        nnunet = self.theirs(True, batch_dice, 2)
        dice = nnunet.dc(logits, label[:, :-1], loss_mask=mask.bool())
        cross_entropy = (nnunet(logits, label) - dice) / logits.shape[1]
        ours = WeightedDiceCELoss(True, batch_dice)(logits, target, mask)
        torch.testing.assert_close(ours, dice + cross_entropy)

    @pytest.mark.parametrize("regions", [False, True])
    def test_deep_supervision(self, regions):
        from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

        heads = 2 if regions else 3
        logits, target, mask, label = hard_case(3, heads, regions, not regions, block=2)
        coarse = torch.randn(2, heads, *(n // 2 for n in SHAPES[3]))
        weights = np.array([2 / 3, 1 / 3])
        theirs = DeepSupervisionWrapper(self.theirs(regions, False, None if regions else 3), weights)
        expected = theirs([logits, coarse], [label, label[:, :, ::2, ::2, ::2]])
        ours = WeightedDiceCELoss(regions, output_weights=weights)([logits, coarse], target, mask)
        torch.testing.assert_close(ours, expected)
