"""Loading an optimiser's state as training left it."""

from __future__ import annotations

import torch


def load_adam(optimizer: torch.optim.Adam, state: dict) -> None:
    """`load_state_dict`, with the step counters back on the CPU.

    A checkpoint that was loaded to a GPU has them there, torch leaves them, and each would make every step wait for it.
    """
    optimizer.load_state_dict(state)
    for values in optimizer.state.values():
        values["step"] = values["step"].cpu()
