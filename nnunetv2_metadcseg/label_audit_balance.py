"""Label audit, one-sided errors: by how much labels are too large or too small beside right ones, and what is doubted.

The calibration makes predictions of trusted cases as large as their labels on average, and cautiously: one generously
drawn trusted case can hide that a network predicts all others too large. Predictions then lack little of a label that
is too large, and have much that a right label lacks. So every label is compared with the typical trusted one, and where
nearly all that is left goes one way, what goes the other way is taken for the network's mistake. What the trainer saw
of the cases tells as much as a prediction where errors cancel out, and misleads where they go one way. Arrays only.
Evidence: docs/label_audit.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunetv2_metadcseg.label_audit import Disagreement, expected_rate

MOST_DISCOUNT = 0.75  # what goes the other way keeps a quarter: among large labels one may lack a structure
LARGEST = 0.5  # of a case's balance when the side is told: a few wrecked labels must not decide
RECORD_SHARE = 0.5  # of what the trainer saw of a case, beside its prediction: half, where errors cancel out
# So many are worth half of that: a patch tells little, and the first are seen by a network that errs most.
FEW_VISITS = 20
LEAST_RATIO = 1e-3  # a label that agrees wholly has no logarithm
PRIOR_CASES = 2  # balanced ones, beside the trusted: a single trusted case would be measured by itself


@dataclass(frozen=True)
class Record:
    """What the trainer saw of a case before it had learned its label.

    Attributes:
        ratio: voxels where label and second opinion disagreed, by those expected of a right label. visits: patches.
    """

    ratio: float
    visits: float


def mean_record(records: Sequence[Record]) -> Record | None:
    """Of several networks, with the visits of all; None without any."""
    if not records:
        return None
    return Record(float(np.mean([r.ratio for r in records])), sum(r.visits for r in records))


@dataclass(frozen=True)
class Balance:
    """How labels of a group of cases differ from predictions.

    Attributes:
        center: (extra - missing) / size of a right label; not zero where predictions are too large or too small.
        side: 1 where labels are all too large beside that, -1 where all are too small, 0 where errors cancel out.
    """

    center: float = 0.0
    side: float = 0.0

    def rate(self, part: Disagreement) -> float:
        """Confident disagreement per voxel of the structure, beside right labels; 0 where there is no structure.

        `Disagreement.rate` with the balance counted from the center, and less of what goes the other way (by the square
        of the side, which is hardly ever zero by chance).
        """
        if part.size <= 0:
            return 0.0
        both = min(part.extra, part.missing) / part.size  # a shift has as much of one as of the other
        balance = self.error(part)
        large, small = both + max(balance, 0.0), both + max(-balance, 0.0)
        keep_large, keep_small = (1 - MOST_DISCOUNT * max(side, 0.0) ** 2 for side in (-self.side, self.side))
        return keep_large * large + keep_small * small

    def error(self, part: Disagreement) -> float:
        """The balance beside that of right labels. Without a structure, no boundary of it is predicted elsewhere."""
        return _balance(part) - (self.center if part.labelled > 0 else 0.0)


def find_balance(doubtful: Sequence[Disagreement], right: Sequence[Disagreement]) -> Balance:
    """The balance of doubtful labels beside right ones; that of no knowledge if one of the two is missing."""
    right, doubtful = ([part for part in parts if part.size > 0] for parts in (right, doubtful))
    if not right or not doubtful:
        return Balance()
    center = float(np.median([_balance(part) for part in right])) * len(right) / (len(right) + PRIOR_CASES)
    error = np.clip([Balance(center).error(part) for part in doubtful], -LARGEST, LARGEST)
    total = float((error**2).sum())
    return Balance(center, float((error * np.abs(error)).sum()) / total if total > 0 else 0.0)


def _balance(part: Disagreement) -> float:
    return (part.extra - part.missing) / part.size


def with_records(
    ratios: Sequence[float],
    records: Sequence[Record | None],
    trusted: Sequence[bool],
    side: float,
    tell: Sequence[bool] | None = None,
) -> list[float]:
    """Ratios of a group of cases together with what the trainer saw of them before it had learned their labels.

    The geometric mean of both where errors cancel out and a case was seen often; after few visits it counts less. What
    the trainer saw is neither calibrated nor balanced, so where errors go one way it counts less too, down to nothing.

    Args:
        ratios: disagreement by that of right labels. records: of the trainer, None where it did not count.
            trusted: which cases are. side: of the group (`Balance.side`). tell: which cases tell what is expected of
            right labels (`label_audit.telling`); None: all.
    """
    known = np.array([record is not None for record in records])
    if not known.any():
        return list(ratios)
    seen = np.array([record.ratio for record in records if record is not None])
    asked = np.ones(len(seen), bool) if tell is None else np.array(tell)[known]
    asked = asked if asked.any() else ~asked
    seen = seen / expected_rate(seen[asked], np.array(trusted)[known][asked])
    visits = np.array([record.visits for record in records if record is not None])
    share = RECORD_SHARE * (1 - side**2) / (1 + FEW_VISITS / np.maximum(visits, 1))
    both = np.maximum(ratios, LEAST_RATIO)
    both[known] = both[known] ** (1 - share) * np.maximum(seen, LEAST_RATIO) ** share
    return both.tolist()
