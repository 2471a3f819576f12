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
    """`load_state_dict` of a state that may come from another device.

    Whether all is one kernel depends on the device of now. Step counters lie on the device then, and else on the CPU: a
    checkpoint that was loaded to a GPU has them there, torch leaves them, and each would make every step wait for it.
    """
    optimizer.load_state_dict(state)
    fused = optimizer.defaults["fused"]
    for group in optimizer.param_groups:
        group["fused"] = fused
    for parameter, values in optimizer.state.items():
        values["step"] = values["step"].to(parameter.device if fused else "cpu")
