"""Arms that know the wrong voxels: the ceiling for any method that weighs voxels.

The clean label travels through augmentation as a second segmentation channel.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from torch import Tensor

from nnunetv2_metadcseg.data_loading import ExtraSegChannels
from nnunetv2_metadcseg.evidence import decision_probability
from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg
from nnunetv2_metadcseg.weighting import LabelWeighting


class OracleWeighting(LabelWeighting):
    """Weights from the truth instead of from what was learned.

    `right` is set before every step: (B, H, *S), one where the given label is right.
    """

    replace_wrong = True
    right: Tensor

    def targets(self, patches, found, trust=None, gain=None, learn=None) -> tuple[Tensor, Tensor, Tensor]:
        label, valid = patches.label, patches.valid
        right = self.right[: len(label)]
        if not self.replace_wrong:
            return right, label, valid * right
        pseudo = patches.teacher if self.config.soft_pseudo_labels else found.pseudo
        return right, right * label + (1 - right) * pseudo, valid.expand_as(right)


class DroppingWeighting(OracleWeighting):
    replace_wrong = False


class nnUNetTrainerOracleReplace(nnUNetTrainerMetaDCSeg):
    """Wrong voxels get the pseudo-label of a mean teacher; half of every batch is trusted, no second last layer.

    `clean_preprocessed_folder` (set by training.py) holds the clean labels, preprocessed as the noisy ones.
    """

    config = replace(
        nnUNetTrainerMetaDCSeg.config,
        influence="none",
        dcd_strength=0.0,
        given_head=0.0,
        soft_pseudo_labels=True,
        teacher=True,
        memorised_share=0.0,
    )
    weighting_class = OracleWeighting
    clean_preprocessed_folder: str

    def get_tr_and_val_datasets(self):
        train, val = super().get_tr_and_val_datasets()
        folder = f"{self.clean_preprocessed_folder}/{self.configuration_manager.data_identifier}"
        clean = infer_dataset_class(folder)(folder)
        return ExtraSegChannels(train, lambda case, shape: clean.load_case(case)[1]), val

    def training_targets(self, batch: dict, data: Tensor, outputs, label: Tensor, valid: Tensor):
        clean, _ = self.encoder(batch["target"][:, 1:2].to(self.device))
        right = decision_probability(clean, label, self.label_manager.has_regions) > 0.5
        self.weighting.right = right.to(torch.float32)
        return super().training_targets(batch, data, outputs, label, valid)


class nnUNetTrainerOracleDrop(nnUNetTrainerOracleReplace):
    """Wrong voxels are dropped; given labels from the first step, since what is left of them is right."""

    config = replace(nnUNetTrainerOracleReplace.config, start_fractions=(0.0, 0.0))
    weighting_class = DroppingWeighting


class nnUNetTrainerOracleAlpha(nnUNetTrainerOracleReplace):
    """All of MetaDCSeg but DCD and case weights, with the truth in place of alpha."""

    config = replace(nnUNetTrainerMetaDCSeg.config, influence="none", dcd_strength=0.0, memorised_share=0.0)
