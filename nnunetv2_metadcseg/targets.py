"""Label maps to head targets: one-hot classes or overlapping regions, and the mask of voxels that count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunetv2_metadcseg.agreement import one_hot


class LabelEncoder:
    """Turns integer label maps into per-head targets.

    Args:
        regions: for region-based training one tuple of label values per head; None for softmax training.
        num_heads: number of output heads K.
        ignore_label: value of voxels that must not count, or None.
    """

    def __init__(self, num_heads: int, regions: Sequence[Sequence[int] | int] | None, ignore_label: int | None) -> None:
        self.num_heads = num_heads
        self.regions = None if regions is None else [(r,) if isinstance(r, int) else tuple(r) for r in regions]
        self.ignore_label = ignore_label

    def __call__(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch of label maps.

        Args:
            label: (B, 1, *S), integers.

        Returns:
            target (B, K, *S) float32 of zeros and ones, and valid (B, 1, *S) float32: zero where ignored.
        """
        valid = torch.ones_like(label, dtype=torch.bool) if self.ignore_label is None else label != self.ignore_label
        label = torch.where(valid, label, 0)
        if self.regions is None:
            target = one_hot(label, self.num_heads)
        else:
            target = torch.cat([self._region(label, values) for values in self.regions], 1)
        return target.float(), valid.float()

    @staticmethod
    def _region(label: Tensor, values: Sequence[int]) -> Tensor:
        return torch.isin(label, torch.tensor(values, device=label.device, dtype=label.dtype))
