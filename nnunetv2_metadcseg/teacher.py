"""Teacher: exponential moving average (EMA) of the student's weights (Mean Teacher, Tarvainen and Valpola 2017)."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


class MeanTeacher:
    """EMA copy of a network, in eval mode, without gradients.

    The momentum at update t (from 0) is 1 - 1 / min(t + 1, horizon): first the plain average of the weights so far,
    later an average over about `horizon` updates, so that a short run is not held back by the initial weights.

    Args:
        network: the student, without DDP or torch.compile around it.
        horizon: length of the average in updates, at least 1.

    Raises:
        ValueError: horizon below 1.
    """

    def __init__(self, network: nn.Module, horizon: int) -> None:
        if horizon < 1:
            raise ValueError(f"The teacher's horizon must be at least 1 update, got {horizon}.")
        self.module = deepcopy(network).eval().requires_grad_(False)
        # Walking through the modules of a large network takes as long as the update itself.
        self._parameters = list(self.module.parameters()), list(network.parameters())
        self._buffers = list(zip(self.module.buffers(), network.buffers(), strict=True))
        self.horizon = horizon
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the student; buffers are copied."""
        share = 1.0 / min(self.updates + 1, self.horizon)
        torch._foreach_lerp_(*self._parameters, share)
        for own, other in self._buffers:
            own.copy_(other)
        self.updates += 1

    def state_dict(self) -> dict:
        return {"weights": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.module.load_state_dict(state["weights"])
        self.updates = state["updates"]
