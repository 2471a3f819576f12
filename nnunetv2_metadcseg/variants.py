"""Named variants: nnU-Net's epoch variants of every trainer, and the ablations; each sets one thing."""

from __future__ import annotations

from dataclasses import replace

import torch

from nnunetv2_metadcseg.baselines import nnUNetTrainerL2B, nnUNetTrainerMixed, nnUNetTrainerTrustedOnly
from nnunetv2_metadcseg.self_trusted import nnUNetTrainerMetaDCSegSelfTrusted
from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg
from nnunetv2_metadcseg.trusted_trainer import TrustedBatchTrainer

EPOCHS = (1, 5, 10, 20, 50, 100, 250)


class nnUNetTrainerMetaDCSegNoMeta(nnUNetTrainerMetaDCSeg):
    """Fixed weights: the prior alone, no meta-weight network."""

    config = replace(nnUNetTrainerMetaDCSeg.config, influence="none")


class nnUNetTrainerMetaDCSegNoDCD(nnUNetTrainerMetaDCSeg):
    """No Dynamic Center Distance weight."""

    config = replace(nnUNetTrainerMetaDCSeg.config, dcd_strength=0.0)


class nnUNetTrainerMetaDCSegMeanTeacher(nnUNetTrainerMetaDCSeg):
    """The pseudo-label comes from an average of the student over time, not from the student itself."""

    config = replace(nnUNetTrainerMetaDCSeg.config, teacher=True)


class nnUNetTrainerMetaDCSegNoGivenOpinion(nnUNetTrainerMetaDCSeg):
    """The layer that learns the given labels has no say in the pseudo-label."""

    config = replace(nnUNetTrainerMetaDCSeg.config, given_opinion=False)


class nnUNetTrainerMetaDCSegAllGivenLabels(nnUNetTrainerMetaDCSeg):
    """The layer that learns the given labels learns those of doubted cases, too."""

    config = replace(nnUNetTrainerMetaDCSeg.config, skip_doubted=False)


class nnUNetTrainerMetaDCSegHeadInfluence(nnUNetTrainerMetaDCSeg):
    """Influence restricted to the last layer, in closed form."""

    config = replace(nnUNetTrainerMetaDCSeg.config, influence="head")


class nnUNetTrainerMetaDCSegNetworkInfluence(nnUNetTrainerMetaDCSeg):
    """Influence through the whole network, by a finite difference."""

    config = replace(nnUNetTrainerMetaDCSeg.config, influence="network")


class nnUNetTrainerMetaDCSegNoGivenHead(nnUNetTrainerMetaDCSeg):
    """No second last layer for the given labels; nothing then tells one-sided errors from others."""

    config = replace(nnUNetTrainerMetaDCSeg.config, given_head=0.0)


class nnUNetTrainerMetaDCSegNoCaseWeights(nnUNetTrainerMetaDCSeg):
    """Patches of doubted cases count like all others."""

    config = replace(nnUNetTrainerMetaDCSeg.config, case_weighting=False)


class nnUNetTrainerMetaDCSegNoContext(nnUNetTrainerMetaDCSeg):
    """The meta-weight network does not see how the case disagrees with the teacher."""

    config = replace(nnUNetTrainerMetaDCSeg.config, context=False)


def epoch_variant(trainer: type[TrustedBatchTrainer], epochs: int) -> type[TrustedBatchTrainer]:
    """`trainer` with another number of epochs, named as nnU-Net names its own (`_1epoch`, `_5epochs`)."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        trainer.__init__(self, plans, configuration, fold, dataset_json, device)
        self.num_epochs = epochs

    name = f"{trainer.__name__}_{epochs}epoch{'s' if epochs > 1 else ''}"
    members = {"__init__": __init__, "__module__": __name__, "__doc__": f"{trainer.__name__} for {epochs} epochs."}
    return type(name, (trainer,), members)


for _trainer in (
    nnUNetTrainerMetaDCSeg,
    nnUNetTrainerMetaDCSegSelfTrusted,
    nnUNetTrainerTrustedOnly,
    nnUNetTrainerMixed,
    nnUNetTrainerL2B,
):
    for _epochs in EPOCHS:
        _variant = epoch_variant(_trainer, _epochs)
        globals()[_variant.__name__] = _variant
