"""Label audit, small structures beside large ones: whether one label of a case speaks for it, and not all together.

All labels together are mostly the largest one: a tumour that was left out of a liver hardly shows in them. But the
rates of small structures vary more among right labels, so the worst label alone would rank cases worse. So a label's
ratio is brought to the scale of the case's: as many spreads of right labels above what is expected. Numbers only.
Evidence: docs/label_audit.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

PRIOR_SPREAD, PRIOR_CASES = 0.2, 4  # of right labels, log(disagreement): as if known from so many cases (doubt.py)
LEAST_RATIO = 0.1  # that right labels agree far better than expected is no spread that could explain wrong ones


def spread(ratios: Sequence[float]) -> float:
    """Standard deviation of the logarithms of the ratios of right labels, with `PRIOR_CASES` of `PRIOR_SPREAD`."""
    logarithms = np.log(np.maximum(ratios, LEAST_RATIO))
    squares = float(((logarithms - logarithms.mean()) ** 2).sum()) if len(logarithms) else 0.0
    return math.sqrt((squares + PRIOR_CASES * PRIOR_SPREAD**2) / (max(len(logarithms) - 1, 0) + PRIOR_CASES))


def on_scale(ratio: float, own: float, whole: float) -> float:
    """A label's ratio, as many spreads above 1 on the case's scale as on its own; never more than it is.

    Args:
        own, whole: spreads of right labels, of this label and of the case.
    """
    return ratio ** min(1.0, whole / own) if ratio > 1 else ratio


def decide(ratio: float, labels: Mapping[str, float]) -> tuple[float, str]:
    """The ratio of a case, and the label that it is of; "" where it is that of all labels together.

    Args:
        ratio: of all labels together. labels: ratio of each on the scale of the case (`on_scale`).
    """
    name = max(labels, key=lambda name: labels[name])
    return (labels[name], name) if labels[name] > max(ratio, 1.0) else (ratio, "")
