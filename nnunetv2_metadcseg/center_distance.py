"""Dynamic Center Distance (DCD): feature distances to foreground, background and boundary centers.

The paper (arXiv 2511.18894) states that pixels are weighted by feature distance to these centers; the equations here
are this project's (docs/method.md). Tensors only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_MEMBERSHIP = 0.1  # of the best voxel, for a region to be in the batch at all


def normalised_entropy(probabilities: Tensor, regions: bool = False) -> Tensor:
    """Entropy of every voxel divided by its maximum: (B, K, ...) -> (B, 1, ...) in [0, 1].

    For region heads the largest of the K binary entropies: a voxel is a boundary voxel if it is one for any region.
    """
    p = probabilities.clamp(1e-6, 1 - 1e-6)
    if regions:
        return (-(p * p.log() + (1 - p) * (1 - p).log()) / math.log(2)).amax(1, keepdim=True)
    return -p.log().mul_(p).sum(1, keepdim=True) / math.log(max(2, p.shape[1]))


def region_weights(probabilities: Tensor, regions: bool = False) -> Tensor:
    """Soft membership of every voxel in foreground (one per class or region), background and boundary, in this order.

    Args:
        probabilities: (B, K, *S).

    Returns:
        (B, R, *S); R = K + 1 for softmax heads (K - 1 foreground classes), K + 2 for region heads.
    """
    entropy = normalised_entropy(probabilities, regions)
    if regions:
        foreground, background = probabilities, 1 - probabilities.amax(1, keepdim=True)
    else:
        foreground, background = probabilities[:, 1:], probabilities[:, :1]
    return torch.cat([foreground * (1 - entropy), background * (1 - entropy), entropy], 1)


def length(features: Tensor) -> Tensor:
    """Euclidean length of every voxel's features (B, C, V), never zero: (B, 1, V)."""
    # Not linalg.vector_norm: along this axis of contiguous features it took 18.6 ms on one core, this 0.4.
    return features.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)


class CenterDistance:
    """Centers kept as an exponential moving average over iterations, distances and weights from them.

    Args:
        momentum: share of the old center kept per update, in [0, 1).
        temperature: tau of the boundary affinity, positive.
        strength: lambda of the weight gamma = 1 + lambda q, not negative.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(self, momentum: float = 0.9, temperature: float = 0.1, strength: float = 1.0) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"The center momentum must be in [0, 1), got {momentum}.")
        if temperature <= 0 or strength < 0:
            raise ValueError(f"Expected temperature > 0 and strength >= 0, got {temperature} and {strength}.")
        self.momentum, self.temperature, self.strength = momentum, temperature, strength
        self.centers: Tensor | None = None  # (R, C)
        self.seen: Tensor | None = None  # (R,) bool: the center has been set

    @staticmethod
    def sums(features: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
        """Weighted sums of unit features, and their weights: (R, C + 1); add over DDP ranks before `update`.

        Zero for a region to which no voxel belongs by LEAST_MEMBERSHIP: probabilities are never zero, so a class that
        the patches lack would else drift to the features of what they hold. Zero, too, where they are not finite.

        Args:
            features: (B, C, *S). weights: (B, R, *S). valid: (B, 1, *S), zero where ignored.
        """
        # The weights take the features' length, so that no normalised copy of the features is made.
        features, weights = features.float().flatten(2), (weights * valid).flatten(2)
        # Not bmm: on CUDA it is thought not to divide so long a sum over the processors, as the matrix product does.
        products = (w @ h.T for w, h in zip(weights / length(features), features, strict=True))
        total = sum(products, weights.new_zeros(weights.shape[1], features.shape[1]))
        sums = torch.cat([total, weights.sum((0, 2))[:, None]], 1)
        # Chosen, not multiplied: half precision may overflow, and one voxel that is no number would stay for good.
        held = (weights.amax((0, 2)) >= LEAST_MEMBERSHIP) & sums.isfinite().all(1)
        return torch.where(held[:, None], sums, 0.0)

    def update(self, sums: Tensor) -> None:
        """Move the centers towards the batch's means; a region with no voxel in the batch keeps its old center."""
        mass = sums[:, -1:]
        present = mass[:, 0] > 1e-3
        mean = sums[:, :-1] / mass.clamp_min(1e-6)
        if self.centers is None:
            self.centers, self.seen = torch.where(present[:, None], mean, 0.0), present
            return
        rate = torch.where(self.seen, 1 - self.momentum, 1.0)[:, None]
        self.centers = torch.where(present[:, None], self.centers + rate * (mean - self.centers), self.centers)
        self.seen = self.seen | present

    def distances(self, features: Tensor) -> Tensor:
        """Distances to [nearest foreground center, background, boundary]: features (V, C) -> (V, 3).

        ||h - c||^2 = 1 - 2 <h, c> + ||c||^2 for unit h, by one matrix product. Centers are means of unit vectors and so
        shorter than one; they are normalised here, which gives sqrt(2 - 2 <h, c>), in [0, 2].

        Raises:
            RuntimeError: before the first update.
        """
        return self._distances(features.float().T[None])[0].T

    def _distances(self, features: Tensor) -> Tensor:
        """As `distances`, of features (B, C, V): (B, 3, V), where reductions over centers run along whole rows."""
        if self.centers is None:
            raise RuntimeError("The centers are empty; call `update` first.")
        centers = torch.nn.functional.normalize(self.centers, dim=1)
        product = torch.matmul(centers, features)
        # A center that no voxel has ever defined must attract nobody. In place: one map per center is enough.
        product.masked_fill_(~self.seen[:, None], -torch.inf)
        nearest = torch.cat([product[:, :-2].amax(1, keepdim=True), product[:, -2:]], 1)
        return (2 - 2 * nearest / length(features)).clamp(0, 4).sqrt()

    def gamma(self, features: Tensor, valid: Tensor) -> Tensor:
        """Voxel weights (B, 1, *S) of features (B, C, *S): 1 + lambda q, divided by its mean over valid voxels.

        q is the boundary part of a softmax over minus distances / tau.
        """
        distances = self._distances(features.float().flatten(2))
        affinity = torch.softmax(-distances / self.temperature, 1)[:, -1:]
        weight = 1 + self.strength * affinity.reshape(valid.shape)
        return weight * valid.sum().clamp_min(1) / (weight * valid).sum().clamp_min(1e-6)

    def state_dict(self) -> dict:
        return {"centers": self.centers, "seen": self.seen}

    def load_state_dict(self, state: dict) -> None:
        self.centers, self.seen = state["centers"], state["seen"]
