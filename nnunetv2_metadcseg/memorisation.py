"""When does a network begin to know wrong labels by heart? From then on its agreement with them is no evidence.

Before, given labels disagree with the second opinion on their errors and on its own mistakes, trusted ones on mistakes
alone. The difference, the *excess* (agreement.CaseAgreement), stays while the network generalises and falls when it
learns the wrong labels one by one. It also falls when a network becomes better, since on trusted cases, which it knows,
there is less to become better at. But then its own mistakes fall by more, so the excess grows as a multiple of them.

Tensors only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RELATIVE_SHARE = 0.9  # of its highest: below it the multiple has fallen, too
APART = 2  # horizons between the means whose spread is measured: 1 / e**2 of a mean is still in the next one
BEND_VARIANCE = 6 - 8 / math.e**2 + 2 / math.e**4  # of their second differences, by their own variance
PRIOR_SPREAD, PRIOR_BENDS = 0.03, 4  # of the means, as a share of the highest: as if known from so many differences


class MemorisationWatch:
    """Follows the excess disagreement of given labels.

    A long training with few cases takes hundreds of such means, so the lowest is far below the highest by chance alone.
    Their spread is measured by second differences, which steady falls and rises do not change.

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
        self.last = torch.zeros(2, 2, device=device)  # the two means before, the later one first
        self.squares = torch.zeros(2, device=device)  # sum of squared second differences

    @torch.no_grad()
    def update(self, excess: Tensor) -> None:
        """Fold in the excess of now, and as a multiple of the network's own mistakes: (2,); nan where not known."""
        self.updates = self.updates + 1
        # In the first horizon the mean is just the last value, and forgets it with the next.
        share = 1 / (self.updates - self.horizon).clamp(1, self.horizon)
        self.mean = torch.where(excess.isfinite(), self.mean + share * (excess - self.mean), self.mean)
        known = self.updates >= 2 * self.horizon  # before, the mean is that of too few
        self.highest = torch.where(known, torch.maximum(self.highest, self.mean), self.highest)
        self._note_spread()

    def _note_spread(self) -> None:
        number = self.updates / (APART * self.horizon)
        now = (number >= 1) & (number == number.round())
        bend = self.mean - 2 * self.last[0] + self.last[1]
        self.squares = torch.where(now & (number >= 3), self.squares + bend.square(), self.squares)
        self.last = torch.where(now, torch.stack([self.mean, self.last[0]]), self.last)

    def spread(self) -> Tensor:
        """Standard deviation of the means by chance: (2,)."""
        bends = (torch.floor(self.updates / (APART * self.horizon)) - 2).clamp_min(0)
        supposed = PRIOR_BENDS * (PRIOR_SPREAD * self.highest).square()
        return ((self.squares / BEND_VARIANCE + supposed) / (bends + PRIOR_BENDS)).sqrt()

    def chance(self) -> Tensor:
        """How far below the highest of the means so far the last one may be by chance: (2,)."""
        means = (self.updates / self.horizon).clamp_min(1)
        return (2 * (2 * means.log()).sqrt() + 2) * self.spread()  # the range of so many normal deviates, and more

    def is_full(self) -> bool:
        """Whether a horizon has passed. Waits for the device."""
        return bool(self.updates >= self.horizon)

    def has_begun(self) -> bool:
        """Whether the network has begun to know wrong labels by heart. Waits for the device."""
        fallen = (self.mean < torch.minimum(self.shares * self.highest, self.highest - self.chance())).all()
        return bool((self.highest[0] > self.least) & fallen)

    def state_dict(self) -> dict:
        names = ("updates", "mean", "highest", "last", "squares")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        self.updates = torch.as_tensor(state["updates"], dtype=self.mean.dtype, device=self.mean.device)
        self.mean, self.highest = state["mean"].clone(), state["highest"].clone()
        # Checkpoints before 2026-12-01 have none: as if the means had not varied so far.
        self.last = state.get("last", self.mean.repeat(2, 1)).clone()
        self.squares = state.get("squares", self.squares).clone()
