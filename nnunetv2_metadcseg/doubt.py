"""Which given labels are doubted, case by case, by what the second opinion said of them on all visits.

Label noise belongs to whole cases. A single visit tells little of a case, and what the network says of it at the end of
a long training may be known by heart; over all visits right and wrong labels lie apart.

Tensors only. N cases.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import t as student
from torch import Tensor

SURE = 0.95  # that a right label does not look doubtful
PRIOR_SPREAD, PRIOR_CASES = 0.2, 4  # of right labels, log(disagreement): as if known from so many cases
LEAST_KEPT = 0.1  # share of the given labels: fewer teach less than all of them with their errors


def doubted_cases(history: Tensor, trusted: Tensor) -> Tensor:
    """Cases whose labels disagree with the second opinion more than right labels do: (N,) bool on the CPU.

    The measure of a case is the logarithm of its disagreement by that expected of a right label, over all visits. A
    case is doubted where that is above what one more trusted label would exceed in 1 - `SURE` of all times, by
    Student's t distribution. The spread of right labels is that of the trusted ones, together with `PRIOR_CASES` cases
    that have `PRIOR_SPREAD`, since three to ten trusted cases say little about it.

    Args:
        history: (N, 2), disagreeing voxels of every case and those expected (agreement.CaseAgreement.history); a case
            that was never seen is not doubted.
        trusted: (N,) bool; these are never doubted.
    """
    history, trusted = history.cpu().double(), trusted.cpu()
    seen = (history > 0).all(1)
    measure = history.clamp_min(1e-6).log() @ history.new_tensor([1.0, -1.0])
    known = measure[trusted & seen]
    if len(known) == 0:
        return torch.zeros_like(trusted)
    freedom = len(known) - 1 + PRIOR_CASES
    squares = float((known - known.mean()).square().sum()) + PRIOR_CASES * PRIOR_SPREAD**2
    margin = float(student.ppf(SURE, freedom)) * math.sqrt(squares / freedom * (1 + 1 / len(known)))
    return seen & ~trusted & (measure > known.mean() + margin)


def few_kept(doubted: Tensor, trusted: Tensor) -> Tensor:
    """Whether hardly any given label is not doubted, a bool: then there are no right ones to hold on to.

    Args:
        doubted, trusted: (N,) bool.
    """
    return (~(doubted | trusted)).sum() < LEAST_KEPT * (~trusted).sum()


def taught_cases(doubted: Tensor, trusted: Tensor, bias: Tensor | float) -> Tensor:
    """How far given labels are learned as they are by the second last layer: (N,), 1 unless they are doubted.

    Doubted ones count `bias`, how one-sided the errors are (given_label_head.LabelBias): where all errors go one way,
    that layer has no say in the second opinion, and must learn them to show it. All count where few are not doubted.

    Args:
        doubted, trusted: (N,) bool. bias: in [0, 1].
    """
    return torch.where(doubted & ~few_kept(doubted, trusted), bias, 1.0)
