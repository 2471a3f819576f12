"""Which cases agree best with an early training: their scores, and the choice of trusted cases among them.

A network that has not yet memorised its labels predicts what most labels say, so it agrees best with right labels.
Plain Dice would prefer cases that happened to be visited late, and classes that are easy. So a case's score is its Dice
beyond that of its class at the time of each visit:

    score_k = n / (n + 0.3) * sum_t w_t (2 I_t - m_k(t) S_t) / sum_t w_t S_t

with overlap I and size S (predicted plus labelled voxels) of class k in a visited patch, m_k(t) the running Dice of the
class over all cases, w_t an exponential memory, and n = sum_t w_t visits, which draws cases that were hardly seen to
the average. The score of a case is the mean over its classes. A class that its label lacks but the network predicts
counts as far as the predictions are of the usual size, so that a few stray voxels do not matter.

Tensors only. B patches, N cases, K classes without background (or regions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nnunetv2_metadcseg.collective import Collective

BEST_SHARE = 1 / 3  # of the cases: one of these may be chosen for a class that it alone holds


class CaseScores:
    """How well every case's label agrees with the predictions made while training, beyond its class at that time.

    Args:
        num_cases: N; the caller numbers the cases. num_classes: K.
        memory: steps after which a visit weighs 1/e, at least 1. The running Dice of the classes, which has far more
            visits to go by, forgets three times as fast, since it must follow a network that is learning.
        collective: sums over DDP ranks, so that all come to the same scores.
    """

    shrinkage = 0.3  # visits

    def __init__(
        self, num_cases: int, num_classes: int, memory: float, device, collective: Collective | None = None
    ) -> None:
        self.keep, self.keep_classes = (math.exp(-1 / max(steps, 1.0)) for steps in (memory, memory / 3))
        self.collective = collective or Collective()
        self.labelled = torch.zeros(num_cases, num_classes, dtype=torch.bool, device=device)
        # Per case and class: Dice beyond the class, times size; size; visits.
        self.cases = torch.zeros(num_cases, num_classes, 3, device=device)
        # Per class: twice the overlap; size; visits.
        self.classes = torch.zeros(num_classes, 3, device=device)

    def update(self, cases: Tensor, overlaps: Tensor) -> None:
        """Count patches: cases (B,) int64, overlaps (B, K, 3) of `agreement.class_overlaps`."""
        sizes = overlaps[..., 1] + overlaps[..., 2]
        columns = torch.stack([2 * overlaps[..., 0], sizes, (sizes > 0).float(), overlaps[..., 2]], 2)
        new = torch.zeros(*self.cases.shape[:2], 4, device=self.cases.device)
        new = self.collective.sum(new.index_add_(0, cases, columns))
        self.labelled |= new[..., 3] > 0
        self.classes = self.keep_classes * self.classes + new[..., :3].sum(0)
        excess = new[..., 0] - self.class_dice() * new[..., 1]
        self.cases = self.keep * self.cases + torch.stack([excess, new[..., 1], new[..., 2]], 2)

    def class_dice(self) -> Tensor:
        """Running Dice of every class over all cases: (K,)."""
        return self.classes[:, 0] / self.classes[:, 1].clamp_min(1)

    def scores(self) -> Tensor:
        """Score of every case (N,); nan where no patch with labelled foreground was seen."""
        excess, sizes, visits = self.cases.unbind(2)
        by_class = excess / sizes.clamp_min(1e-6) * visits / (visits + self.shrinkage)
        usual = visits * self.classes[:, 1] / self.classes[:, 2].clamp_min(1e-6)
        weight = torch.where(self.labelled, 1.0, (sizes / usual.clamp_min(1e-6)).clamp_max(1))
        score = (by_class * weight).sum(1) / weight.sum(1).clamp_min(1e-6)
        return torch.where(self.labelled.any(1), score, torch.nan)

    def state_dict(self) -> dict:
        return {"cases": self.cases, "labelled": self.labelled, "classes": self.classes}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value.clone())


def choose_cases(scores: Sequence[float], labelled: Sequence[Sequence[bool]], count: int) -> list[int]:
    """The `count` best-scored cases, or as many as have a score; every class among them if so few can hold all.

    For every class, rarest first, that no chosen case holds, the best case with it is taken. A class that one case
    alone holds may be a stray voxel of a wrong label, so that case must be of the best third of all. The best of the
    others fill the rest.

    Args:
        scores: of N cases, nan for those that cannot be chosen. labelled: (N, K), which classes a case's label holds.

    Returns:
        Indices, best first.
    """
    ranked = sorted((i for i, score in enumerate(scores) if score == score), key=lambda i: (-scores[i], i))
    holders = [[i for i in ranked if labelled[i][k]] for k in range(len(labelled[0]))]
    good = set(ranked[: math.ceil(len(ranked) * BEST_SHARE)])
    chosen: set[int] = set()
    for cases in sorted(holders, key=len):
        found = len(cases) > 1 or not good.isdisjoint(cases)
        if found and len(chosen) < count and chosen.isdisjoint(cases):
            chosen.add(cases[0])
    chosen.update([i for i in ranked if i not in chosen][: max(0, count - len(chosen))])
    return [i for i in ranked if i in chosen]
