"""What users compare MetaDCSeg with: trusted cases only, mixed batches, and the L2B rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor

from nnunetv2_metadcseg.agreement import hard_labels
from nnunetv2_metadcseg.data_loading import StratifiedDataLoader
from nnunetv2_metadcseg.feature_tap import FeatureTap
from nnunetv2_metadcseg.influence import HeadInfluence, flatten_voxels, logit_gradient
from nnunetv2_metadcseg.trusted_trainer import TrustedBatchTrainer, first_output


class nnUNetTrainerMixed(TrustedBatchTrainer):
    """Given labels as they are, but a fixed share of every batch from trusted cases (oversampling, no weights)."""


class nnUNetTrainerTrustedOnly(TrustedBatchTrainer):
    """Sees the trusted cases of the fold and nothing else."""

    def build_train_loader(self, dataset, initial_patch_size, transforms) -> nnUNetDataLoader:
        loader = super().build_train_loader(dataset, initial_patch_size, transforms)
        loader.trusted_share = 1.0
        return loader

    def shown_cases(self, loader: StratifiedDataLoader) -> Sequence[str]:
        return loader.trusted


class nnUNetTrainerL2B(TrustedBatchTrainer):
    """Learning to Bootstrap (arXiv 2202.04291), voxel-wise: weights max(s, 0) normalised by their sum.

    s is the influence of the given label and of the network's own pseudo-label, here restricted to the last layer
    (influence.HeadInfluence) without momentum, so that the rule costs no second backward pass.
    """

    def initialize(self) -> None:
        super().initialize()
        self.tap = FeatureTap(self.network)

    @torch.no_grad()
    def training_targets(self, batch: dict, data: Tensor, outputs, label: Tensor, valid: Tensor):
        features = self.tap.pop().detach()
        num_given = batch["num_given"]
        if num_given in (0, len(data)):
            return label, valid
        regions = self.label_manager.has_regions
        logits = first_output(outputs)
        probabilities = self.probabilities(logits)
        pseudo = hard_labels(probabilities, regions)
        influence = HeadInfluence(momentum=0.0)
        gradient = logit_gradient(
            lambda z: self.local_loss.single(z, label[num_given:], valid[num_given:]), logits[num_given:]
        )
        influence.update(influence.step_direction(features[num_given:], gradient))
        given = slice(0, num_given)
        weights = [
            l2b_weight(influence, features[given], probabilities[given], t[given], valid[given], regions)
            for t in (label, pseudo)
        ]
        total = weights[0] + weights[1]
        target, weight = label.clone(), valid.expand_as(total[:1].expand(len(valid), *total.shape[1:])).clone()
        target[given] = (weights[0] * label[given] + weights[1] * pseudo[given]) / total.clamp_min(1e-12)
        # The weights sum to the number of given-label voxels: L2B's normalisation, on the scale of unit weights.
        weight[given] = total * (valid[given].expand_as(total).sum() / total.sum().clamp_min(1e-12))
        return target, weight


def l2b_weight(
    influence: HeadInfluence, features: Tensor, probabilities: Tensor, target: Tensor, valid: Tensor, regions: bool
) -> Tensor:
    """max(s, 0) of `target` as a map: (B, 1, *S), or (B, K, *S) for regions; zero where ignored."""
    score = influence(*(flatten_voxels(x.float()) for x in (features, probabilities, target)))
    score = score.reshape(len(target), *target.shape[2:], -1).movedim(-1, 1)
    return (score if regions else score.sum(1, keepdim=True)).clamp_min(0) * valid
