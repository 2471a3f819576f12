"""Noise types, one per file; `load` finds a class by name without importing the others."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from noise_tools.errors import NoiseToolsError

if TYPE_CHECKING:
    from noise_tools.noise.base import Noise

_CLASSES = {
    "erosion": "Erosion",
    "dilation": "Dilation",
    "affine": "Affine",
    "elastic": "Elastic",
    "markov": "Markov",
    "approximation": "Approximation",
    "jagged": "Jagged",
    "omission": "Omission",
    "addition": "Addition",
    "swap": "Swap",
    "slice_dropout": "SliceDropout",
    "slice_shift": "SliceShift",
    "voxel_flip": "VoxelFlip",
    "mixture": "Mixture",
}
NAMES = tuple(_CLASSES)


def load(name: str) -> type[Noise]:
    """The class of noise type `name`; NoiseToolsError names the known ones if there is none."""
    if name not in _CLASSES:
        raise NoiseToolsError(f"Unknown noise type {name!r}; choose from {', '.join(NAMES)}.")
    return getattr(import_module(f"noise_tools.noise.{name}"), _CLASSES[name])
