"""What is known about a disagreeing voxel: the inputs of the meta-weight network.

Only voxels where label and teacher disagree are gathered (a few per cent), so everything that follows is cheap.
Tensors only. B batch, K heads, H decisions per voxel (1 for softmax heads, K for region heads), V disagreeing
decisions, C feature channels, `*S` spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_metadcseg.agreement import NUM_DIRECTIONS, Disagreement, one_hot
from nnunetv2_metadcseg.center_distance import CenterDistance, normalised_entropy
from nnunetv2_metadcseg.patches import Patches

NUM_VOXEL_INPUTS = 10 + NUM_DIRECTIONS
TEACHER_OF_LABEL, TEACHER_OF_PSEUDO = 2, 3  # columns of the inputs: the teacher's probabilities


@dataclass
class Evidence:
    """Disagreeing decisions of a batch.

    Attributes:
        where: index tensors (batch, decision, *spatial), each (V,). features: (V, C). inputs: (V, F).
    """

    where: tuple[Tensor, ...]
    features: Tensor
    inputs: Tensor


def decision_probability(probabilities: Tensor, decision: Tensor, regions: bool) -> Tensor:
    """Probability that `probabilities` (B, K, ...) give to a hard decision (B, K, ...): (B, H, ...)."""
    if regions:
        return probabilities * decision + (1 - probabilities) * (1 - decision)
    return (probabilities * decision).sum(1, keepdim=True)


def at_voxels(tensor: Tensor, where: tuple[Tensor, ...]) -> Tensor:
    """All channels of (B, C, *S) at the voxels of `where`: (V, C)."""
    return tensor.movedim(1, -1)[(where[0], *where[2:])]


def at_decisions(tensor: Tensor, where: tuple[Tensor, ...]) -> Tensor:
    """A map (B, H, *S), or (B, 1, *S) shared by all decisions, at `where`: (V,)."""
    decision = where[1] if tensor.shape[1] > 1 else torch.zeros_like(where[1])
    return tensor[(where[0], decision, *where[2:])]


def collect(
    patches: Patches,
    found: Disagreement,
    where: tuple[Tensor, ...],
    centers: CenterDistance,
    case_rates: Tensor | None,
    regions: bool,
) -> Evidence:
    """Gather the inputs of the meta-weight network at disagreeing decisions.

    Args:
        patches: all with a teacher. found: where their label and teacher differ.
        where: indices of those decisions, each (V,).
        case_rates: disagreement rates of every patch's case (B, D), or None to hide the context.

    Returns:
        `Evidence` with, per decision: student's and teacher's probability of the given label and of the pseudo-label,
        both entropies, the three center distances, their margin, the direction (one-hot) and, with context, the rates
        of the case.
    """
    rows = at_voxels(patches.features, where).float()
    # Everything on rows (V, K) of disagreeing voxels, not on whole maps.
    decisions = [at_voxels(m, where) for m in (patches.label, found.pseudo)]
    columns, entropies = [], []
    for probabilities in (patches.student, patches.teacher):
        of_voxels = at_voxels(probabilities, where)
        columns += [decision_probability(of_voxels, decision, regions) for decision in decisions]
        entropies.append(normalised_entropy(of_voxels, regions))
    if regions:
        columns = [column.gather(1, where[1][:, None]) for column in columns]
    scalars = torch.cat(columns + entropies, 1)
    distances = centers.distances(rows)
    margin = distances[:, 1:2] - distances[:, :1]
    direction = one_hot(at_decisions(found.direction, where)[:, None], NUM_DIRECTIONS).float()
    parts = [scalars, distances, margin, direction]
    if case_rates is not None:
        parts.append(case_rates[where[0]].clamp(0, 2))
    return Evidence(where, rows, torch.cat(parts, 1))
