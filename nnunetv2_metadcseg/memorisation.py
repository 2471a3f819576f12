"""When does a network begin to know wrong labels by heart? From then on its agreement with them is no evidence.

Before, given labels disagree with the second opinion on their errors and on its own mistakes, right ones on the
mistakes alone. The difference, the *excess*, is what is wrong with the given labels, however good the network is at the
time. It stays while the network generalises and falls when it learns the wrong labels one by one. Right labels are
those of trusted cases, or the given ones that agree best (agreement.CaseAgreement.excess); neither measure is enough.

Tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor


class MemorisationWatch:
    """Follows the excess disagreement of given labels, by several measures M. The first is the one that must be known.

    Args:
        horizon: updates that the running means average over, at least 1. Those of the first horizon are left out: a
            network that has just met these labels makes large mistakes that differ from case to case.
        share: it has begun when every mean is below this share of its highest.
        least: excess below which there is nothing to learn by heart, or nothing to be seen of it (share of the
            structure's size).
        measures: M. device: of the means.
    """

    def __init__(
        self,
        horizon: int,
        share: float,
        least: float = 0.05,
        measures: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        self.horizon, self.share, self.least = horizon, share, least
        self.updates = torch.zeros((), device=device)
        self.mean = torch.zeros(measures, device=device)
        self.highest = torch.zeros(measures, device=device)

    @torch.no_grad()
    def update(self, excess: Tensor) -> None:
        """Fold in the excess of now, (M,); not a number where nothing is known."""
        self.updates = self.updates + 1
        begun = self.updates - torch.where(self.updates > self.horizon, self.horizon, 0)  # the mean begins anew
        share = 1 / begun.clamp_max(self.horizon)
        self.mean = torch.where(excess.isfinite(), self.mean + share * (excess - self.mean), self.mean)
        known = self.updates >= 2 * self.horizon  # before, the mean is that of too few
        self.highest = torch.where(known, torch.maximum(self.highest, self.mean), self.highest)

    def is_full(self) -> bool:
        """Whether a horizon has passed. Waits for the device."""
        return bool(self.updates >= self.horizon)

    def has_begun(self) -> bool:
        """Whether the network has begun to know wrong labels by heart. Waits for the device."""
        seen = self.highest > self.least
        fallen = self.mean < self.share * self.highest
        return bool(seen[0] & (fallen | ~seen).all())

    def state_dict(self) -> dict:
        return {"updates": self.updates, "mean": self.mean, "highest": self.highest}

    def load_state_dict(self, state: dict) -> None:
        self.updates = torch.as_tensor(state["updates"], dtype=self.mean.dtype, device=self.mean.device)
        self.mean, self.highest = state["mean"].clone(), state["highest"].clone()
