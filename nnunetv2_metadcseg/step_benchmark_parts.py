"""Where a training step spends its time: stop watches around methods of a trainer, without touching its code."""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from nnunetv2_metadcseg.fusion import unfused

# In the order of the table. "data": to the device, memory format, one-hot labels. "backward": with clipping and
# optimiser step. "given labels": loss of the second last layer. "teacher": the second opinion and where labels differ
# from it. "meta network": with its inputs. "loss": with the mixed target. Where functions are compiled, "teacher" holds
# the given labels' loss, the influence of the last layer and the move of the centers, "meta network" gamma and target.
PARTS = ("data", "forward", "given labels", "teacher", "influence", "meta network", "DCD", "loss", "backward", "other")

# (path of the owner from the trainer, attribute, part); time inside an inner one counts there only.
METADCSEG_METHODS = (
    ("", "to_device", "data"),
    ("", "encoder", "data"),
    ("", "forward", "forward"),
    ("", "_look", "teacher"),
    ("", "_teacher_opinion", "teacher"),
    ("weighting", "observe", "teacher"),
    ("", "_move_network_direction", "influence"),
    ("", "_network_gain", "influence"),
    ("weighting", "targets", "meta network"),
    ("", "full_loss", "loss"),
    ("", "optimize", "backward"),
)
# Parts of the above, which cannot be told apart where they are compiled together (fusion.py).
INNER_METHODS = (
    ("", "_given_label_loss", "given labels"),
    ("weighting", "_move_centers", "DCD"),
    ("weighting", "_move_direction", "influence"),
    ("weighting.centers", "gamma", "DCD"),
    ("weighting", "_mix", "loss"),
)


class PartTimer:
    """Time per part; a part that starts inside another stops the outer one's watch.

    Args:
        clock: seconds. synchronise: called before the clock is read, so that a device has finished.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, synchronise: Callable[[], None] = lambda: None
    ) -> None:
        self.clock, self.synchronise = clock, synchronise
        self.enabled = False
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def _charge(self) -> None:
        self.synchronise()
        now = self.clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def watched(self, function: Callable, part: str) -> Callable:
        """`function`, timed as `part` while the timer is enabled."""

        @functools.wraps(function, updated=())
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.enabled:
                return function(*args, **kwargs)
            self._charge()
            self._open.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._charge()
                self._open.pop()

        return timed

    def measure(self, step: Callable[[], Any]) -> dict[str, float]:
        """Seconds per part of one step; what no watch covers is "other"."""
        self.seconds.clear()
        self.enabled = True
        try:
            self.watched(step, "other")()
        finally:
            self.enabled = False
        return dict(self.seconds)


def methods_of(trainer: Any) -> tuple[tuple[str, str, str], ...]:
    """What can be timed: inner methods only where they are called as they are."""
    return METADCSEG_METHODS + (INNER_METHODS if trainer.fuse is unfused else ())


def watch(trainer: Any, timer: PartTimer, methods: Sequence[tuple[str, str, str]]) -> None:
    """Puts stop watches around the methods of a trainer that has been initialised and has its loaders.

    Raises:
        AttributeError: the trainer has no such method; METADCSEG_METHODS must follow the trainer's code.
    """
    for path, attribute, part in methods:
        owner = functools.reduce(getattr, path.split(".") if path else (), trainer)
        setattr(owner, attribute, timer.watched(getattr(owner, attribute), part))


def mean_of_medians(per_batch: list[list[float]]) -> float:
    return statistics.fmean(statistics.median(values) for values in per_batch)


def median_parts(per_batch: list[list[dict[str, float]]]) -> dict[str, float]:
    """Seconds per part, as `mean_of_medians`; a part that a step did not need took no time there."""
    names = {name for steps in per_batch for step in steps for name in step}
    return {name: mean_of_medians([[step.get(name, 0.0) for step in steps] for steps in per_batch]) for name in names}
