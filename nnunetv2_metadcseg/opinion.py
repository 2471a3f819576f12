"""The second opinion on a given label: what the pseudo-label is made of.

The layer that predicts is kept free of the errors of the given labels, but it learns what is right from few cases. The
layer of the given labels (given_label_head.py) has learned from all of them: where their errors cancel out it knows
more, where they are one-sided it is wrong as they are. So their opinions are mixed by how one-sided the errors are:
while training their probabilities, and after it their weights, for both are linear in the same features.

Tensors only. B batch, K heads, `*S` space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunetv2_metadcseg.agreement import probabilities_of
from nnunetv2_metadcseg.feature_tap import with_features
from nnunetv2_metadcseg.given_label_head import per_voxel


def mixed_opinion(predicting: Tensor, given: Tensor | None, bias: Tensor | float) -> Tensor:
    """Probabilities (B, K, *S) of the two layers, mixed: bias * predicting + (1 - bias) * given.

    Args:
        predicting, given: (B, K, *S) of the layer that predicts and of that of the given labels; None: no such layer.
        bias: one-sidedness of the label errors, in [0, 1] (given_label_head.LabelBias).
    """
    return predicting if given is None else torch.lerp(given, predicting, bias)


@torch.no_grad()
def mix_layers(predicting: nn.Module, given: nn.Linear, bias: Tensor | float) -> None:
    """Turn the layer that predicts into the mixture of both: of their logits, which is one layer again.

    Args:
        predicting: 1x1 convolution, or transposed convolution whose voxels of a block have the same features
            (feature_tap.last_segmentation_layer). given: the layer of the given labels.
        bias: one-sidedness of the label errors, in [0, 1]; 1 leaves the layer as it is.
    """
    theirs = given.weight.T if isinstance(predicting, nn.ConvTranspose3d) else given.weight
    theirs = theirs.view(*theirs.shape, *[1] * (predicting.weight.ndim - 2))
    predicting.weight.lerp_(theirs, 1 - bias)
    predicting.bias.lerp_(given.bias, 1 - bias)


class OpinionNetwork(nn.Module):
    """A network with its two last layers as one module: the mean teacher averages it, the audit reads it.

    Args:
        network: as nnU-Net built it, without deep supervision. given: the layer of the given labels, or None.
        regions: sigmoid heads.
    """

    def __init__(self, network: nn.Module, given: nn.Linear | None, regions: bool) -> None:
        super().__init__()
        self.network, self.given, self.regions = network, given, regions
        self.bias: Tensor | float = 1.0

    def probabilities(self, data: Tensor) -> Tensor:
        """(B, K, *S) of images (B, C, *S)."""
        return self.of_outputs(*with_features(self.network, data))

    def of_outputs(self, logits: Tensor, features: Tensor) -> Tensor:
        """The same from the network's logits (B, K, *S) and the input features (B, C, *S) of its last layer."""
        given = None if self.given is None else self._normalised(per_voxel(self.given, features))
        return mixed_opinion(self._normalised(logits), given, self.bias)

    def _normalised(self, logits: Tensor) -> Tensor:
        # Contiguous as labels are: mixed memory formats are slow.
        return probabilities_of(logits.float().contiguous(), self.regions)
