"""Label audit, small structures beside large ones: whether one label of a case speaks for it, and not all together.

All labels together are mostly the largest one: a tumour that was left out of a liver hardly shows in them. But the
rates of small structures vary more among right labels, and the worst of several is high by chance, so the worst label
alone would rank cases worse. So what counts of a label is by how many spreads of right labels it lies above what the
worst of several right ones reaches, brought to the scale of the case's own ratio. Numbers only.
Evidence: docs/label_audit.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

PRIOR_SPREAD, PRIOR_CASES = 0.2, 4  # of right labels, log(disagreement): as if known from so many cases (doubt.py)
SURE = 0.75  # that a case with right labels is not decided by one of them
LEAST_RATIO = 0.1  # that right labels agree far better than expected is no spread that could explain wrong ones


def spread(ratios: Sequence[float]) -> float:
    """Standard deviation of the logarithms of the ratios of right labels, with `PRIOR_CASES` of `PRIOR_SPREAD`."""
    logarithms = np.log(np.maximum(ratios, LEAST_RATIO))
    squares = float(((logarithms - logarithms.mean()) ** 2).sum()) if len(logarithms) else 0.0
    return math.sqrt((squares + PRIOR_CASES * PRIOR_SPREAD**2) / (max(len(logarithms) - 1, 0) + PRIOR_CASES))


def lower_spread(ratios: Sequence[float]) -> float:
    """The same from right and wrong labels: wrong ones lie above the median, so what is below tells of right ones.

    From the median to where one in six of a normal distribution is smaller.
    """
    if len(ratios) == 0:
        return 0.0
    low, middle = np.quantile(np.log(np.maximum(ratios, LEAST_RATIO)), (NormalDist().cdf(-1), 0.5))
    return float(middle - low)


def excess(ratio: float, own: float, labels: int) -> float:
    """How many spreads a label's ratio lies above what no right label of a case reaches (`SURE`); 0 where it does not.

    Args:
        own: spread of right labels of its kind. labels: of a case, each of which may be high by chance.
    """
    if ratio <= 1:
        return 0.0
    return max(0.0, math.log(ratio) / own - NormalDist().inv_cdf(SURE ** (1 / labels)))


def ratio_of(spreads: float, scale: float) -> float:
    """The ratio that is so many spreads above 1; 0, which decides nothing, where it is not."""
    return math.exp(spreads * scale) if spreads > 0 else 0.0


def decide(ratio: float, labels: Mapping[str, float]) -> tuple[float, str]:
    """The ratio of a case, and the label that it is of; "" where it is that of all labels together.

    Args:
        ratio: of all labels together. labels: ratio of each, beyond chance and on the scale of the case.
    """
    name = max(labels, key=lambda name: labels[name])
    return (labels[name], name) if labels[name] > ratio else (ratio, "")
