"""What is known of a batch's patches, kept together from the trainer down to the meta-weight network.

Tensors only. B patches, C feature channels, K heads, `*S` spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

from torch import Tensor

P = TypeVar("P", bound="PerPatch")


@dataclass(frozen=True)
class PerPatch:
    """Tensors whose first axis is the patch."""

    def __getitem__(self: P, patches: slice) -> P:
        return type(self)(*(getattr(self, field.name)[patches] for field in fields(self)))


@dataclass(frozen=True)
class Patches(PerPatch):
    """Patches as the networks see them, without gradients.

    Attributes:
        features: (B, C, *S), input of the last layer. student: its probabilities (B, K, *S).
        teacher: probabilities of the second opinion (B', K, *S), of the first B' patches.
        label: given or trusted label, zeros and ones (B, K, *S). valid: (B, 1, *S), zero where ignored.
        cases: numbers of the patches' cases, (B,) int64.
    """

    features: Tensor
    student: Tensor
    teacher: Tensor
    label: Tensor
    valid: Tensor
    cases: Tensor
