"""The arm `finetune`: training on the noisy labels, then the last fifth of the steps on the trusted cases only."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from settings import SettingsError


def first_finetuning_epoch(epochs: int, share: float) -> int:
    """The last ``share`` of the epochs begins here; one epoch is the least.

    Raises:
        SettingsError: a single epoch cannot be both.
    """
    if epochs < 2:
        raise SettingsError(f"The arm finetune needs 2 epochs or more, got {epochs}: give more steps.")
    return min(round(epochs * (1 - share)), epochs - 1)


class nnUNetTrainerStudyFinetune(nnUNetTrainer):
    """Stock nnU-Net that changes its training cases once. The learning rate goes on falling as it would have."""

    finetune_share = 0.2
    finetuning = False

    def do_split(self) -> tuple[list[str], list[str]]:
        train, val = super().do_split()
        if self.finetuning:
            trusted = set(self.dataset_json["trusted_cases"])
            train = [case for case in train if case in trusted]
        return train, val

    def on_train_epoch_start(self) -> None:
        first = first_finetuning_epoch(self.num_epochs, self.finetune_share)
        if not self.finetuning and self.current_epoch >= first:
            self.finetuning = True
            self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        super().on_train_epoch_start()
