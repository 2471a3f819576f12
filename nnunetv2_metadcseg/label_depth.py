"""How deep inside the given labels their errors lie, where labels are all too large.

What the layer of the given labels says of a trusted patch is what a given label of that patch would look like. Where
labels are all too large it is wrong in a rim of some width and right further inside, and that can be counted.

Tensors only. B batch, H decisions per voxel (1 for softmax heads, K for region heads), `*S` space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunetv2_metadcseg.collective import Collective

BOUNDS = (1, 2, 3, 4, 6, 8, 12)  # voxels from the border at most, one for each depth but the last
DEPTHS = len(BOUNDS) + 1
WRONG, RIGHT = 0, 1
SMOOTHING = 0.02  # share of all voxels that is spread evenly over depths, so that a few at one depth say little
LARGEST_RATIO = 4.0  # logarithm; e^4 = 55


def depths(structure: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """How many of the BOUNDS every voxel's distance to the border of the structure exceeds: (B, H, *S) int64.

    Distances are those of boxes (the largest difference of coordinates) in voxels of the finest axis, rounded along the
    others. Zero outside; the edge of the patch is no border.

    Args:
        structure: (B, H, *S) bool. spacing: of voxels, per axis of S, in any unit; None: all alike.
    """
    found = torch.zeros_like(structure, dtype=torch.int64)
    ratios = [1.0] * (structure.ndim - 2) if spacing is None else [s / min(spacing) for s in spacing]
    for inner, bound in zip((0, *BOUNDS), BOUNDS, strict=False):
        for axis, ratio in enumerate(ratios, start=2):
            structure = _eroded(structure, axis, round(bound / ratio) - round(inner / ratio))
        found += structure
    return found


def _eroded(mask: Tensor, axis: int, reach: int) -> Tensor:
    """Where a mask (B, H, *S) and its copies shifted by `reach` voxels both ways along an axis are set.

    An erosion where the mask was eroded by `reach` - 1 before, or more: so BOUNDS may not grow faster.
    """
    rest = mask.shape[axis] - reach
    if reach == 0 or rest <= 0:
        return mask
    out = mask.clone()
    out.narrow(axis, reach, rest).logical_and_(mask.narrow(axis, 0, rest))
    out.narrow(axis, 0, rest).logical_and_(mask.narrow(axis, reach, rest))
    return out


class LabelDepth:
    """Right and wrong voxels of the structure in given labels, by their depth.

    Args:
        momentum: share of the old counts kept per update. device: of the counts.
        collective: reductions over DDP ranks.
        spacing: of voxels, per axis of S; None: all alike.
    """

    def __init__(
        self,
        momentum: float = 0.98,
        device: torch.device | str = "cpu",
        collective: Collective | None = None,
        spacing: Sequence[float] | None = None,
    ) -> None:
        self.momentum, self.collective, self.spacing = momentum, collective or Collective(), spacing
        self.counts = torch.zeros(2, DEPTHS, device=device)  # WRONG and RIGHT

    def of(self, structure: Tensor) -> Tensor:
        """`depths` of a mask."""
        return depths(structure, self.spacing)

    @torch.no_grad()
    def update(self, said: Tensor, label: Tensor, counted: Tensor) -> None:
        """Fold in trusted patches.

        Args:
            said, label, counted: (B, H, *S) bool: structure by the layer of the given labels, and by the right label;
                which voxels count. B may be zero.
        """
        depth, inside = self.of(said), said & counted
        groups = torch.stack([inside & ~label, inside & label])
        counts = torch.stack([(groups & (depth == d)).flatten(1).sum(1) for d in range(DEPTHS)], 1).float()
        self.counts = self.momentum * self.counts + (1 - self.momentum) * self.collective.sum(counts)

    def log_ratio(self) -> Tensor:
        """Logarithm of how much more often right voxels have a depth than wrong ones: (DEPTHS,).

        It is what the depth adds to the log odds that a label is right where it has structure. Zero at depths that were
        not seen, and as long as only right or only wrong voxels were.
        """
        totals = self.counts.sum(1, keepdim=True)
        share = (self.counts + SMOOTHING / DEPTHS * totals).clamp_min(1e-12) / totals.clamp_min(1e-12)
        ratio = (share[RIGHT] / share[WRONG]).log().clamp(-LARGEST_RATIO, LARGEST_RATIO)
        return torch.where((totals > 0).all() & (self.counts.sum(0) > 0), ratio, 0.0)
