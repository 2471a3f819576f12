"""When does a network begin to know wrong labels by heart? From then on its agreement with them is no evidence.

Before, given labels disagree with the second opinion on their errors and on its own mistakes, trusted ones on mistakes
alone. The difference, the *excess* (agreement.CaseAgreement), stays while the network generalises and falls when it
learns the wrong labels one by one. It also falls when a network becomes better, since on trusted cases, which it knows,
there is less to become better at. But then its own mistakes fall by more, so the excess grows as a multiple of them.

Tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE_SHARE = 0.9  # of its highest: below it the multiple has fallen, too


class MemorisationWatch:
    """Follows the excess disagreement of given labels.

    Args:
        horizon: updates that the running means average over, at least 1. Those of the first horizon are left out: a
            network that has just met these labels makes large mistakes that differ from case to case.
        share: it has begun when the mean excess is below this share of its highest (and the multiple has fallen).
        least: excess below which there is nothing to learn by heart (share of the structure's size).
        device: of the means.
    """

    def __init__(self, horizon: int, share: float, least: float = 0.05, device: torch.device | str = "cpu") -> None:
        self.horizon, self.least = horizon, least
        self.shares = torch.tensor([share, RELATIVE_SHARE], device=device)
        self.updates = torch.zeros((), device=device)
        self.mean = torch.zeros(2, device=device)
        self.highest = torch.zeros(2, device=device)

    @torch.no_grad()
    def update(self, excess: Tensor) -> None:
        """Fold in the excess of now, and as a multiple of the network's own mistakes: (2,); nan where not known."""
        self.updates = self.updates + 1
        # In the first horizon the mean is just the last value, and forgets it with the next.
        share = 1 / (self.updates - self.horizon).clamp(1, self.horizon)
        self.mean = torch.where(excess.isfinite(), self.mean + share * (excess - self.mean), self.mean)
        known = self.updates >= 2 * self.horizon  # before, the mean is that of too few
        self.highest = torch.where(known, torch.maximum(self.highest, self.mean), self.highest)

    def is_full(self) -> bool:
        """Whether a horizon has passed. Waits for the device."""
        return bool(self.updates >= self.horizon)

    def has_begun(self) -> bool:
        """Whether the network has begun to know wrong labels by heart. Waits for the device."""
        fallen = (self.mean < self.shares * self.highest).all()
        return bool((self.highest[0] > self.least) & fallen)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "mean": self.mean, "highest": self.highest}

    def load_state_dict(self, state: dict) -> None:
        self.updates = torch.as_tensor(state["updates"], dtype=self.mean.dtype, device=self.mean.device)
        self.mean, self.highest = state["mean"].clone(), state["highest"].clone()
