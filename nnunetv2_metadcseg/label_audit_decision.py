"""Label audit, small structures beside large ones: whether one label of a case speaks for it, and not all together.

All labels together are mostly the largest one: a tumour that was left out of a liver hardly shows in them. But the
worst of several labels is high by chance, so the worst label alone would rank cases worse. So what counts of a label is
how far it lies above what the worst of several right ones reaches. Numbers only. Evidence: docs/label_audit.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

SPREAD = 0.6  # standard deviation of the logarithm of the ratio of right labels


def beyond_chance(ratio: float, labels: int) -> float:
    """A label's ratio by the largest that right labels of a case reach: of n normal deviates about sqrt(2 ln n).

    Args:
        labels: of a case, each of which may be high by chance.
    """
    return ratio * math.exp(-SPREAD * math.sqrt(2 * math.log(labels)))


def decide(ratio: float, labels: Mapping[str, float]) -> tuple[float, str]:
    """The ratio of a case, and the label that it is of; "" where it is that of all labels together.

    Args:
        ratio: of all labels together. labels: ratio of each, beyond chance.
    """
    name = max(labels, key=lambda name: labels[name])
    return (labels[name], name) if labels[name] > max(ratio, 1.0) else (ratio, "")
