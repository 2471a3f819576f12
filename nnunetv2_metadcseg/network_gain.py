"""Influence through the whole network, with a direction averaged over iterations."""

from __future__ import annotations

import torch
import torch._functorch.config
from torch import Tensor, nn

from nnunetv2_metadcseg.collective import Collective
from nnunetv2_metadcseg.influence import network_influence
from nnunetv2_metadcseg.losses import voxel_cross_entropy

RADIUS_FP32, RADIUS_AUTOCAST = 1e-3, 1e-1


def keep_compiled_graphs() -> None:
    """Let backward passes through torch.compile keep their graph, which `NetworkGain.update` asks for.

    A compiled backward pass that first ran without keeping its graph (as at the start of the training) refuses to
    keep it later, unless this is called before it is compiled.
    """
    if hasattr(torch._functorch.config, "donated_buffer"):  # since torch 2.5
        torch._functorch.config.donated_buffer = False


class NetworkGain:
    """Influence of the given label minus that of the pseudo-label, by one finite difference for both.

    Args:
        momentum: share of the old direction kept per update, in [0, 1). collective: reductions over DDP ranks.
    """

    def __init__(self, momentum: float, collective: Collective) -> None:
        self.momentum, self.collective = momentum, collective
        self.direction: dict[str, Tensor] | None = None

    def update(self, network: nn.Module, trusted_loss: Tensor, scale: Tensor | float = 1.0) -> None:
        """Fold in grad L_T; the graph of `trusted_loss` is kept for the step's own backward pass.

        Args:
            scale: the loss is multiplied by it before, and the gradient divided after, the backward pass (half
                precision underflows otherwise). What overflows counts as zero: one bad step must not stay in u.
        """
        names, parameters = zip(*network.named_parameters(), strict=True)
        with torch.enable_grad():
            gradients = torch.autograd.grad(trusted_loss * scale, parameters, retain_graph=True, allow_unused=True)
        fresh = {
            name: self.collective.mean(gradient.detach().float() / scale).nan_to_num(0.0, 0.0, 0.0)
            for name, gradient in zip(names, gradients, strict=True)
            if gradient is not None
        }
        if self.direction is None:
            self.direction = fresh
            return
        for name, gradient in fresh.items():
            self.direction[name] = self.direction[name].lerp(gradient, 1 - self.momentum)

    def __call__(
        self, network: nn.Module, data: Tensor, logits: Tensor, label: Tensor, pseudo: Tensor, regions: bool
    ) -> Tensor | None:
        """Gain map (B, H, *S) of images (B, C, *S) with logits, label and pseudo-label (B, K, *S).

        None before the first update. What overflows in half precision counts as zero, as in `update`.
        """
        if self.direction is None:
            return None

        def difference(z: Tensor) -> Tensor:
            return voxel_cross_entropy(z, label, regions) - voxel_cross_entropy(z, pseudo, regions)

        radius = RADIUS_AUTOCAST if torch.is_autocast_enabled(data.device.type) else RADIUS_FP32
        gain = network_influence(network, self.direction, data, difference, logits, radius)
        return gain.nan_to_num(0.0, 0.0, 0.0)
