"""How much a voxel of a given-label patch would help the trusted patches: the hypergradient of bilevel learning.

One look-ahead step theta' = theta - eta grad L_N, then the trusted loss L_T(theta'). With u = grad L_T(theta) the
derivative of L_T(theta') in the weight of voxel v is -eta <grad CE_v, u>; the influence is s_v = <grad CE_v, u>
(positive: training on this voxel lowers the trusted loss). Two ways to compute it, neither with a second-order graph:

- `HeadInfluence`: the look-ahead restricted to the last 1x1 layer, in closed form.
- `network_influence`: the whole network, by one finite difference along u.

Tensors only; B batch, K heads, C feature channels, `*S` spatial axes.
Source: Ren et al. 2018 (arXiv 1803.09050) for the bilevel weights; docs/method.md for this derivation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


def logit_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Gradient of `loss(logits)` in the logits (B, K, *S), without a graph through the network."""
    return torch.func.grad(loss)(logits.detach().float())  # unlike autograd.grad it may be part of a fused function


def flatten_voxels(tensor: Tensor) -> Tensor:
    """(B, C, *S) -> (B * prod(S), C)."""
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])


class HeadInfluence:
    """Influence direction of the last 1x1 layer, averaged over iterations.

    U = sum_T G_v h_v^T (K, C) and b = sum_T G_v (K) with G = dL_T/dz. A single step's U is noisy and fades once the
    trusted patches are fitted, hence the momentum.

    Args:
        momentum: share of the old direction kept per update, in [0, 1).
    """

    def __init__(self, momentum: float = 0.9) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"The influence momentum must be in [0, 1), got {momentum}.")
        self.momentum = momentum
        self.direction: Tensor | None = None  # (K, C + 1): weight and, last column, bias

    @staticmethod
    def step_direction(features: Tensor, gradient: Tensor) -> Tensor:
        """(K, C + 1) from features (B, C, *S) and logit gradients (B, K, *S) of trusted patches."""
        flat_features, flat_gradient = flatten_voxels(features.float()), flatten_voxels(gradient)
        return torch.cat([flat_gradient.T @ flat_features, flat_gradient.sum(0)[:, None]], 1)

    def update(self, direction: Tensor) -> None:
        """Fold in one step's direction (K, C + 1), where it is finite; with DDP give the mean over ranks."""
        old = torch.zeros_like(direction) if self.direction is None else self.direction
        new = direction if self.direction is None else old.lerp(direction, 1 - self.momentum)
        self.direction = torch.where(direction.sum().isfinite(), new, old)

    def directional(self, features: Tensor) -> Tensor:
        """Change of every voxel's logits along the direction: (V, C) features -> (V, K).

        Raises:
            RuntimeError: before the first update.
        """
        if self.direction is None:
            raise RuntimeError("The influence direction is empty; call `update` with a trusted patch first.")
        return torch.addmm(self.direction[:, -1], features, self.direction[:, :-1].T)

    def __call__(self, features: Tensor, probabilities: Tensor, target: Tensor) -> Tensor:
        """Influence of training voxels on `target`.

        Args:
            features: (V, C). probabilities, target: (V, K).

        Returns:
            (V, K), per head; sum over K for softmax heads. s = <D, p - t>.
        """
        return self.directional(features) * (probabilities - target)


def network_influence(
    network: nn.Module,
    direction: Mapping[str, Tensor],
    data: Tensor,
    voxel_loss: Callable[[Tensor], Tensor],
    logits: Tensor,
    radius: float,
) -> Tensor:
    """Influence through the whole network: (CE(theta) - CE(theta - eps u)) / eps.

    Args:
        network: called on `data`; its first output are the logits.
        direction: u, one tensor per parameter name (a missing name counts as zero).
        data: (B, C, *S). logits: (B, K, *S) of `data` at theta.
        voxel_loss: logits -> (..., *S) losses, computed in fp32.
        radius: ||eps u||; 1e-3 in fp32, 1e-1 under autocast (half precision cannot see a smaller change).

    Returns:
        Same shape as `voxel_loss` gives.

    Raises:
        ValueError: radius not positive.
    """
    if radius <= 0:
        raise ValueError(f"The finite-difference radius must be positive, got {radius}.")
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(direction.values()))))
    epsilon = radius / norm.clamp_min(1e-12)
    with torch.no_grad():
        moved = {
            name: value - epsilon * direction[name] if name in direction else value
            for name, value in network.named_parameters()
        }
        # Modules that are registered under two names (nnU-Net does so) share their parameters anyway; with tie_weights
        # functional_call would put the moved ones into the network for good.
        output = functional_call(network, moved, (data,), tie_weights=False)
        output = output if isinstance(output, Tensor) else output[0]
        return (voxel_loss(logits.detach().float()) - voxel_loss(output.float())) / epsilon
