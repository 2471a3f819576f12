"""What the audit reads of a MetaDCSeg checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_metadcseg.agreement import MISSING
from nnunetv2_metadcseg.config import MetaDCSegConfig
from nnunetv2_metadcseg.feature_tap import last_segmentation_layer
from nnunetv2_metadcseg.given_label_head import GivenLabelHead
from nnunetv2_metadcseg.label_audit_alpha import LearnedWeights, TrainerRecord
from nnunetv2_metadcseg.label_audit_balance import Record
from nnunetv2_metadcseg.weighting import LabelWeighting
from tests.nnunetv2_metadcseg.networks import small_unet


def test_the_record_is_the_disagreement_of_all_visits_by_that_of_right_labels():
    config = MetaDCSegConfig()
    trusted = torch.tensor([False, False, True])
    weighting = LabelWeighting(config, False, trusted)
    weighting.agreement.history[:2] = torch.tensor([[30.0, 10.0], [0.0, 0.0]])
    weighting.agreement.visits[0] = 5
    state = {"cases": ["a", "never seen", "c"], "weighting": weighting.state_dict()}
    record = TrainerRecord({"state": state, "config": asdict(config)}, ["c"], False, torch.device("cpu"))
    assert record.record("a") == Record(3, 5)
    assert record.record("never seen") is None and record.record("of another fold") is None


def predictor(network: torch.nn.Module) -> SimpleNamespace:
    labels = SimpleNamespace(num_segmentation_heads=2, has_regions=False, ignore_label=None)
    return SimpleNamespace(label_manager=labels, network=network, list_of_parameters=[network.state_dict()])


def test_alpha_is_made_with_the_layer_that_predicted_in_training():
    config, network = MetaDCSegConfig(), small_unet(2, 2)
    own = {name: torch.full_like(value, 0.5) for name, value in last_segmentation_layer(network).state_dict().items()}
    weighting = LabelWeighting(config, False, torch.tensor([True])).state_dict()
    state = {"cases": ["a"], "weighting": weighting, "given_head": None, "teacher": None}
    for layer in (own, None):
        ours = {"state": state | {"own_layer": layer}, "config": asdict(config)}
        weights = LearnedWeights(predictor(network), ours, ["a"], torch.device("cpu"))
        expected = layer or last_segmentation_layer(network).state_dict()
        assert torch.equal(last_segmentation_layer(weights.network.student).weight, expected["weight"])
    assert not torch.equal(last_segmentation_layer(network).weight, own["weight"])  # what predicts stays


def test_the_second_opinion_is_mixed_as_in_training():
    config, network = MetaDCSegConfig(), small_unet(2, 2)
    weighting = LabelWeighting(config, False, torch.tensor([True]))
    weighting.label_bias.set_counts(torch.tensor([[3.0, 1.0, 10.0]]))
    given = GivenLabelHead(last_segmentation_layer(network).in_channels, 2).state_dict()
    state = {"cases": ["a"], "weighting": weighting.state_dict(), "given_head": given, "teacher": None}
    ours = {"state": state, "config": asdict(config)}
    opinion = LearnedWeights(predictor(network), ours, ["a"], torch.device("cpu")).network.opinion
    assert 0 < opinion.bias < 1 and opinion.bias == float(weighting.bias)
    assert torch.equal(opinion.given.weight, given["layer"]["weight"])


class TestOtherCases:
    """Maps of a case do not depend on which others were looked at, and a case that was not trained on is counted as
    the trainer counts its own."""

    @pytest.fixture
    def weights(self):
        config, network = MetaDCSegConfig(), small_unet(2, 2, deep_supervision=False)
        weighting = LabelWeighting(config, False, torch.tensor([True, False]))
        weighting.agreement.update(
            torch.tensor([0, 1]),
            torch.tensor([[0, 10.0, 0], [0, 40.0, 0]]),
            torch.tensor([100.0, 100.0]),
            torch.ones(2, dtype=torch.bool),
        )
        weighting.mean_odds = torch.tensor(-1.0)
        weighting.label_bias.set_counts(torch.tensor([[1.0, 1.0, 10.0]]))  # errors cancel out: the odds count
        weighting.centers.update(torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).abs())
        state = {"cases": ["a", "b"], "weighting": weighting.state_dict(), "given_head": None, "teacher": None}
        window = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
        window.__dict__.update(predictor(network).__dict__)
        window.configuration_manager = SimpleNamespace(patch_size=[16, 16])
        return LearnedWeights(window, {"state": state, "config": asdict(config)}, ["a"], torch.device("cpu"))

    @staticmethod
    def look(weights, case: str) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(0)
        image = torch.randn(1, 1, 32, 32, generator=drawn)
        label = (torch.rand(1, 1, 32, 32, generator=drawn) > 0.5).long()
        return weights.suspicion(case, image, label, torch.randn(2, 1, 32, 32, generator=drawn))

    def test_maps_do_not_depend_on_the_cases_before(self, weights):
        first = self.look(weights, "b")
        assert 0 < first.max() < 1
        self.look(weights, "of another fold")
        assert torch.equal(self.look(weights, "b"), first)

    def test_mistakes_are_expected_without_structure_too(self, weights):
        nothing = torch.zeros(1, 1, 32, 32)
        target, valid = torch.cat([1 - nothing, nothing], 1), torch.ones(1, 1, 32, 32)
        logits = target.clone()
        logits[..., 0, :3] = torch.tensor([0.0, 1.0]).view(1, 2, 1)  # three stray voxels
        weights._count(2, logits, target, valid)
        agreement = weights.weighting.agreement
        assert agreement.usual_size() == 100
        assert agreement.rates()[2].sum() == pytest.approx(3 / (1.5 + 4 * agreement.base_share * 100))
        assert agreement.label_belief(torch.tensor([2]), torch.zeros(2))[0, MISSING] > 0.9
