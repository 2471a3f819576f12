"""Base of all trainers of this package: batches with trusted patches, our loss, plain checkpoints.

It only wires nnU-Net's hooks; a subclass says in `training_targets` what the given-label patches are trained on.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgenerators.utilities.file_and_folder_operations import join, load_pickle
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, autocast

from nnunetv2_metadcseg import __version__
from nnunetv2_metadcseg.agreement import probabilities_of
from nnunetv2_metadcseg.channels_last_norm import use_channels_last_norm
from nnunetv2_metadcseg.class_locations import absent_classes, empty_cases, unlabelled_cases
from nnunetv2_metadcseg.config import MetaDCSegConfig
from nnunetv2_metadcseg.data_loading import StratifiedDataLoader
from nnunetv2_metadcseg.feature_tap import unwrap
from nnunetv2_metadcseg.fusion import Fuse, fuse_like
from nnunetv2_metadcseg.losses import WeightedDiceCELoss
from nnunetv2_metadcseg.preprocessed_labels import outdated_labels
from nnunetv2_metadcseg.targets import LabelEncoder
from nnunetv2_metadcseg.trusted_cases import (
    TrustedCasesError,
    read_trusted_cases,
    seen_in_training,
    trusted_training_cases,
)

EARLIER_MODEL = "checkpoint_final_of_earlier_training.pth"


class TrustedBatchTrainer(nnUNetTrainer):
    """Trains on batches of given-label and trusted patches. Not a method by itself: see the subclasses."""

    config = MetaDCSegConfig()
    quick_norm = True  # channels_last_norm.py on the CPU; it has no second derivative
    gradient_norm = 12  # nnU-Net's bound
    least_trusted = 0  # trusted patches in every batch, whatever their share
    absent_classes: Sequence[str] = ()  # names of classes or regions that no trusted case of the fold holds
    seen: Sequence[str] = ()  # cases whose labels it was trained on; the audit must know, and splits may change later
    _random_state: dict | None = None  # of a checkpoint, until the loaders have started

    # ---- set-up -------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        """As in nnU-Net.

        Raises:
            ValueError: mixed with a trainer that has a loss of its own.
        """
        if type(self)._build_loss is not nnUNetTrainer._build_loss:
            raise ValueError(
                f"{type(self).__name__} defines a loss (_build_loss), but the trainers of this package need their own, "
                "Dice and cross entropy weighted by voxels; leave out the base class or method that defines it."
            )
        super().initialize()
        if self.device.type == "cpu":
            # A quarter off the step of a small 3D network (docs/cost.md); on CUDA nnU-Net's own choice is kept.
            unwrap(self.network).to(memory_format=self.memory_format)
            if self.quick_norm:
                use_channels_last_norm(unwrap(self.network))
        self.encoder = LabelEncoder(
            self.label_manager.num_segmentation_heads,
            self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            self.label_manager.ignore_label,
        )
        self.weighted_loss = WeightedDiceCELoss(
            self.label_manager.has_regions,
            self.configuration_manager.batch_dice,
            self.loss.weight_factors if isinstance(self.loss, DeepSupervisionWrapper) else None,
            AllGatherGrad.apply if self.is_ddp else None,
        )
        self.full_loss = self.fuse(self.weighted_loss.forward)
        # For influences: ranks may hold different numbers of trusted patches, which cannot be gathered.
        self.local_loss = WeightedDiceCELoss(self.label_manager.has_regions, self.configuration_manager.batch_dice)

    @property
    def fuse(self) -> Fuse:
        """How tensor functions are run: compiled where nnU-Net compiles the network."""
        return fuse_like(self.network)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last_3d if len(self.configuration_manager.patch_size) == 3 else torch.channels_last

    @property
    def total_steps(self) -> int:
        return self.num_epochs * self.num_iterations_per_epoch

    # ---- data ---------------------------------------------------------------------------------------------------

    def trusted_cases(self, training: list[str]) -> list[str]:
        """The trusted ones among the training cases; raises TrustedCasesError with the way to declare them."""
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        known = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        declared = read_trusted_cases(self.preprocessed_dataset_folder_base, self.dataset_json)
        return trusted_training_cases(declared, training, known)

    def _warn_of_outdated_labels(self, trusted: list[str]) -> None:
        """Trusted labels were looked at, and perhaps corrected, after they had been preprocessed."""
        if self.local_rank != 0 or not nnUNet_raw.is_set():
            return
        folders = Path(self.preprocessed_dataset_folder_base), Path(join(nnUNet_raw, self.plans_manager.dataset_name))
        with contextlib.suppress(OSError):  # only help, not worth a training
            # Without dates: those of a preprocessed folder that was copied may tell nothing.
            outdated = outdated_labels(trusted, *folders, self.dataset_json, self.dataset_json["file_ending"])
            for what in outdated.values():
                self.print_to_log_file(f"WARNING: {what}, then train anew.")

    def labelled_cases(self, training: list[str]) -> list[str]:
        """Without those that hold nothing but ignored voxels, which would count as labels that agree with everything.

        Where augmentation turns the outside of an image into view, nnU-Net calls it background: a few voxels count.
        """
        if not self.label_manager.has_ignore_label:
            return training
        unlabelled = set(unlabelled_cases(training, self._class_locations))
        if unlabelled:
            self.print_to_log_file(
                f"{len(unlabelled)} of {len(training)} training cases hold no annotated voxel; they are not drawn."
            )
        return [case for case in training if case not in unlabelled]

    def find_absent_classes(self, trusted: list[str], training: list[str]) -> list[str]:
        """Classes or regions that no trusted case holds, said in the log, too: nothing can vouch for their labels.

        Raises:
            TrustedCasesError: no trusted case holds any: the network would learn that there is nothing.
        """
        labels = self.dataset_json["labels"]
        absent = absent_classes(labels, trusted, training, self._class_locations)
        if absent and len(empty_cases(labels, trusted, self._class_locations)) == len(trusted):
            raise TrustedCasesError(
                f"None of the {len(trusted)} trusted cases of this fold holds any structure, expected one that does; "
                f"check and trust cases that show {', '.join(absent)}."
            )
        if absent:
            self.print_to_log_file(
                f"WARNING: {', '.join(absent)} absent from all {len(trusted)} trusted cases, so nothing "
                f"vouches for labels of {'it' if len(absent) == 1 else 'them'}; trust a case that holds each."
            )
        return absent

    def find_empty_cases(self, trusted: list[str], training: list[str]) -> list[str]:
        """Training cases without structure, where any of the trusted ones is such: else nobody asks for the others."""
        labels = self.dataset_json["labels"]
        without = empty_cases(labels, trusted, self._class_locations)
        if not without:
            return []
        given = [case for case in training if case not in set(trusted)]
        empty = without + empty_cases(labels, given, self._class_locations)
        self.print_to_log_file(
            f"{len(without)} of the {len(trusted)} trusted cases hold no structure; together they are drawn at most as "
            f"often as such cases occur ({len(empty)} of {len(training)})."
        )
        return empty

    def _class_locations(self, case: str) -> dict:
        """Where nnU-Net found each class or region of a case: {class or region: sampled voxels}."""
        return load_pickle(join(self.preprocessed_dataset_folder, f"{case}.pkl"))["class_locations"]

    def build_train_loader(self, dataset, initial_patch_size, transforms) -> nnUNetDataLoader:
        """The training loader; trusted patches last in every batch."""
        trusted = self.trusted_cases(dataset.identifiers)
        if trusted:
            self.print_to_log_file(f"{len(trusted)} trusted cases in this fold: {', '.join(trusted)}")
            self._warn_of_outdated_labels(trusted)
            self.absent_classes = self.find_absent_classes(trusted, dataset.identifiers)
        return StratifiedDataLoader(
            dataset,
            self.batch_size,
            initial_patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=transforms,
            given=[case for case in dataset.identifiers if case not in trusted],
            trusted=trusted,
            trusted_share=self.config.trusted_fraction,
            least_trusted=self.least_trusted,
            empty=self.find_empty_cases(trusted, dataset.identifiers),
        )

    def get_dataloaders(self):
        """nnU-Net's loaders, with `build_train_loader` for training.

        The training labels stay integer maps at full resolution: regions and deep-supervision targets are made from
        the weighted soft target in the loss.
        """
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        labels = self.label_manager
        regions = labels.foreground_regions if labels.has_regions else None
        train_transforms = self.get_training_transforms(
            self.configuration_manager.patch_size,
            rotation,
            None,
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=self.configuration_manager.use_mask_for_norm,
            is_cascaded=self.is_cascaded,
            foreground_labels=labels.foreground_labels,
        )
        val_transforms = self.get_validation_transforms(
            self._get_deep_supervision_scales(),
            is_cascaded=self.is_cascaded,
            foreground_labels=labels.foreground_labels,
            regions=regions,
            ignore_label=labels.ignore_label,
        )
        dataset_train, dataset_val = self.get_tr_and_val_datasets()
        dataset_train.identifiers = self.labelled_cases(dataset_train.identifiers)
        train = self.build_train_loader(dataset_train, initial_patch_size, train_transforms)
        self._has_seen(self.shown_cases(train))
        val = nnUNetDataLoader(
            dataset_val,
            self.batch_size,
            self.configuration_manager.patch_size,
            self.configuration_manager.patch_size,
            labels,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=val_transforms,
        )
        workers = get_allowed_n_proc_DA()
        loaders = self._augmenter(train, workers, 6), self._augmenter(val, max(1, workers // 2) if workers else 0, 3)
        for loader in loaders:
            next(loader)  # starts the workers
        return loaders

    def shown_cases(self, loader: StratifiedDataLoader) -> Sequence[str]:
        """Cases whose labels this training is shown, sooner or later."""
        return loader.cases

    def _has_seen(self, cases: Sequence[str]) -> None:
        """Beside those before an interruption: splits and trusted cases may have changed."""
        self.seen = sorted({*self.seen, *cases})

    def _augmenter(self, loader: nnUNetDataLoader, workers: int, cached: int):
        if workers == 0:
            return SingleThreadedAugmenter(loader, None)
        return NonDetMultiThreadedAugmenter(
            data_loader=loader,
            transform=None,
            num_processes=workers,
            num_cached=max(cached, workers // 2),
            seeds=None,
            pin_memory=self.device.type == "cuda",
            wait_time=0.002,
        )

    # ---- one step -----------------------------------------------------------------------------------------------

    def forward(self, data: Tensor):
        """Student outputs (one tensor, or a list with deep supervision)."""
        with self.autocast():
            return self.network(data)

    def autocast(self):
        """nnU-Net's rule: half precision on CUDA only."""
        return autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax, or sigmoid for region heads."""
        return probabilities_of(logits, self.label_manager.has_regions)

    def to_device(self, data: Tensor) -> Tensor:
        data = data.to(self.device, non_blocking=True)
        return data.contiguous(memory_format=self.memory_format) if self.device.type == "cpu" else data

    def training_targets(self, batch: dict, data: Tensor, outputs, label: Tensor, valid: Tensor):
        """Soft target (B, K, *S) and weight (B, 1 or K, *S) of a batch; here the labels as given."""
        return label, valid

    def train_step(self, batch: dict) -> dict:
        data = self.to_device(batch["data"])
        label, valid = self.encoder(batch["target"][:, :1].to(self.device, non_blocking=True))
        self.optimizer.zero_grad(set_to_none=True)
        outputs = self.forward(data)
        target, weight = self.training_targets(batch, data, outputs, label, valid)
        del label, valid  # a map for every class
        loss = self.full_loss(outputs, target, weight) + self.further_loss()
        self.optimize(loss)
        return {"loss": loss.detach().cpu().numpy()}

    def further_loss(self) -> Tensor | float:
        """What is added to the loss of the network's outputs; asked for after `training_targets`."""
        return 0.0

    def optimize(self, loss: Tensor) -> None:
        """Backward, nnU-Net's gradient clipping and optimiser step, and `further_steps`."""
        if self.grad_scaler is None:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_norm)
            self.optimizer.step()
            self.further_steps()
            return
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_norm)
        self.grad_scaler.step(self.optimizer)
        self.further_steps()
        self.grad_scaler.update()

    def further_steps(self) -> None:
        """Steps of a subclass's own optimisers, through the gradient scaler where there is one."""

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def extra_state(self) -> dict:
        """What a subclass must keep to go on as if never stopped: plain dicts, strings and tensors."""
        return {}

    def load_extra_state(self, state: dict) -> None:
        """Takes what `extra_state` gave."""

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, named after nnU-Net's own class so that it predicts without this package.

        The architecture is nnU-Net's, but for subclasses that build their own, so any stock nnU-Net can load the
        weights. Our state and provenance lie under the key `metadcseg`.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        written = io.BytesIO()  # torch writes there as it does to a file: the disk sees the checkpoint once
        super().save_checkpoint(written)
        written.seek(0)
        checkpoint = torch.load(written, map_location="cpu", weights_only=False)
        checkpoint["trainer_name"] = stock_class_name(type(self))
        checkpoint["metadcseg"] = {
            "version": __version__,
            "trainer": type(self).__name__,
            "config": asdict(self.config),
            "state": self.extra_state(),
            "seen": list(self.seen),
            "random": random_state(),
        }
        # An interruption while writing leaves the last complete checkpoint in place.
        partial = f"{filename}.partial"
        torch.save(checkpoint, partial)
        os.replace(partial, filename)

    def load_checkpoint(self, filename_or_checkpoint) -> None:
        """nnU-Net's loading, plus our state; a stock checkpoint is taken without ours (weights only)."""
        if isinstance(filename_or_checkpoint, str):
            checkpoint = torch.load(filename_or_checkpoint, map_location=self.device, weights_only=False)
        else:
            checkpoint = filename_or_checkpoint
        super().load_checkpoint(filename_or_checkpoint)
        ours = checkpoint.get("metadcseg")
        if ours is not None:
            self.load_extra_state(ours["state"])
            self._has_seen(seen_in_training(ours) or ())
            self._random_state = ours["random"]

    def on_train_start(self) -> None:
        self._set_finished_model_aside()
        super().on_train_start()
        # Starting the loaders draws random numbers; a resumed run goes on from the numbers of the checkpoint.
        # Not with DDP: all ranks would take that of the first, and draw the same patches.
        if self._random_state is not None and not self.is_ddp:
            set_random_state(self._random_state)
        self._random_state = None

    def _set_finished_model_aside(self) -> None:
        """Of an earlier training in the same folder, when this one begins anew.

        nnU-Net continues from checkpoint_final.pth where there is one, so after an interruption it would take the old
        model for this training's result, and delete what this one had come to.
        """
        finished = Path(self.output_folder, "checkpoint_final.pth")
        replaces = self.current_epoch == 0 and not self.disable_checkpointing
        if self.local_rank == 0 and replaces and finished.is_file():
            os.replace(finished, finished.with_name(EARLIER_MODEL))
            self.print_to_log_file(
                f"The folder holds a finished model, which this training replaces; until then it is {EARLIER_MODEL}."
            )

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.local_rank == 0 and not self.disable_checkpointing:
            Path(self.output_folder, EARLIER_MODEL).unlink(missing_ok=True)


def full_resolution(outputs: Tensor | list[Tensor]) -> Tensor:
    """Full-resolution logits as the network gave them: the first output with deep supervision."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def first_output(outputs: Tensor | list[Tensor]) -> Tensor:
    """Full-resolution logits in fp32, without graph.

    Like the labels in the standard memory format: what follows works along whole maps of one class.
    """
    return full_resolution(outputs).detach().float().contiguous()


def stock_class_name(trainer: type) -> str:
    """Name of the nearest base class that nnU-Net itself ships and that builds the same network; else its own name."""
    build = trainer.build_network_architecture
    stock = (base for base in trainer.__mro__ if base.__module__.startswith("nnunetv2."))
    return next((base.__name__ for base in stock if base.build_network_architecture is build), trainer.__name__)


def random_state() -> dict:
    """State of the generators that the single-process loader and the training draw from."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}


def set_random_state(state: dict) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
