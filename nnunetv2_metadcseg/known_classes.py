"""Which classes the layer that predicts has found: before it has, it cannot say that a label of the class is wrong.

A class that is found late, one of many small ones, say, would otherwise be lost for good: the second opinion lacks it,
so given labels of it are doubted, and the network is taught on given-label patches that it is not there.

Nothing can vouch for labels of a class that no trusted case holds. What is said of it, right or wrong, is no evidence
of label errors: otherwise every right label of the class would be one.

Tensors only. B batch, K foreground heads, `*S` space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_metadcseg.collective import Collective

FOUND = 0.5  # recall on trusted patches from which on a class counts as known
LEAST_LEFT = 1e-3  # voxels of a class's label, to which steps without it may wear away the counts


class KnownClasses:
    """Running recall of every class on trusted patches.

    Args:
        momentum: share of the old counts kept per update. collective: reductions over DDP ranks.
    """

    def __init__(self, momentum: float = 0.98, collective: Collective | None = None) -> None:
        self.momentum, self.collective = momentum, collective or Collective()
        self.counts: Tensor | None = None  # (K, 2): voxels found, voxels of the label
        self.absent: Tensor | None = None  # (K,) bool, classes that no trusted case holds; None: there are none

    @torch.no_grad()
    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Fold in trusted patches.

        Args:
            predicted, label: (B, K, *S) zeros and ones without background, zero where ignored. B may be zero.
        """
        counts = torch.stack([m.sum((0, *range(2, m.ndim))) for m in (predicted * label, label)], 1)
        counts = self.collective.sum(counts)
        old = torch.zeros_like(counts) if self.counts is None else self.counts
        # Many steps may pass without a rare class. They tell nothing of it, so what little is left of it stays.
        keep = torch.where((counts[:, 1:] > 0) | (old[:, 1:] > LEAST_LEFT), self.momentum, 1.0)
        self.counts = keep * old + (1 - self.momentum) * counts

    def __call__(self) -> Tensor | None:
        """How far each class is known, (K,) in [0, 1]: recall / FOUND, 0 where no trusted patch has held it.

        None before the first update.
        """
        if self.counts is None:
            return None
        return (self.counts[:, 0] / (FOUND * self.counts[:, 1]).clamp_min(1e-6)).clamp_max(1)

    def without_absent(self, said: Tensor, regions: bool) -> Tensor:
        """Probabilities (B, heads, *S) as if there were no absent classes: zero for these, the others share the rest.

        Args:
            regions: sigmoid heads, none of the background: the others stay as they are.
        """
        if self.absent is None:
            return said
        present = self._of_heads(~self.absent, said)
        if regions:
            return said * present
        said = torch.cat([said[:, :1], said[:, 1:] * present], 1)
        return said / said.sum(1, keepdim=True).clamp_min(1e-6)

    def judged(self, label: Tensor, pseudo: Tensor, regions: bool) -> Tensor | float:
        """Zero where a given label or the second opinion names an absent class, else one.

        Args:
            label, pseudo: (B, heads, *S) zeros and ones.

        Returns:
            (B, 1, *S), or (B, K, *S) of regions; 1.0 without absent classes.
        """
        if self.absent is None:
            return 1.0
        named = torch.maximum(label, pseudo)[:, 0 if regions else 1 :] * self._of_heads(self.absent, label)
        return 1 - (named if regions else named.amax(1, keepdim=True))

    @staticmethod
    def _of_heads(mask: Tensor, maps: Tensor) -> Tensor:
        return mask.to(maps).view(1, -1, *[1] * (maps.ndim - 2))
