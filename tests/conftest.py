"""What all tests need: none sees the nnU-Net folders or settings of the machine it runs on."""

from __future__ import annotations

import os


def pytest_configure(config) -> None:
    """Unsets nnU-Net's variables once, before any fixture sets its own; figures need no display."""
    for name in [name for name in os.environ if name.startswith("nnUNet_")]:
        del os.environ[name]
    os.environ["MPLBACKEND"] = "Agg"
