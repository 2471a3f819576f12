"""The contract of every noise type.

`sample(rng, label, spacing, severity)` draws parameters (a JSON-serialisable dict), `apply(label, spacing, params)`
turns a label map into a noisy one and is a function of its three arguments only, so a manifest that stores `params`
can be replayed bit for bit. Severity lies in [0, 1]; for one state of `rng` a higher severity draws the same
directions with more strength.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from noise_tools.errors import NoiseToolsError
from noise_tools.geometry import Box, bounding_box, grow_box, typical_radius

Params = dict[str, Any]
Range = tuple[float, float]
LENGTHS: Range = (0.0, 1e6)  # bounds of lengths in mm; more than any image has, and finite


class Pixels(tuple):
    """A range `(low, high)` counted in pixels: the finest voxel edge of a case, so 2 pixels are 1 mm at 3 x 0.5 x 0.5
    mm.

    For settings of published 2D or isotropic work that counts pixels.
    """

    def __str__(self) -> str:
        return f"{self[0]:g}px:{self[1]:g}px"


@dataclass(frozen=True)
class Parameter:
    """One setting of a noise type: a range `low:high`, one of `choices`, or (if `default` is text) free text.

    A `strength` parameter goes from low at severity 0 to high at severity 1; any other is drawn uniformly from its
    range. With `relative` the default range counts typical radii of the structure instead of `unit` (ranges set by
    the user never do).
    """

    name: str
    default: Range | str
    unit: str
    help: str
    strength: bool = False
    relative: bool = False
    choices: tuple[str, ...] = ()
    bounds: Range = (-np.inf, np.inf)


class Noise(ABC):
    """A noise type, set up for the foreground `labels` that it may change.

    Args:
        labels: declared foreground values. Background (0) and these are changed; every other value stays untouched.
        settings: ranges `(low, high)` or choices that replace the defaults of `parameters`.

    Raises:
        NoiseToolsError: a setting that the type does not have, or a value outside its bounds.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]]

    def __init__(self, labels: Sequence[int], settings: Mapping[str, Range | str] | None = None) -> None:
        self.labels = tuple(int(value) for value in labels)
        self.settings = dict(settings or {})
        known = {parameter.name: parameter for parameter in self.parameters}
        for key, value in self.settings.items():
            if key not in known:
                raise NoiseToolsError(
                    f"Noise type {self.name!r} has no parameter {key!r}; choose from {', '.join(known)} "
                    "(see 'noise_tools list')."
                )
            self.settings[key] = value = _as_choice(known[key], value)
            _check_setting(self.name, known[key], value)

    @abstractmethod
    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        """Draws parameters. The number of draws must not depend on severity, so that only strength changes with it.

        Args:
            rng: source of all randomness; if `apply` needs randomness, a seed is drawn here and stored.
            label: integer label map (z, y, x) or (y, x).
            spacing: voxel size in mm, in the order of the axes.
            severity: strength in [0, 1]; the expected Dice with `label` falls as it grows.
        """

    @classmethod
    @abstractmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        """The noise itself, on a crop around the foreground; `apply` restores what must stay."""

    @classmethod
    def _margin(cls, spacing: Sequence[float], params: Params) -> float:
        """How far in mm the noise can reach beyond the foreground's bounding box."""
        return 0.0

    @classmethod
    def apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        """A noisy copy of `label`, same shape and dtype; values other than 0 and `params['labels']` stay."""
        noisy = label.copy()
        changed = cls._on_crop(label, spacing, params)
        if changed is None:
            return noisy
        box, result = changed
        crop = label[box]
        frozen = ~np.isin(crop, [0, *params["labels"]])
        noisy[box] = np.where(frozen, crop, result.astype(label.dtype, copy=False))
        return noisy

    @classmethod
    def _on_crop(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> tuple[Box, np.ndarray] | None:
        """The crop that the noise needs and what it makes of it; None where there is nothing to do."""
        box = cls._box(label, spacing, params)
        return None if box is None else (box, cls._apply(label[box], spacing, params))

    @classmethod
    def _box(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> Box | None:
        box = bounding_box(np.isin(label, params["labels"]))
        return None if box is None else grow_box(box, label.shape, spacing, cls._margin(spacing, params))

    def _start(self, **params: Any) -> Params:
        return {"labels": list(self.labels), **params}

    def _range(self, name: str, label: np.ndarray, spacing: Sequence[float]) -> Range:
        parameter = next(p for p in self.parameters if p.name == name)
        low, high = value = self.settings.get(name, parameter.default)
        scale = 1.0
        if isinstance(value, Pixels):
            scale = min(spacing)
        elif parameter.relative and name not in self.settings:
            scale = typical_radius(label, self.labels, spacing)
        return low * scale, high * scale

    def _strength(self, name: str, label: np.ndarray, spacing: Sequence[float], severity: float) -> float:
        low, high = self._range(name, label, spacing)
        return float(low + severity * (high - low))

    def _uniform(self, name: str, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float]) -> float:
        return float(rng.uniform(*self._range(name, label, spacing)))

    def _choice(self, name: str) -> str:
        return self.settings.get(name, next(p.default for p in self.parameters if p.name == name))

    @staticmethod
    def _seed(rng: np.random.Generator) -> int:
        """A seed to store in the parameters, for randomness that `apply` spreads over voxels."""
        return int(rng.integers(2**32))

    @property
    def sets_strength(self) -> bool:
        """Whether the user gave a range for a strength parameter."""
        return any(parameter.strength and parameter.name in self.settings for parameter in self.parameters)


def _as_choice(parameter: Parameter, value: Range | str) -> Range | str:
    """A number back to text where the parameter is one of several words: an axis may be called 1."""
    if parameter.choices and not isinstance(value, str) and value[0] == value[1]:
        return f"{value[0]:g}"
    return value


def _check_setting(noise: str, parameter: Parameter, value: Range | str) -> None:
    where = f"Parameter {noise}.{parameter.name}"
    if parameter.choices:
        if value not in parameter.choices:
            raise NoiseToolsError(f"{where} is {str(value)!r}; choose from {', '.join(parameter.choices)}.")
        return
    if isinstance(parameter.default, str):
        return
    if isinstance(value, str) or len(value) != 2:
        raise NoiseToolsError(f"{where} is {value!r}; give a number or a range LOW:HIGH in {parameter.unit}.")
    if isinstance(value, Pixels) and parameter.unit != "mm":
        raise NoiseToolsError(
            f"{where} is given in pixels but is no length; give it in {parameter.unit or 'plain numbers'}."
        )
    low, high = value
    if not parameter.bounds[0] <= low <= high <= parameter.bounds[1]:
        raise NoiseToolsError(
            f"{where} is {low:g}:{high:g}; expected LOW <= HIGH within "
            f"[{parameter.bounds[0]:g}, {parameter.bounds[1]:g}] {parameter.unit}."
        )
