"""Voxel-weighted soft-target Dice + cross entropy with deep supervision.

Tensors only: no nnU-Net import. Shapes use B (batch), K (heads), `*S` (any number of spatial axes).
With hard targets and unit weights the values equal nnU-Net's DC_and_CE_loss / DC_and_BCE_loss (see the tests), but for
regions with an ignore label, where nnU-Net sums the binary cross entropy over heads and this takes the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_metadcseg.agreement import overlaps, probabilities_of


def voxel_cross_entropy(logits: Tensor, target: Tensor, regions: bool = False) -> Tensor:
    """Cross entropy of every voxel against a soft target.

    Args:
        logits: (B, K, *S).
        target: (B, K, *S), probabilities; they sum to one over K unless `regions`.
        regions: sigmoid heads (region-based training). The K binary cross entropies are then kept apart.

    Returns:
        (B, 1, *S), or (B, K, *S) for regions. Its gradient in the logits is softmax(z) - t, or sigmoid(z) - t.
    """
    if regions:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return -(target * F.log_softmax(logits, 1)).sum(1, keepdim=True)


def weighted_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor, regions: bool = False) -> Tensor:
    """Mean of `voxel_cross_entropy` under voxel weights.

    Args:
        weight: (B, 1, *S) or (B, K, *S), not negative; zero drops a voxel. The sum of the weights normalises, so that
            the scale of the loss does not depend on how many voxels are dropped.

    Returns:
        A scalar; zero where all weights are zero.
    """
    loss = voxel_cross_entropy(logits, target, regions)
    weight = weight.expand_as(loss)
    return (loss * weight).sum() / weight.sum().clamp_min(1e-6)


def weighted_soft_dice(
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    regions: bool = False,
    batch_dice: bool = False,
    smooth: float = 1e-5,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Soft Dice of soft targets under voxel weights, averaged over heads (background left out unless `regions`).

    Dice = (2 sum w p t + smooth) / (sum w p + sum w t + smooth), as in nnU-Net's MemoryEfficientSoftDiceLoss. Without
    batch_dice a patch counts as much as the mean weight of its structure, predicted or expected, which the ratio itself
    does not feel; ignored voxels (weight zero) left out.

    Args:
        logits, target, weight: as in `weighted_cross_entropy`.
        batch_dice: sum over the batch before dividing (nnU-Net's `batch_dice`).
        gather: for DDP with batch_dice: maps a (K,) tensor to those of all ranks (ranks, K), with gradient. Ranks may
            hold different numbers of patches, so these are added up before.

    Returns:
        A scalar in [0, 1]; the loss is its negative.
    """
    probabilities = probabilities_of(logits, regions)
    if not regions:
        probabilities, target = probabilities[:, 1:], target[:, 1:]
        weight = weight if weight.shape[1] == 1 else weight[:, 1:]
    axes = tuple(range(2, logits.ndim))
    weighted = probabilities * weight
    overlap = (weighted * target).sum(axes)
    predicted, expected = weighted.sum(axes), (target * weight).sum(axes)
    if batch_dice:
        overlap, predicted, expected = overlap.sum(0), predicted.sum(0), expected.sum(0)
        if gather is not None:
            overlap, predicted, expected = (gather(x).sum(0) for x in (overlap, predicted, expected))
    dice = (2 * overlap + smooth) / (predicted + expected + smooth).clamp_min(1e-8)
    if batch_dice:
        return dice.mean()
    structure = structure_under(weight, probabilities.detach(), target) * (weight > 0)
    share = (predicted.detach() + expected).sum(1) / structure.flatten(1).sum(1).clamp_min(1e-6)
    return (dice.mean(1) * share).sum() / share.sum().clamp_min(1e-6)


def structure_under(weight: Tensor, probabilities: Tensor, target: Tensor) -> Tensor:
    """Predicted and expected structure; summed over heads, which spares a map for each, where they share a weight."""
    if weight.shape[1] > 1:
        return probabilities + target
    return probabilities.sum(1, keepdim=True) + target.sum(1, keepdim=True)


def present_soft_dice(probabilities: Tensor, label: Tensor, valid: Tensor, regions: bool = False) -> Tensor:
    """Soft Dice over the batch, averaged over the heads that have structure there; nan where none has.

    A patch holds few of many classes. The Dice of those that it lacks is zero however good the network is.

    Args:
        probabilities, label: (B, K, *S). valid: (B, 1, *S), zero where ignored.
    """
    overlap, predicted, expected = overlaps(probabilities, label, valid, regions).sum(0).unbind(1)
    present = expected > 0
    dice = 2 * overlap / (predicted + expected).clamp_min(1e-8)
    return torch.where(present, dice, 0.0).sum() / present.sum()


def pool_target(target: Tensor, weight: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Average a soft target and its weight to the resolution of a coarser output.

    The target is averaged under the weight, so dropped and ignored voxels leave no trace in it.

    Args:
        target: (B, K, *S). weight: (B, 1, *S) or (B, K, *S). size: spatial size of the output.

    Returns:
        target (B, K, *size) and weight (B, 1 or K, *size).
    """
    if tuple(target.shape[2:]) == tuple(size):
        return target, weight
    pool = F.adaptive_avg_pool3d if len(size) == 3 else F.adaptive_avg_pool2d
    coarse_weight = pool(weight, size)
    coarse_target = pool(target * weight, size) / coarse_weight.clamp_min(1e-6)
    return coarse_target, coarse_weight


class WeightedDiceCELoss(nn.Module):
    """Cross entropy minus soft Dice of soft targets under voxel weights, over all deep-supervision outputs.

    Args:
        regions: sigmoid heads and binary cross entropy.
        batch_dice: nnU-Net's plan entry of that name.
        output_weights: one weight per output, finest first (nnU-Net's deep-supervision weights); None for one output.
        gather: see `weighted_soft_dice`.

    Example:
        >>> loss = WeightedDiceCELoss(output_weights=(1.0,))
        >>> z = torch.zeros(1, 2, 4, 4); t = torch.zeros(1, 2, 4, 4); t[:, 0] = 1
        >>> float(loss([z], t, torch.ones(1, 1, 4, 4))) > 0
        True
    """

    def __init__(
        self,
        regions: bool = False,
        batch_dice: bool = False,
        output_weights: Sequence[float] | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.regions = regions
        self.batch_dice = batch_dice
        self.output_weights = tuple(float(w) for w in output_weights) if output_weights is not None else (1.0,)
        self.gather = gather

    def single(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """The loss of one output; shapes as in `weighted_cross_entropy`."""
        logits = logits.float().contiguous()  # as target and weight; mixed memory formats are slow
        ce = weighted_cross_entropy(logits, target, weight, self.regions)
        dice = weighted_soft_dice(logits, target, weight, self.regions, self.batch_dice, gather=self.gather)
        return ce - dice

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor, weight: Tensor) -> Tensor:
        """Weighted sum over outputs.

        Args:
            outputs: logits, finest first: one tensor (B, K, *S) or a list with coarser ones.
            target: (B, K, *S), weight: (B, 1 or K, *S), both at the finest resolution.

        Raises:
            ValueError: the number of outputs is not that of the output weights.
        """
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        if len(outputs) != len(self.output_weights):
            raise ValueError(
                f"The network gave {len(outputs)} outputs but the loss has {len(self.output_weights)} output weights; "
                "give one weight per deep-supervision output."
            )
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for logits, factor in zip(outputs, self.output_weights, strict=True):
            if factor != 0:
                total = total + factor * self.single(logits, *pool_target(target, weight, logits.shape[2:]))
        return total
