"""How wrong a label is, in three measures, and the search for the severity that makes it as wrong as asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_STEPS = 16
_GRID = tuple(step / 16 for step in range(1, 16))
_CLOSE_ENOUGH = 0.002  # of the target; stop early
REACHED = 0.05  # relative to the target: how far off a label may be and still count as asked for


@dataclass(frozen=True)
class Found:
    """Result of a search: the severity, the value it gave, and whether that is the target within `REACHED`."""

    severity: float
    value: float
    reached: bool


def label_dice(clean: np.ndarray, noisy: np.ndarray, regions: Sequence[Sequence[int]]) -> list[float | None]:
    """Dice of every region (a label is a region of one value); None where the clean label does not have it.

    Args:
        clean, noisy: integer label maps of equal shape.
        regions: foreground regions as lists of label values.
    """
    scores: list[float | None] = []
    for values in regions:
        a, b = np.isin(clean, values), np.isin(noisy, values)
        size = np.count_nonzero(a)
        scores.append(2 * np.count_nonzero(a & b) / (size + np.count_nonzero(b)) if size else None)
    return scores


def mean_label_dice(clean: np.ndarray, noisy: np.ndarray, regions: Sequence[Sequence[int]]) -> float:
    """Mean of `label_dice` over the regions present in the clean label; 1 if there is none and none was added."""
    present = [score for score in label_dice(clean, noisy, regions) if score is not None]
    if present:
        return float(np.mean(present))
    return float(np.array_equal(clean, noisy))


def mean_label_change(clean: np.ndarray, noisy: np.ndarray, regions: Sequence[Sequence[int]]) -> float:
    """Changed voxels over clean voxels, |A xor B| / |A|: mean over the regions present in the clean label, else 0."""
    shares = []
    for values in regions:
        a, b = np.isin(clean, values), np.isin(noisy, values)
        if a.any():
            shares.append(np.count_nonzero(a ^ b) / np.count_nonzero(a))
    return float(np.mean(shares)) if shares else 0.0


def mean_surface_distance(
    clean: np.ndarray, noisy: np.ndarray, regions: Sequence[Sequence[int]], spacing: Sequence[float]
) -> float:
    """HD95 in mm: mean over the regions present in the clean label; infinite if one of them is gone, 0 without any."""
    from noise_tools.metrics import hd95

    distances = []
    for values in regions:
        a, b = np.isin(clean, values), np.isin(noisy, values)
        if a.any():
            distances.append(hd95(a, b, spacing) if b.any() else np.inf)
    return float(np.mean(distances)) if distances else 0.0


MEASURES = ("label_dice", "surface_distance", "label_change")


def measure(
    name: str, clean: np.ndarray, noisy: np.ndarray, regions: Sequence[Sequence[int]], spacing: Sequence[float]
) -> float:
    """One of `MEASURES`: mean Dice, mean HD95 in mm, or mean changed share, over the regions of the clean label."""
    if name == "surface_distance":
        return mean_surface_distance(clean, noisy, regions, spacing)
    return (mean_label_dice if name == "label_dice" else mean_label_change)(clean, noisy, regions)


@dataclass(frozen=True)
class Target:
    """What to search for: one of `MEASURES` and its value."""

    measure: str
    value: float

    @property
    def rising(self) -> bool:
        """Whether the measure grows with severity."""
        return self.measure != "label_dice"

    @property
    def wants_change(self) -> bool:
        """Whether a label that is as it was misses the target."""
        return self.rising or self.value < 1


@dataclass(frozen=True)
class Trial:
    """What one severity gave: the value of the measure, and whether the label may be the result of a search.

    Of labels that may not, those that are `kept` (some foreground is left) are preferred.
    """

    value: float
    usable: bool
    kept: bool = True


def find_severity(attempt: Callable[[float], Trial], target: float, rising: bool = False) -> Found:
    """Bisects severity in [0, 1] until `attempt(severity)` gives `target`; the closest usable value seen wins.

    Where that is not the target, a grid is tried, too, since not every noise does more with more strength.
    Only if nothing is usable anywhere, the closest of the others is taken, of those with foreground if there are any.

    Args:
        attempt: value of a severity; falls with it (Dice), or rises (surface distance) if `rising`.
        target: the value asked for. If nothing reaches it, the closest comes back as not reached.
    """
    seen = _bisect(attempt, target, rising)
    found = _closest([one for one in seen if one[1].usable], target, rising)
    if found and found.reached:
        return found
    # Bisection takes for granted that more strength does more; of some noise a lesser one comes nearer.
    tried = {severity for severity, _ in seen}
    grid = [(severity, attempt(severity)) for severity in _GRID if severity not in tried]
    other = _closest([one for one in grid if one[1].usable], target, rising)
    if other and (found is None or abs(other.value - target) < abs(found.value - target)):
        found = other
    return found or _closest([one for one in seen if one[1].kept] or seen, target, rising)


def _closest(tried: Sequence[tuple[float, Trial]], target: float, rising: bool) -> Found | None:
    """The trial closest to the target, the later one of equals; None if there is none."""
    if not tried:
        return None
    severity, best = min(reversed(tried), key=lambda one: abs(one[1].value - target))
    return Found(severity, best.value, reached=abs(best.value - target) <= _tolerance(target, rising))


def _bisect(attempt: Callable[[float], Trial], target: float, rising: bool) -> list[tuple[float, Trial]]:
    """Severities tried, full strength first, with what they gave."""
    sign = -1.0 if rising else 1.0
    low, high = 0.0, 1.0
    seen = [(high, attempt(high))]
    if sign * (seen[0][1].value - target) > 0:
        return seen
    for _ in range(_STEPS):
        middle = (low + high) / 2
        trial = attempt(middle)
        seen.append((middle, trial))
        if trial.usable and abs(trial.value - target) <= _CLOSE_ENOUGH * target:
            break
        if sign * (trial.value - target) > 0:
            low = middle
        else:
            high = middle
    return seen


def _tolerance(target: float, rising: bool) -> float:
    """`REACHED`, or less for a Dice near 1: a label that did not change (Dice 1) has not reached what was asked."""
    return REACHED * target if rising else min(REACHED * target, (1 - target) / 2)
