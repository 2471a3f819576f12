"""The optimiser of the small parts that nnU-Net's does not know."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def adam(parameters: Iterable[nn.Parameter], learning_rate: float, **settings: float) -> torch.optim.Adam:
    """Adam; on CUDA one kernel for all parameters, which also leaves out a step that overflowed without asking."""
    parameters = list(parameters)
    return torch.optim.Adam(parameters, learning_rate, fused=parameters[0].is_cuda, **settings)


def load_adam(optimizer: torch.optim.Adam, state: dict) -> None:
    """`load_state_dict`, with the step counters back on the CPU, where a fused Adam does not want them on the device.

    A checkpoint that was loaded to a GPU has them there, torch leaves them, and each would make every step wait for it.
    """
    optimizer.load_state_dict(state)
    if optimizer.defaults["fused"]:
        return
    for values in optimizer.state.values():
        values["step"] = values["step"].cpu()
