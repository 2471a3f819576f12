"""Trainers of four iterations per epoch. A test folder for nnUNet_extTrainer, joined with the package's own."""

from __future__ import annotations

import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_metadcseg.nnunet_ext import metadcseg_trainers


class Short:
    """Two epochs of four steps; a checkpoint after each epoch."""

    def __init__(self, plans, configuration, fold, dataset_json, device=None):
        # nnU-Net reads the arguments by the names of this signature.
        super().__init__(plans, configuration, fold, dataset_json, device)
        torch.set_num_threads(1)  # the threads of a small step would wait for each other, above all on a busy machine
        self.num_epochs = 2
        self.num_iterations_per_epoch = 4
        self.num_val_iterations_per_epoch = 1
        self.save_every = 1

    def on_epoch_start(self):
        if os.environ.get("METADCSEG_TEST_STOP_BEFORE_EPOCH") == str(self.current_epoch):
            raise SystemExit("stopped by the test")
        super().on_epoch_start()


class ShortWithoutValidation(Short):
    """For tests that look at the training only: the final validation loads and predicts every validation case."""

    def perform_actual_validation(self, save_probabilities: bool = False):
        pass


class nnUNetTrainerShortMetaDCSeg(Short, metadcseg_trainers.nnUNetTrainerMetaDCSeg):
    pass


class nnUNetTrainerShortMetaDCSegNoValidation(ShortWithoutValidation, metadcseg_trainers.nnUNetTrainerMetaDCSeg):
    pass


class nnUNetTrainerShortMetaDCSegNoLearning(ShortWithoutValidation, metadcseg_trainers.nnUNetTrainerMetaDCSeg):
    """Keeps the weights it starts with, so that a test can see where they came from."""

    def __init__(self, plans, configuration, fold, dataset_json, device=None):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 0.0


class nnUNetTrainerShortSelfTrusted(ShortWithoutValidation, metadcseg_trainers.nnUNetTrainerMetaDCSegSelfTrusted):
    pass


class nnUNetTrainerShortMixed(ShortWithoutValidation, metadcseg_trainers.nnUNetTrainerMixed):
    pass


class nnUNetTrainerShortTrustedOnly(ShortWithoutValidation, metadcseg_trainers.nnUNetTrainerTrustedOnly):
    pass


class nnUNetTrainerShortL2B(ShortWithoutValidation, metadcseg_trainers.nnUNetTrainerL2B):
    pass


class nnUNetTrainerShortStock(ShortWithoutValidation, nnUNetTrainer):
    pass
