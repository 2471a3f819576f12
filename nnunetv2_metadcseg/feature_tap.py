"""Penultimate full-resolution decoder features: the input of the last segmentation layer of an nnU-Net network."""

from __future__ import annotations

import torch._dynamo
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel


def unwrap(network: nn.Module) -> nn.Module:
    """The network itself, out of DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


def last_segmentation_layer(network: nn.Module) -> nn.Module:
    """The layer that makes the full-resolution logits: 1x1 in a U-Net, a transposed convolution in Primus.

    Raises:
        TypeError: the network has neither `decoder.seg_layers` nor `up_projection.decode`.
    """
    network = unwrap(network)
    for part, layers in (("decoder", "seg_layers"), ("up_projection", "decode")):
        found = getattr(getattr(network, part, None), layers, None)
        if found:
            return found[-1]
    raise TypeError(
        "MetaDCSeg needs the input of `network.decoder.seg_layers[-1]` (U-Nets) or `network.up_projection.decode[-1]` "
        f"(Primus), but {type(network).__name__} has none; use plans with a PlainConvUNet or ResidualEncoderUNet "
        "(nnU-Net's default and ResEnc planners) or nnUNetTrainerMetaDCSegPrimusM."
    )


def at_full_resolution(layer: nn.Module, features: Tensor) -> Tensor:
    """Input features of the last layer as (B, C, *S) per voxel of its logits.

    A transposed convolution (Primus's last layer) gives every voxel of a block the same features, its kernel being as
    wide as its stride; a U-Net's 1x1 layer has one voxel per block.
    """
    if not isinstance(layer, nn.ConvTranspose3d):
        return features
    return nn.functional.interpolate(features, scale_factor=tuple(map(float, layer.stride)), mode="nearest")


def without_deep_supervision(network: nn.Module) -> nn.Module:
    """The network itself, from now on with the full-resolution output only."""
    if hasattr(network, "decoder"):
        network.decoder.deep_supervision = False
    return network


def with_features(network: nn.Module, data: Tensor) -> tuple[Tensor | list[Tensor], Tensor]:
    """A forward pass: the output, and the last layer's input features (B, C, *S) at full resolution."""
    kept = []
    handle = last_segmentation_layer(network).register_forward_pre_hook(
        lambda layer, inputs: kept.append(at_full_resolution(layer, inputs[0]))
    )
    try:
        return network(data), kept[0]
    finally:
        handle.remove()


def tell_hooks_apart() -> None:
    """Let torch.compile ask which hooks a network has before it reuses what it compiled for another of its kind.

    It does not by default: a tapped network would run the code of one without a tap, or fill the other's tap. What
    was compiled before is dropped, since it does not ask.
    """
    if getattr(torch._dynamo.config, "skip_nnmodule_hook_guards", False):  # a torch without it may ask always
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.reset()


class FeatureTap:
    """Keeps the features (B, C, *S) of the network's last forward pass in training mode.

    Register it before torch.compile: the hook is then traced with the network.
    """

    def __init__(self, network: nn.Module) -> None:
        tell_hooks_apart()
        self.features: Tensor | None = None
        self._handle = last_segmentation_layer(network).register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:  # validation and inference need no features
            self.features = at_full_resolution(module, inputs[0])

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
