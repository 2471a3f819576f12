"""MetaDCSeg with nnU-Net's transformer Primus (Wald et al., arXiv 2503.01835): one trainer per size it ships."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.primus import primus_trainers
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import AbstractPrimus

from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg

SIZES = ("S", "B", "M", "L")
FAMILIES = ("Primus", "PrimusV2", "PrimusV3")
BLOCK = 8  # edge of the voxel blocks that Primus makes its tokens of


class MetaDCSegPrimus(nnUNetTrainerMetaDCSeg):
    """What is different where nnU-Net's trainer of a Primus is the other base class."""

    gradient_norm = 1  # as nnU-Net's Primus trainers

    def initialize(self) -> None:
        """As in the base class.

        Raises:
            ValueError: a patch that Primus cannot cut into blocks; or `network` influence.
        """
        patch = self.configuration_manager.patch_size
        if len(patch) != 3 or any(edge % BLOCK for edge in patch):
            raise ValueError(
                f"Primus cuts 3D patches into blocks of {BLOCK} voxels per edge, but the planned patch is "
                f"{' x '.join(map(str, patch))}; plan a 3D configuration whose patch edges are multiples of {BLOCK} "
                "(metadcseg small-config --patch)."
            )
        if self.config.influence == "network":
            raise ValueError(
                "The influence 'network' compares two forward passes, which Primus makes incomparable by dropping "
                "paths at random; use the influence 'head'."
            )
        super().initialize()


class PrimusCheckpoints(AbstractPrimus):
    """Loads checkpoints as nnUNetTrainer does; comes before the trainer of a size among the base classes.

    The loader that nnU-Net's Primus trainers inherit leaves torch.load's `weights_only` at its default, which refuses
    nnU-Net's own checkpoints since torch 2.6.
    """

    def load_checkpoint(self, filename_or_checkpoint) -> None:
        nnUNetTrainer.load_checkpoint(self, filename_or_checkpoint)
        if self.current_epoch >= self.warmup_duration_whole_net:
            self.optimizer, self.lr_scheduler = self.configure_optimizers("train")


def primus_variant(family: str, size: str) -> type[MetaDCSegPrimus]:
    """MetaDCSeg with one Primus, for instance nnUNetTrainerMetaDCSegPrimusM with nnUNet_Primus_M_Trainer."""
    separator = "_" if family == "Primus" else ""
    theirs = getattr(primus_trainers, f"nnUNet_{family}{separator}{size}_Trainer")
    members = {"__module__": __name__, "__doc__": f"MetaDCSeg with {family}-{size}."}
    return type(f"nnUNetTrainerMetaDCSeg{family}{size}", (MetaDCSegPrimus, PrimusCheckpoints, theirs), members)


for _family in FAMILIES:
    for _size in SIZES:
        _variant = primus_variant(_family, _size)
        globals()[_variant.__name__] = _variant
