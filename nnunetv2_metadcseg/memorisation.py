"""When does a network begin to know wrong labels by heart? From then on its agreement with them is no evidence.

Before, given labels disagree with the second opinion on their errors and on its own mistakes, labels of trusted cases
on the mistakes alone. The difference, the *excess*, is what is wrong with the given labels, however good the network is
at the time. It stays while the network generalises and falls when it learns the wrong labels one by one.

Tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor


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

    def is_full(self) -> bool:
        """Whether the mean is that of a whole horizon. Waits for the device."""
        return bool(self.updates >= self.horizon)

    def has_begun(self) -> bool:
        """Whether the network has begun to know wrong labels by heart. Waits for the device."""
        return bool((self.highest > self.least) & (self.mean < self.share * self.highest))

    def state_dict(self) -> dict:
        return {"updates": self.updates, "mean": self.mean, "highest": self.highest}

    def load_state_dict(self, state: dict) -> None:
        self.updates = torch.as_tensor(state["updates"], dtype=self.mean.dtype, device=self.mean.device)
        self.mean, self.highest = state["mean"].clone(), state["highest"].clone()
