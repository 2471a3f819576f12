"""A second last layer that learns the given labels as they are, right or wrong.

All images teach the shared features then, also those whose labels are not believed, while the last layer that predicts
is kept free of their errors. What the second layer says of trusted patches shows how one-sided those errors are. It
costs one 1x1 layer in training. The network that predicts afterwards is nnU-Net's: as far as errors cancel out, this
layer becomes part of its last one (opinion.py).

Tensors only. B batch, C features, K heads, `*S` space.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from nnunetv2_metadcseg.collective import Collective
from nnunetv2_metadcseg.optimizer_state import adam, load_adam

SMALL_BALANCE = 0.1  # of the labels' size: half believed to be one-sided


def per_voxel(layer: nn.Linear, features: Tensor) -> Tensor:
    """A linear layer at every voxel: (B, K, *S) of features (B, C, *S)."""
    # One matrix product: half the time of a 1x1 convolution on the CPU, where the loss wants whole maps of a class.
    return (layer.weight @ features.flatten(2) + layer.bias[:, None]).unflatten(2, features.shape[2:])


class GivenLabelHead:
    """A linear layer per voxel with an optimiser of its own.

    Args:
        features: C. heads: K. learning_rate: of Adam.
        device: where it lives. collective: reductions over DDP ranks, which know nothing of this layer.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        learning_rate: float = 1e-2,
        device: torch.device | str = "cpu",
        collective: Collective | None = None,
    ) -> None:
        self.collective = collective or Collective()
        self.layer = nn.Linear(features, heads).to(device)
        self.collective.start_alike(self.layer)
        self.learning_rate = learning_rate
        self.optimizer = adam(self.layer.parameters(), learning_rate)

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (B, K, *S) of features (B, C, *S)."""
        return per_voxel(self.layer, features)

    def step(self, rate: float = 1.0, scaler: GradScaler | None = None) -> None:
        """Optimiser step after the backward pass.

        Args:
            rate: share of the learning rate used now.
            scaler: nnU-Net's gradient scaler: leaves out a step that overflowed, and then scales less.
        """
        for parameter in self.layer.parameters():
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.collective.mean(own)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.learning_rate
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.unscale_(self.optimizer)
            scaler.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return {"layer": self.layer.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.layer.load_state_dict(state["layer"])
        load_adam(self.optimizer, state["optimizer"])


class LabelBias:
    """How one-sided the errors of the given labels are.

    Labels that are as often too small as too large cancel out in what a network learns from them; labels that are all
    too large do not. The given-label head never sees a trusted label, so what it has too much or too little on trusted
    patches, where the layer that predicts is right, is the error that the given labels have in common.

    Args:
        momentum: share of the old counts kept per update with a trusted patch. device: of the counts.
        collective: reductions over DDP ranks.
    """

    def __init__(
        self,
        momentum: float = 0.98,
        device: torch.device | str = "cpu",
        collective: Collective | None = None,
    ) -> None:
        self.momentum, self.device, self.collective = momentum, device, collective or Collective()
        self.counts: Tensor | None = None  # (2, K, 3), see set_counts
        self._sides = torch.ones(2, device=device)

    @torch.no_grad()
    def update(self, said: Tensor, decided: Tensor, label: Tensor, right: Tensor) -> None:
        """Fold in trusted patches, all maps without background; B may be zero.

        Args:
            said, decided: (B, K, *S) probabilities of the given-label head, and its decision (zeros and ones).
            label: (B, K, *S) zeros and ones, the right label; zero where ignored.
            right: (B, K, *S) zeros and ones, where errors count: where not ignored, and the layer that predicts is
                right, since what both layers get wrong is the network's own error.
        """
        counts = self.collective.sum(_errors((decided, said), label, right))
        old = torch.zeros_like(counts) if self.counts is None else self.counts
        keep = torch.where(counts.sum() > 0, self.momentum, 1.0)  # batches without a trusted patch tell nothing
        self.set_counts(keep * old + (1 - self.momentum) * counts)

    def set_counts(self, counts: Tensor | None) -> None:
        """Replace the counts, by decisions and by probabilities; None: nothing is known.

        Args:
            counts: (2, K, 3) too much, too little, size of the label; (K, 3): the same for both.
        """
        if counts is not None and counts.ndim == 2:  # checkpoints before 2026-11-29 i have those of decisions only
            counts = counts.expand(2, -1, -1)
        self.counts = counts
        self._sides = torch.ones(2, device=self.device) if counts is None else sides_of(counts).amax(0)

    def sides(self) -> Tensor:
        """How far labels are all too large, and all too small: (2,), each in [0, 1].

        Sums over classes of what they have too much, or too little, on balance, divided by all errors; times
        x^2 / (x^2 + SMALL_BALANCE^2) with x the balance as a share of the labels' size, since few errors may well be
        one-sided by chance and do little harm. Each is the larger of that by decisions and that by probabilities. Both
        are ones before the first update: nothing is known.
        """
        return self._sides

    def __call__(self) -> Tensor:
        """Both sides together, a scalar: 0 where errors cancel, 1 where all errors of a class go one way."""
        return self.sides().sum().clamp_max(1)


def _errors(maps: Iterable[Tensor], label: Tensor, right: Tensor) -> Tensor:
    """What each map has too much and too little where it counts, and the size of the label: (maps, K, 3).

    Args:
        maps, label, right: (B, K, *S).
    """
    axes = (0, *range(2, label.ndim))
    size, inside = label.sum(axes), (label * right).sum(axes)
    errors = []
    for said in maps:
        counted = said * right  # in place from here on: a map for every class is large
        everywhere, overlap = counted.sum(axes), counted.mul_(label).sum(axes)
        too_much, too_little = ((x - overlap).clamp_min(0) for x in (everywhere, inside))  # rounding may go below
        errors.append(torch.stack([too_much, too_little, size], 1))
    return torch.stack(errors)


def sides_of(counts: Tensor) -> Tensor:
    """`LabelBias.sides` (..., 2) of counts (..., K, 3)."""
    balance = counts[..., 0] - counts[..., 1]
    sides = torch.stack([balance.clamp_min(0).sum(-1), (-balance).clamp_min(0).sum(-1)], -1)
    share = (sides.sum(-1) / counts[..., 2].sum(-1).clamp_min(1e-6)).square()
    believed = share / (share + SMALL_BALANCE**2) / counts[..., :2].sum((-2, -1)).clamp_min(1e-6)
    return sides * believed[..., None]
