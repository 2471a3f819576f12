"""The trainers that are compared. Imports torch and nnU-Net."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch._dynamo
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor
from torch.func import functional_call

from nnunetv2_metadcseg.agreement import hard_labels
from nnunetv2_metadcseg.baselines import nnUNetTrainerMixed
from nnunetv2_metadcseg.feature_tap import unwrap
from nnunetv2_metadcseg.losses import voxel_cross_entropy
from nnunetv2_metadcseg.step_benchmark import Target, meta_interval
from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg
from nnunetv2_metadcseg.trusted_trainer import TrustedBatchTrainer, first_output, full_resolution

# torch.compile gives up, silently, on code that it has compiled this often, and the arms' networks share their code.
COMPILED_NETWORKS = 64


class StockChannelsLast(nnUNetTrainer):
    """Stock nnU-Net with the memory format that makes convolutions fast on CPU."""

    def initialize(self) -> None:
        super().initialize()
        dims = len(self.configuration_manager.patch_size)
        self.memory_format = torch.channels_last_3d if dims == 3 else torch.channels_last
        unwrap(self.network).to(memory_format=self.memory_format)

    def train_step(self, batch: dict) -> dict:
        data = batch["data"].to(self.device, non_blocking=True)
        return super().train_step({**batch, "data": data.contiguous(memory_format=self.memory_format)})


class UnrolledL2B(TrustedBatchTrainer):
    """Learning to Bootstrap (arXiv 2202.04291), voxel-wise, with the look-ahead as published code takes it.

    One SGD step of the whole network is unrolled with its graph, the trusted loss is taken after it, and the gradient
    in the voxel weights goes back through both (double backward). It is here to be timed, not to be trained with:
    nnUNetTrainerL2B gives the same rule for the last layer without a second-order graph.
    """

    quick_norm = False
    learned: tuple[Tensor, Tensor] | None = None

    def train_step(self, batch: dict) -> dict:
        self.learned = None
        if 0 < batch["num_given"] < len(batch["data"]):
            self.learned = self._learn(batch)
        return super().train_step(batch)

    def training_targets(self, batch: dict, data: Tensor, outputs, label: Tensor, valid: Tensor):
        if self.learned is None:
            return label, valid
        num_given = batch["num_given"]
        target, weight = self.learned
        rest = valid[num_given:].expand(-1, weight.shape[1], *valid.shape[2:])
        return torch.cat([target, label[num_given:]]), torch.cat([weight, rest])

    def _learn(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Mixed target and weight of the given-label patches."""
        data = self.to_device(batch["data"])
        label, valid = self.encoder(batch["target"][:, :1].to(self.device, non_blocking=True))
        given, trusted = slice(0, batch["num_given"]), slice(batch["num_given"], None)
        network, regions = unwrap(self.network), self.label_manager.has_regions
        parameters = dict(network.named_parameters())
        with self.autocast():
            outputs = network(data[given])
        logits = full_resolution(outputs).float()
        pseudo = hard_labels(self.probabilities(first_output(outputs)), regions)
        losses = [voxel_cross_entropy(logits, target, regions) for target in (label[given], pseudo)]
        weights = [torch.zeros_like(loss, requires_grad=True) for loss in losses]
        inner = sum((weight * loss).mean() for weight, loss in zip(weights, losses, strict=True))
        slopes = torch.autograd.grad(inner, list(parameters.values()), create_graph=True, allow_unused=True)
        ahead = {
            name: parameter if slope is None else parameter - self.initial_lr * slope
            for (name, parameter), slope in zip(parameters.items(), slopes, strict=True)
        }
        with self.autocast():
            outputs = functional_call(network, ahead, (data[trusted],), tie_weights=False)
        outer = self.weighted_loss.single(full_resolution(outputs).float(), label[trusted], valid[trusted])
        alpha, beta = ((-g).clamp_min(0) * valid[given] for g in torch.autograd.grad(outer, weights))
        total = alpha + beta
        target = (alpha * label[given] + beta * pseudo) / total.clamp_min(1e-12)
        return target, total * (valid[given].expand_as(total).sum() / total.sum().clamp_min(1e-12))


def trainer_class(arm: str) -> type[nnUNetTrainer]:
    """The class of an arm (`metadcseg_network_every_4` included)."""
    classes = {
        "stock": nnUNetTrainer,
        "stock_channels_last": StockChannelsLast,
        "mixed": nnUNetTrainerMixed,
        "l2b_unrolled": UnrolledL2B,
    }
    return classes.get(arm, nnUNetTrainerMetaDCSeg)


def build(arm: str, target: Target) -> nnUNetTrainer:
    """An initialised trainer with its loaders, after the start phase, ready for `train_step`.

    It writes to nnUNet_results only; data augmentation runs in this process (nnUNet_n_proc_DA=0).
    """
    torch._dynamo.config.cache_size_limit = COMPILED_NETWORKS
    plans = json.loads(Path(target.plans_file).read_text())
    dataset_json = json.loads((Path(target.folder) / "dataset.json").read_text())
    with quiet():
        trainer = trainer_class(arm)(
            {**plans, "continue_training": False},
            target.configuration,
            target.fold,
            dataset_json,
            torch.device(target.device),
        )
        if isinstance(trainer, nnUNetTrainerMetaDCSeg):
            influence = "network" if arm.startswith("metadcseg_network") else "head"
            trainer.config = replace(
                trainer.config, start_fractions=(0.0, 0.0), influence=influence, meta_interval=meta_interval(arm)
            )
        trainer.initialize()
        trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        trainer.network.train()
    return trainer


def load_weights(trainer: nnUNetTrainer, weights: dict[str, Tensor]) -> None:
    """The same briefly trained weights for every arm."""
    unwrap(trainer.network).load_state_dict(weights)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """nnU-Net's greetings and plans are not what a benchmark prints."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
