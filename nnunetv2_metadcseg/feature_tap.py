"""Penultimate full-resolution decoder features: the input of the last segmentation layer of an nnU-Net decoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel


def unwrap(network: nn.Module) -> nn.Module:
    """The network itself, out of DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


def last_segmentation_layer(network: nn.Module) -> nn.Module:
    """The 1x1 layer that makes the full-resolution logits.

    Raises:
        TypeError: the network has no `decoder.seg_layers` (transformer networks of nnU-Net, for instance).
    """
    layers = getattr(getattr(unwrap(network), "decoder", None), "seg_layers", None)
    if not layers:
        raise TypeError(
            f"MetaDCSeg needs the input of `network.decoder.seg_layers[-1]`, but {type(unwrap(network)).__name__} has "
            "none; use plans with a PlainConvUNet or ResidualEncoderUNet (nnU-Net's default and ResEnc planners)."
        )
    return layers[-1]


class FeatureTap:
    """Keeps the features (B, C, *S) of the network's last forward pass in training mode, detached.

    Register it before torch.compile: the hook is then traced with the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.features: Tensor | None = None
        self._handle = last_segmentation_layer(network).register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:  # validation and inference need no features
            self.features = inputs[0].detach()

    def pop(self) -> Tensor:
        """The features, which are then let go so that they do not live until the next step.

        Raises:
            RuntimeError: no forward pass since the last call.
        """
        if self.features is None:
            raise RuntimeError("The feature tap saw no forward pass; call the network before asking for features.")
        features, self.features = self.features, None
        return features

    def remove(self) -> None:
        self._handle.remove()
