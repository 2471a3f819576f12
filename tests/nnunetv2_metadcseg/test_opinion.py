from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from nnunetv2_metadcseg.feature_tap import at_full_resolution, with_features
from nnunetv2_metadcseg.given_label_head import per_voxel
from nnunetv2_metadcseg.opinion import OpinionNetwork, mix_layers, mixed_opinion
from tests.nnunetv2_metadcseg.networks import small_unet


def opinion(regions: bool, given: bool = True) -> OpinionNetwork:
    torch.manual_seed(0)
    return OpinionNetwork(small_unet(2, 3, deep_supervision=False), nn.Linear(4, 3) if given else None, regions)


def squash(logits: torch.Tensor, regions: bool) -> torch.Tensor:
    return torch.sigmoid(logits) if regions else torch.softmax(logits, 1)


def test_bias_decides_whose_opinion_counts():
    predicting, given = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.3, 0.7]])
    assert torch.equal(mixed_opinion(predicting, given, 1.0), predicting)
    assert torch.equal(mixed_opinion(predicting, given, torch.tensor(0.0)), given)
    torch.testing.assert_close(mixed_opinion(predicting, given, 0.25), torch.tensor([[0.45, 0.55]]))
    assert mixed_opinion(predicting, None, 0.25) is predicting


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 3, 1), nn.Conv3d(4, 3, 1), nn.ConvTranspose3d(4, 3, 2, 2)], ids=["2d", "3d", "Primus"]
)
@pytest.mark.parametrize("bias", [0.0, 0.25, torch.tensor(1.0)])
def test_mixed_layers_say_the_mean_of_both_logits(layer, bias):
    layer, given = deepcopy(layer), nn.Linear(4, 3)
    features = torch.randn(2, 4, *[4] * (layer.weight.ndim - 2))
    said = per_voxel(given, at_full_resolution(layer, features))
    expected = bias * layer(features) + (1 - bias) * said
    mix_layers(layer, given, bias)
    torch.testing.assert_close(layer(features), expected)
    assert layer.weight.requires_grad


@pytest.mark.parametrize("regions", [False, True])
class TestNetwork:
    data = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def test_mixes_both_last_layers(self, regions):
        network = opinion(regions)
        network.bias = 0.25
        logits, features = with_features(network.network, self.data)
        own = squash(logits, regions)
        given = squash(network.given(features.movedim(1, -1)).movedim(-1, 1), regions)
        torch.testing.assert_close(network.probabilities(self.data), 0.25 * own + 0.75 * given)

    def test_is_the_network_itself_without_a_second_layer(self, regions):
        network = opinion(regions, given=False)
        torch.testing.assert_close(network.probabilities(self.data), squash(network.network(self.data), regions))

    def test_leaves_no_hook_behind(self, regions):
        network = opinion(regions)
        network.probabilities(self.data)
        assert not network.network.decoder.seg_layers[-1]._forward_pre_hooks
