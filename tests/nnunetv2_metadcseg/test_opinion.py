from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_metadcseg.feature_tap import with_features
from nnunetv2_metadcseg.opinion import OpinionNetwork, mixed_opinion
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
