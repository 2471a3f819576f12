"""When does a network begin to know wrong labels by heart? From then on its agreement with them is no evidence.

Before, given labels disagree with the second opinion on their errors and on its own mistakes, labels of trusted cases
on the mistakes alone. The difference, the *excess*, is what is wrong with the given labels, however good the network is
at the time. It stays while the network generalises and falls when it learns the wrong labels one by one.

Label noise belongs to whole cases, so by then the history of every case tells which labels those are.

Tensors only. N cases.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import t as student
from torch import Tensor

SURE = 0.95  # that a right label does not look doubtful
PRIOR_SPREAD, PRIOR_CASES = 0.2, 4  # of right labels, log(disagreement): as if known from so many cases


class MemorisationWatch:
    """Follows the excess disagreement of given labels.

    Args:
        horizon: updates that the running mean averages over, at least 1.
        share: it has begun when the mean is below this share of its highest.
        least: excess below which there is nothing to learn by heart (share of the structure's size).
        device: of the means.
    """

    def __init__(self, horizon: int, share: float, least: float = 0.05, device: torch.device | str = "cpu") -> None:
        self.horizon, self.share, self.least = horizon, share, least
        self.updates = torch.zeros((), device=device)
        self.mean = torch.zeros((), device=device)
        self.highest = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self, excess: Tensor) -> None:
        """Fold in the excess of now, a scalar; not a number where nothing is known."""
        self.updates = self.updates + 1
        share = 1 / self.updates.clamp_max(self.horizon)
        self.mean = torch.where(excess.isfinite(), self.mean + share * (excess - self.mean), self.mean)
        known = self.updates >= self.horizon  # before, the mean is that of too few
        self.highest = torch.where(known, torch.maximum(self.highest, self.mean), self.highest)

    def has_begun(self) -> bool:
        """Whether the network has begun to know wrong labels by heart. Waits for the device."""
        return bool((self.highest > self.least) & (self.mean < self.share * self.highest))

    def state_dict(self) -> dict:
        return {"updates": self.updates, "mean": self.mean, "highest": self.highest}

    def load_state_dict(self, state: dict) -> None:
        self.updates = torch.as_tensor(state["updates"], dtype=self.mean.dtype, device=self.mean.device)
        self.mean, self.highest = state["mean"].clone(), state["highest"].clone()


def doubted_cases(history: Tensor, trusted: Tensor) -> Tensor:
    """Cases whose labels disagree with the second opinion more than right labels do: (N,) bool on the CPU.

    The measure of a case is the logarithm of its disagreement by that expected of a right label, over all visits. A
    case is doubted where that is above what one more trusted label would exceed in 1 - `SURE` of all times, by
    Student's t distribution. The spread of right labels is that of the trusted ones, together with `PRIOR_CASES` cases
    that have `PRIOR_SPREAD`, since three to ten trusted cases say little about it.

    Args:
        history: (N, 2), disagreeing voxels of every case and those expected (agreement.CaseAgreement.history); a case
            that was never seen is not doubted.
        trusted: (N,) bool; these are never doubted.
    """
    history, trusted = history.cpu().double(), trusted.cpu()
    seen = (history > 0).all(1)
    measure = history.clamp_min(1e-6).log() @ history.new_tensor([1.0, -1.0])
    known = measure[trusted & seen]
    if len(known) == 0:
        return torch.zeros_like(trusted)
    freedom = len(known) - 1 + PRIOR_CASES
    squares = float((known - known.mean()).square().sum()) + PRIOR_CASES * PRIOR_SPREAD**2
    margin = float(student.ppf(SURE, freedom)) * math.sqrt(squares / freedom * (1 + 1 / len(known)))
    return seen & ~trusted & (measure > known.mean() + margin)
