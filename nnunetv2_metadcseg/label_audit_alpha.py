"""Label audit, what MetaDCSeg learned: its record of every case, and its weights alpha for a whole case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_metadcseg.agreement import probabilities_of
from nnunetv2_metadcseg.config import MetaDCSegConfig
from nnunetv2_metadcseg.feature_tap import last_segmentation_layer, unwrap, with_features
from nnunetv2_metadcseg.label_audit_balance import Record
from nnunetv2_metadcseg.opinion import OpinionNetwork
from nnunetv2_metadcseg.patches import Patches
from nnunetv2_metadcseg.targets import LabelEncoder
from nnunetv2_metadcseg.weighting import LabelWeighting


class TrainerRecord:
    """What the trainer counted of every case, read from its checkpoint.

    Args:
        ours: the checkpoint's entry "metadcseg". trusted: trusted cases.
        regions: sigmoid heads. device: where to compute.
    """

    def __init__(self, ours: dict, trusted: Sequence[str], regions: bool, device: torch.device) -> None:
        self.device, self.regions = device, regions
        self.index = {case: i for i, case in enumerate(ours["state"]["cases"])}
        self.weighting = self._weighting(ours, set(trusted))
        self.beliefs = self.weighting.agreement.beliefs.clone()  # computing alpha moves those of the weighting

    def _weighting(self, ours: dict, trusted: set[str]) -> LabelWeighting:
        """With one case more than the trainer numbered: the place of a case that it has not seen."""
        mask = torch.tensor([*(case in trusted for case in self.index), False], device=self.device)
        known = {field.name for field in fields(MetaDCSegConfig)}
        config = MetaDCSegConfig(**{name: value for name, value in ours["config"].items() if name in known})
        weighting = LabelWeighting(config, self.regions, mask)
        saved = _to(ours["state"]["weighting"], self.device)
        for name, values in saved["agreement"].items():
            if name != "usual":  # of all cases together
                saved["agreement"][name] = torch.cat([values, getattr(weighting.agreement, name)[-1:]])
        weighting.load_state_dict(saved)
        return weighting

    def record(self, case: str) -> Record | None:
        """Disagreement of a training case by that expected of a right label, over all visits; None for other cases.

        Counted on patches that the network had not learned yet, most of them before it could know the label by heart.
        """
        if case not in self.index:
            return None
        agreement, number = self.weighting.agreement, self.index[case]
        found, expected = agreement.history[number].tolist()
        return Record(found / expected, float(agreement.visits[number])) if expected > 0 else None

    def belief(self, case: str) -> float | None:
        """Mean alpha of a training case where label and teacher disagree, as the trainer counted it at last."""
        known = case in self.index and self.beliefs[self.index[case]] >= 0
        return float(self.beliefs[self.index[case]]) if known else None


class LearnedWeights(TrainerRecord):
    """The trainer's weights alpha for whole cases.

    Args:
        predictor: nnUNetPredictor with the fold's network (what predicts is `list_of_parameters[0]`).
        ours, trusted, device: as in the base class.
    """

    def __init__(self, predictor: Any, ours: dict, trusted: Sequence[str], device: torch.device) -> None:
        labels = predictor.label_manager
        super().__init__(ours, trusted, labels.has_regions, device)
        self.predictor, self.mean_odds = predictor, self.weighting.mean_odds
        self.encoder = LabelEncoder(
            labels.num_segmentation_heads, labels.foreground_regions if self.regions else None, labels.ignore_label
        )
        student = deepcopy(unwrap(predictor.network))
        student.load_state_dict(predictor.list_of_parameters[0])
        own_layer = ours["state"].get("own_layer")
        if own_layer is not None:  # what predicts is the second opinion already
            last_segmentation_layer(student).load_state_dict(own_layer)
        opinion = opinion_of(student, ours, self.regions)
        opinion.bias = self.weighting.bias
        self.network = AlphaNetwork(student, opinion, self.weighting, self.regions).to(device).eval()

    @torch.no_grad()
    def suspicion(self, case: str, image: Tensor, label: Tensor, logits: Tensor) -> Tensor:
        """1 - alpha of a whole case by nnU-Net's sliding window: (1, *S), zero where label and teacher agree.

        Args:
            image: (C, *S). label: (1, *S) integers. logits: (K, *S) of the case, to count the disagreement of a case
                that was not trained on.
        """
        self.weighting.mean_odds = self.mean_odds  # whatever case came before
        target, valid = self.encoder(label[None])
        number = self.index.get(case, len(self.index))
        if case not in self.index:
            self._count(number, logits[None], target, valid)
        self.network.case, self.network.channels = number, len(image)
        runner = _window(self.predictor, self.network, self.network.outputs(target.shape[1]))
        stacked = torch.cat([image, target[0], valid[0]])
        return runner.predict_sliding_window_return_logits(stacked).float().cpu().amax(0, keepdim=True)

    def _count(self, number: int, logits: Tensor, target: Tensor, valid: Tensor) -> None:
        probabilities = probabilities_of(logits, self.regions)
        found = self.weighting.compare(probabilities, target, valid)
        found = self.weighting.as_evidence(found, probabilities, target, valid)
        agreement = self.weighting.agreement
        agreement.counts[number] = found.counts()[0].to(self.device)
        # As the trainer counts its patches: mistakes are expected where there is no structure, too.
        patches = max(1.0, valid.numel() / math.prod(self.predictor.configuration_manager.patch_size))
        base = patches * agreement.base_share * agreement.usual_size()
        agreement.sizes[number] = found.sizes[0].to(self.device) + base


class AlphaNetwork(nn.Module):
    """Image, encoded label and mask, stacked (1, C + K + 1, *S), to 1 - alpha (1, H, *S).

    The label travels as channels, so that nnU-Net's sliding window cuts and mirrors it with the image.
    """

    def __init__(self, student: nn.Module, opinion: OpinionNetwork, weighting: LabelWeighting, regions: bool) -> None:
        super().__init__()
        self.student, self.opinion, self.weighting, self.regions = student, opinion, weighting, regions
        self.case = self.channels = 0

    def outputs(self, heads: int) -> int:
        """Decisions per voxel H."""
        return heads if self.regions else 1

    def forward(self, stacked: Tensor) -> Tensor:
        image, label, valid = stacked[:, : self.channels], stacked[:, self.channels : -1], stacked[:, -1:]
        logits, features = with_features(self.student, image)
        student = probabilities_of(logits.float(), self.regions)
        own = self.opinion.network is self.student
        teacher = self.opinion.of_outputs(logits, features) if own else self.opinion.probabilities(image)
        cases = torch.full((len(image),), self.case, device=image.device)
        found = self.weighting.compare(teacher, label, valid)
        return 1 - self.weighting.alpha(Patches(features, student, teacher, label, valid, cases), found)


def opinion_of(student: nn.Module, ours: dict, regions: bool) -> OpinionNetwork:
    """The second opinion that a checkpoint holds: of the student's two last layers, or of the teacher's; without bias.

    Args:
        student: with the checkpoint's weights; part of the result where there is no teacher.
        ours: the checkpoint's entry "metadcseg". regions: sigmoid heads.
    """
    state, given = ours["state"], None
    if state["given_head"] is not None and ours["config"]["given_opinion"]:
        weights = state["given_head"]["layer"]
        given = nn.Linear(*reversed(weights["weight"].shape))
        given.load_state_dict(weights)
    if state["teacher"] is None:
        opinion = OpinionNetwork(student, given, regions)
    else:
        opinion = OpinionNetwork(deepcopy(student), given, regions)
        opinion.load_state_dict(state["teacher"]["weights"])
    return opinion


def _window(predictor: Any, network: nn.Module, channels: int) -> Any:
    """A copy of the predictor whose network puts out `channels` maps."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    runner = nnUNetPredictor.__new__(nnUNetPredictor)
    runner.__dict__.update(predictor.__dict__)
    runner.network, runner.label_manager = network, SimpleNamespace(num_segmentation_heads=channels)
    return runner


def _to(state: Any, device: torch.device) -> Any:
    """A nested state with its tensors copied to `device`."""
    if isinstance(state, Tensor):
        return state.detach().clone().to(device)
    if isinstance(state, dict):
        return {name: _to(value, device) for name, value in state.items()}
    return [_to(value, device) for value in state] if isinstance(state, list) else deepcopy(state)
