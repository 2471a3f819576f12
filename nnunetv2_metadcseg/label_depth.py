"""How deep inside the given labels their errors lie, where labels are all too large.

What the layer of the given labels says of a trusted patch is what a given label of that patch would look like. Where
labels are all too large it is wrong in a rim of some width and right further inside, and that can be counted.

Tensors only. B batch, H decisions per voxel (1 for softmax heads, K for region heads), `*S` space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_metadcseg.collective import Collective

# Shifts by which masks shrink from one depth to the next; their sums are voxels: 1, 2, 3, 4, 6, 8 and 12 altogether.
STEPS = ((1,), (1,), (1,), (1,), (1, 1), (1, 1), (1, 3))
DEPTHS = len(STEPS) + 1
WRONG, RIGHT = 0, 1
SMOOTHING = 0.02  # share of all voxels that is spread evenly over depths, so that a few at one depth say little
LARGEST_RATIO = 4.0  # logarithm; e^4 = 55


def depths(structure: Tensor) -> Tensor:
    """How many of the STEPS every voxel is away from the border of the structure, zero outside: (B, H, *S) int64.

    Distances are those of boxes (the largest difference of coordinates). The edge of the patch is no border.

    Args:
        structure: (B, H, *S) bool.
    """
    found = torch.zeros_like(structure, dtype=torch.int64)
    for step in STEPS:
        for reach in step:
            for axis in range(2, structure.ndim):
                structure = _eroded(structure, axis, reach)
        found += structure
    return found


def _eroded(mask: Tensor, axis: int, reach: int) -> Tensor:
    """Where a mask (B, H, *S) and its copies shifted by `reach` voxels both ways along an axis are set."""
    rest = mask.shape[axis] - reach
    if rest <= 0:
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
    """

    def __init__(
        self, momentum: float = 0.98, device: torch.device | str = "cpu", collective: Collective | None = None
    ) -> None:
        self.momentum, self.collective = momentum, collective or Collective()
        self.counts = torch.zeros(2, DEPTHS, device=device)  # WRONG and RIGHT

    @torch.no_grad()
    def update(self, said: Tensor, label: Tensor, counted: Tensor) -> None:
        """Fold in trusted patches.

        Args:
            said, label, counted: (B, H, *S) bool: structure by the layer of the given labels, and by the right label;
                which voxels count. B may be zero.
        """
        depth, inside = depths(said), said & counted
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
