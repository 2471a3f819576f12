"""nnUNetTrainerMetaDCSeg: nnU-Net training that withstands wrong labels. Only wiring; the mathematics lies beside."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor, nn

from nnunetv2_metadcseg.class_locations import foreground_heads, patches_per_view
from nnunetv2_metadcseg.collective import Collective
from nnunetv2_metadcseg.config import MetaDCSegConfig
from nnunetv2_metadcseg.data_loading import ExtraSegChannels
from nnunetv2_metadcseg.doubt import doubted_cases, few_kept, taught_cases
from nnunetv2_metadcseg.epoch_statistics import counted, describe_epoch
from nnunetv2_metadcseg.feature_tap import FeatureTap, last_segmentation_layer, unwrap, without_deep_supervision
from nnunetv2_metadcseg.given_label_head import GivenLabelHead
from nnunetv2_metadcseg.losses import present_soft_dice
from nnunetv2_metadcseg.network_gain import NetworkGain, keep_compiled_graphs
from nnunetv2_metadcseg.opinion import OpinionNetwork, mix_layers, mixed_opinion
from nnunetv2_metadcseg.patches import Patches
from nnunetv2_metadcseg.teacher import MeanTeacher
from nnunetv2_metadcseg.trust_maps import PreprocessedTrustMaps, find_trust_maps, to_trust
from nnunetv2_metadcseg.trusted_trainer import TrustedBatchTrainer, full_resolution
from nnunetv2_metadcseg.weighting import LabelWeighting


class nnUNetTrainerMetaDCSeg(TrustedBatchTrainer):
    """MetaDCSeg (arXiv 2511.18894) in nnU-Net: learned trust in labels and pseudo-labels, Dynamic Center Distance.

    What predicts warms up on all labels, goes on with the trusted patches alone, then learns given-label patches whose
    target is the given label where a second opinion agrees and alpha label + beta pseudo-label where it does not. A
    second last layer learns the given labels as they are, so that their images teach the features throughout; as far as
    label errors cancel out, it learns no doubted cases and has a say in the second opinion, which is what predicts
    after the last step. Once wrong labels begin to be learned by heart, or hardly any label is right and they have been
    seen often, the trainer goes back to before and leaves out the doubted cases. See docs/method.md.
    """

    config = MetaDCSegConfig()
    weighting_class = LabelWeighting
    start_step = 0  # where the start begins

    # ---- set-up -------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        super().initialize()
        network = unwrap(self.network)
        last_segmentation_layer(network)  # says what is missing before anything is built on it
        self.collective = Collective()
        self.given_head = self._build_given_head() if self.config.given_head > 0 else None
        self.teacher = self._build_teacher(network) if self.config.teacher or self.config.memorised_share > 0 else None
        self.tap = FeatureTap(network)
        self.least_trusted = int(self.batch_size > 1)  # a step without one teaches worse (docs/lab_notebook.md, i)
        if self.config.influence == "network":
            keep_compiled_graphs()
        self.network_gain = NetworkGain(self.config.influence_momentum, self.collective)
        self._given_loss: Tensor | float = 0.0
        self.own_layer: dict | None = None  # the layer that predicts, once it has become the second opinion
        self.doubted: list[str] | None = None  # cases whose labels disagree more than trusted ones do, once asked
        self.has_memorised = False  # known by heart, or hardly any is right: doubted labels are left out by now
        self.weighting: LabelWeighting | None = None  # needs the cases: see build_train_loader
        self._weighting_state: dict | None = None  # of a checkpoint, until the cases are numbered
        self.training_step = 0
        self.trusted_dice_average: float | None = None
        self.best_trusted_dice: float | None = None
        self.has_trust_maps = False
        self.start_dice = 0.0  # running Dice on trusted patches, during the start only
        self.has_features = False  # it has reached `warm_up_dice`
        self._look = self.fuse(self._look)

    def _build_given_head(self) -> GivenLabelHead:
        return GivenLabelHead(
            last_segmentation_layer(self.network).in_channels,
            self.label_manager.num_segmentation_heads,
            self.config.given_head_learning_rate,
            self.device,
            self.collective,
        )

    def _build_teacher(self, network: nn.Module) -> MeanTeacher:
        """The average over time of `self.opinion`: the network with its two last layers."""
        given = self.given_head.layer if self.given_head is not None and self.config.given_opinion else None
        self.opinion = OpinionNetwork(network, given, self.label_manager.has_regions)
        low, high = self.config.teacher_horizon
        horizon = min(max(low, round(self.config.teacher_fraction * self.total_steps)), high)
        teacher = MeanTeacher(self.opinion, horizon)
        without_deep_supervision(teacher.module.network)
        return teacher

    def get_tr_and_val_datasets(self):
        """nnU-Net's data sets; the training one carries the user's trust maps where there are any (trust_maps.py)."""
        train, val = super().get_tr_and_val_datasets()
        maps = self._find_trust_maps()
        if not maps:
            return train, val
        self._describe_trust_maps(maps, train.identifiers)
        folder = join(self.preprocessed_dataset_folder, "trust_maps")
        self.has_trust_maps = True
        managers = self.plans_manager, self.configuration_manager
        prepared = PreprocessedTrustMaps(maps, folder, train, *managers, self.print_to_log_file)
        return ExtraSegChannels(train, prepared), val

    def _describe_trust_maps(self, maps: Iterable[str], training: list[str]) -> None:
        """How many of the user's maps count in this fold, and which do not though they lie in it."""
        trusted = sorted(set(maps) & set(self.trusted_cases(training)))
        count = len(set(maps) & set(training)) - len(trusted)
        self.print_to_log_file(f"{count} trust maps are of doubtful cases of this fold; they multiply alpha.")
        if trusted:
            self.print_to_log_file(
                f"WARNING: the trust maps of {', '.join(trusted)} are not used, since these cases are trusted as a "
                "whole; trust only cases of which every voxel was checked."
            )

    def _find_trust_maps(self) -> dict[str, Path]:
        """The user's, by case; none without nnUNet_raw."""
        if not nnUNet_raw.is_set():
            return {}
        maps = find_trust_maps(
            join(nnUNet_raw, self.plans_manager.dataset_name),
            self.dataset_json["file_ending"],
            self.dataset_class.get_identifiers(self.preprocessed_dataset_folder),
        )
        if maps and self.is_cascaded:
            raise ValueError(
                f"{len(maps)} trust maps were found, but a cascade's second stage cannot carry them; "
                "train 3d_fullres or 3d_lowres, or move labelsTrust away."
            )
        return maps

    def build_train_loader(self, dataset, initial_patch_size, transforms) -> nnUNetDataLoader:
        """As in the base class; also numbers the cases and makes the weighting for them.

        Raises:
            ValueError: one patch per GPU: no room for a given-label and a trusted one.
        """
        if self.collective.world_size > 1 and self.batch_size < 2:
            raise ValueError(
                f"Batch size {self.batch_size} on one of {self.collective.world_size} GPUs; MetaDCSeg needs a "
                "given-label and a trusted patch on each: use fewer GPUs (-num_gpus) or a larger batch in the plans."
            )
        loader = super().build_train_loader(dataset, initial_patch_size, transforms)
        self.case_index = {case: i for i, case in enumerate(dict.fromkeys(dataset.identifiers))}
        trusted = self._case_mask(loader.trusted)
        self.taught = torch.ones(len(trusted), device=self.device)
        self.patches_per_view = patches_per_view(
            *(self.dataset_json["labels"], dataset.identifiers, self._class_locations),
            self.configuration_manager.patch_size,
        )
        self.weighting = self.weighting_class(
            *(self.config, self.label_manager.has_regions, trusted, self.collective),
            memorisation_horizon=max(
                1, round(self._steps(self.config.memorisation_fraction, self.config.memorisation_visits))
            ),
            fuse=self.fuse,
            spacing=tuple(self.configuration_manager.spacing),
        )
        self.weighting.agreement.empty = self._case_mask(loader.empty)
        self.weighting.known_classes.absent = self._absent_heads()
        if self._weighting_state is not None:
            self._restore_weighting(self._weighting_state, loader.trusted)
            self._weighting_state = None
        self.train_loader = loader
        if self.has_memorised:
            self._leave_out(self.doubted)
        self._set_trusted_share()
        return loader

    def _case_mask(self, cases: Iterable[str]) -> Tensor:
        """Which of the numbered cases these are: bool."""
        mask = torch.zeros(len(self.case_index), dtype=torch.bool, device=self.device)
        mask[[self.case_index[case] for case in cases]] = True
        return mask

    def _absent_heads(self) -> Tensor | None:
        """Foreground heads (K,) whose class no trusted case holds; None: there are none."""
        manager = self.label_manager
        heads = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        absent = foreground_heads(self.absent_classes, self.dataset_json["labels"], heads)
        return torch.tensor(absent, device=self.device) if any(absent) else None

    def _set_trusted_share(self) -> None:
        """As many trusted patches as one-sided label errors ask for. Waits for the device: not for every step.

        When cases are left out, the others are drawn alike.
        """
        self.train_loader.trusted_share = self._wanted_trusted_share()

    def _wanted_trusted_share(self) -> float:
        most = self.config.trusted_fraction
        if self.has_memorised:
            trusted, given = len(self.train_loader.trusted), len(self.train_loader.given)
            return trusted / (trusted + given)
        if self.warming_up:
            return most
        if self.starting and self.given_head is None:
            return 1.0  # nothing learns given labels
        least = min(most, self.config.least_trusted_fraction)
        return least + (most - least) * float(self.weighting.bias)

    @property
    def starting(self) -> bool:
        """Still in the first part of the training, in which predictions are learned from trusted patches only.

        But for its beginning, the warm-up. It lasts until the trusted patches are learned well enough for the teacher
        to have a say, within bounds.
        """
        fractions, visits = self.config.start_fractions, self.config.start_visits
        low, high = self._steps(fractions[0], visits[0]), self._steps(fractions[1], visits[1], self.config.start_steps)
        step = self.training_step - self.start_step
        return step < low or (self.start_dice < self.config.start_dice and step < high)

    @property
    def warming_up(self) -> bool:
        """Still in the first part of the start, in which what predicts learns all labels as they are."""
        config = self.config
        longest = self._steps(config.warm_up_fraction, config.warm_up_visits, config.warm_up_steps)
        return self.starting and not self.has_features and self.training_step - self.start_step < longest

    def _steps(self, fraction: float, visits: float, least: float = 0) -> float:
        """Steps of this share of the training, or of so many visits of every case, but `least`, where they are fewer.

        A visit shows the structure of a case once.
        """
        patches = visits * self.patches_per_view * len(self.case_index)
        return min(fraction * self.total_steps, max(patches / self.configuration_manager.batch_size, least))

    @property
    def left_out(self) -> list[str] | None:
        """Cases that are not learned from any more; None before any were left out."""
        return self.doubted if self.has_memorised else None

    @property
    def phase(self) -> str:
        """What is trained on now, for the log."""
        if self.has_memorised:
            return f"without {len(self.left_out)} doubted cases"
        if self.starting:
            if self.warming_up:
                return "warm-up: all labels as they are"
            return "trusted patches" + (", the second last layer given labels" if self.given_head is not None else "")
        return f"given labels and trusted patches, {len(self.doubted or [])} cases doubted"

    # ---- one step -----------------------------------------------------------------------------------------------

    def train_step(self, batch: dict) -> dict:
        before = self.warming_up, self.starting
        result = super().train_step(batch)
        if self.teacher is not None and not self.has_memorised:
            self.teacher.update()
        self.training_step += 1
        if before != (self.warming_up, self.starting):
            if before[0]:
                self.weighting.forget_one_sidedness()  # of layers that had learned little
            self._set_trusted_share()
        return result

    def training_targets(self, batch: dict, data: Tensor, outputs, label: Tensor, valid: Tensor):
        """Labels as they are on trusted patches, mixed targets and weights on given-label patches."""
        features, num_given = self.tap.pop(), batch["num_given"]
        given = slice(0, num_given)
        trust, cases = self._user_trust(batch, given), self.case_numbers(batch)
        taught = self._taught_patches(cases[given], trust, valid.ndim)
        logits = full_resolution(outputs).detach()
        noted, logits, student, opinion, valid = self._look(features, logits, label, valid, num_given, taught)
        features = features.detach()
        self._note(*noted)
        if self.has_memorised or self.warming_up:
            return label, torch.cat([valid[given] * taught, valid[num_given:]])
        if self.starting or self._some_rank_has_one_kind(num_given, len(data)):
            return label, torch.cat([torch.zeros_like(valid[:num_given]), valid[num_given:]])
        teacher = self._teacher_opinion(data, student, num_given) if self.config.teacher else opinion
        del opinion  # a map for every class
        loss = self.local_loss.single if self.config.influence == "head" else None
        patches = Patches(features, student, teacher, label, valid, cases)
        found = self.weighting.observe(patches, logits, loss, num_given)
        if num_given < len(data):
            self._move_network_direction(outputs, label, valid, num_given)
        if num_given == 0:
            return label, valid
        learn = self._meta_rate()
        found = found[given]
        gain = self._network_gain(data[given], logits[given], label[given], found.pseudo, learn)
        _, target, weight = self.weighting.targets(patches[given], found, trust, gain, learn)
        rest = valid[num_given:].expand(-1, weight.shape[1], *valid.shape[2:])
        return torch.cat([target, label[num_given:]]), torch.cat([weight, rest])

    def case_numbers(self, batch: dict) -> Tensor:
        """Of the patches' cases, (B,), as `case_index` has them; the host does not wait for the device."""
        return torch.tensor([self.case_index[case] for case in batch["keys"]]).to(self.device, non_blocking=True)

    def _taught_patches(self, cases: Tensor, trust: Tensor | None, dims: int) -> Tensor:
        """How far given labels are learned as they are: (num_given, 1, *S), or of as many axes (`dims`) of length one.

        Args:
            cases: (num_given,). trust: the user's, (num_given, 1, *S), or None.
        """
        taught = self.taught[cases].view(-1, *[1] * (dims - 1))
        return taught if trust is None else taught * trust

    def _look(
        self, features: Tensor, logits: Tensor, label: Tensor, valid: Tensor, num_given: int, taught: Tensor
    ) -> tuple[tuple[Tensor | float, Tensor, Tensor | None], Tensor, Tensor, Tensor, Tensor]:
        """What the two last layers predict, and what both get wrong on trusted patches.

        Args:
            features: (B, C, *S), with their gradient. logits: (B, K, *S) of the layer that predicts, without.
            label: (B, K, *S). valid: (B, 1, *S). taught: see `_taught_patches`.

        Returns:
            What `_note` takes; logits in fp32; probabilities of the layer that predicts, and of both together
            (B, K, *S); what counts (B, 1, *S).
        """
        loss, said = self._given_label_loss(features, label, valid, num_given, taught)
        with torch.no_grad():
            logits, trusted = logits.float().contiguous(), slice(num_given, None)
            layers = [logits] if said is None else [logits, said]
            del said  # a map for every class, which `_second_opinion` lets go
            student, opinion, valid, bias = self._second_opinion(layers, label, valid, trusted)
            maps = (x[trusted] for x in (student, label, valid))
            dice = present_soft_dice(*maps, self.label_manager.has_regions)
        return (loss, dice, bias), logits, student, opinion, valid

    def _given_label_loss(
        self, features: Tensor, label: Tensor, valid: Tensor, num_given: int, taught: Tensor
    ) -> tuple[Tensor | float, Tensor | None]:
        """Loss of the second last layer on given-label patches, and its logits on all patches, (B, K, *S).

        Zero and None without such a layer.
        """
        if self.given_head is None:
            return 0.0, None
        with self.autocast():
            logits = self.given_head(features[:num_given])
            with torch.no_grad():
                rest = self.given_head(features[num_given:])
        loss = 0.0
        if num_given > 0:
            loss = self.config.given_head * self.local_loss.single(
                logits, label[:num_given], valid[:num_given] * taught
            )
        return loss, torch.cat([logits.detach(), rest]).float()

    def _second_opinion(
        self, layers: list[Tensor], label: Tensor, valid: Tensor, trusted: slice
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Probabilities of the layer that predicts, of both layers together, what counts, and one-sidedness.

        Args:
            layers: logits of the layer that predicts and, where there is one, of the second last one; empty afterwards.
            trusted: the trusted patches.
        """
        if self.grad_scaler is not None:
            # Half precision may overflow. The gradient scaler leaves such a step out; running averages would keep it.
            finite = sum(x.sum() for x in layers).isfinite()
            layers[:], valid = [torch.where(finite, x, 0.0) for x in layers], valid * finite
        student, *rest = map(self.probabilities, layers)
        layers.clear()
        opinion, bias = student, None
        for said in rest:
            self.weighting.observe_bias(*(x[trusted] for x in (said, student, label, valid)))
            bias = self.weighting.bias
            if self.config.given_opinion and not self.config.teacher:
                opinion = mixed_opinion(student, said, bias)
        return student, opinion, valid, bias

    def further_loss(self) -> Tensor | float:
        loss, self._given_loss = self._given_loss, 0.0
        return loss

    def further_steps(self) -> None:
        if self.given_head is not None:
            self.given_head.step(max(0.0, 1 - self.training_step / self.total_steps) ** 0.9, self.grad_scaler)

    def _some_rank_has_one_kind(self, num_given: int, count: int) -> bool:
        """DDP only: some rank's batch lacks given-label or trusted patches, so all must skip this step's reductions.

        Happens at the end of the start: the ranks' workers have made different numbers of batches in advance.
        """
        if self.collective.world_size == 1:
            return False
        return bool(self.collective.sum(torch.tensor(float(not 0 < num_given < count), device=self.device)))

    def _teacher_opinion(self, data: Tensor, student: Tensor, num_given: int) -> Tensor:
        """The teacher's probabilities (B', K, *S) of given-label images and, on some steps, the trusted ones."""
        count = len(data) if self._calibrates else num_given
        if count == 0:
            return student[:0]
        self.teacher.module.bias = self.weighting.bias
        with torch.no_grad(), self.autocast():
            opinion = self.teacher.module.probabilities(data[:count])
        if self.grad_scaler is None:
            return opinion
        # Half precision may overflow here though it did not in the student.
        return torch.where(opinion.isfinite(), opinion, student[:count])

    @property
    def _calibrates(self) -> bool:
        """Whether the teacher looks at this step's trusted patches too: every so often, whatever their share."""
        rate = min(1.0, self.config.calibration_share / self.train_loader.trusted_share)
        return int((self.training_step + 1) * rate) > int(self.training_step * rate)

    def _meta_rate(self) -> float | None:
        """Share of the meta learning rate now, falling to zero over the training; None on steps without a meta step."""
        if self.config.influence == "none" or self.training_step % self.config.meta_interval:
            return None
        return max(0.0, 1 - self.training_step / self.total_steps)

    def _move_network_direction(self, outputs, label: Tensor, valid: Tensor, num_given: int) -> None:
        if self.config.influence != "network" or self._meta_rate() is None:
            return
        trusted = slice(num_given, None)
        loss = self.local_loss.single(full_resolution(outputs)[trusted].float(), label[trusted], valid[trusted])
        self.network_gain.update(unwrap(self.network), loss, self._gradient_scale())

    def _gradient_scale(self) -> Tensor | float:
        """What nnU-Net's gradient scaler multiplies losses by now. Its own `get_scale` would wait for the device."""
        return 1.0 if self.grad_scaler is None else self.grad_scaler.scale(torch.ones((), device=self.device))

    def _network_gain(
        self, data: Tensor, logits: Tensor, label: Tensor, pseudo: Tensor, learn: float | None
    ) -> Tensor | None:
        if self.config.influence != "network" or learn is None:
            return None
        with self.autocast():
            gain = self.network_gain(unwrap(self.network), data, logits, label, pseudo, self.label_manager.has_regions)
        self.tap.features = None
        return gain

    def _user_trust(self, batch: dict, given: slice) -> Tensor | None:
        return to_trust(batch["target"][given, 1:2].to(self.device)) if self.has_trust_maps else None

    def _note(self, loss: Tensor | float, dice: Tensor, bias: Tensor | None) -> None:
        """For the step's loss, the log, and the end of the start.

        Args:
            loss: of the second last layer. dice: on trusted patches, nan without any. bias: one-sidedness, or None.
        """
        self._given_loss = loss
        self.weighting.statistics.add(trusted_dice=dice)
        if bias is not None:
            self.weighting.statistics.add(label_bias=bias)
        if self.starting:
            total, count = self.collective.sum(counted(dice)).tolist()
            if count:
                self.start_dice += 0.05 * (total / count - self.start_dice)
                self.has_features |= self.start_dice >= self.config.warm_up_dice

    # ---- log ----------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.weighting.statistics.reset()
        self.weighting.note_one_sidedness()
        self._doubt()
        self._set_trusted_share()

    def _doubt(self) -> None:
        """Doubted labels teach the second last layer less, and nothing at all once they must be left out."""
        watch, agreement = self.weighting.memorisation, self.weighting.agreement
        if self.has_memorised or self.starting or not watch.is_full():
            return
        doubted = doubted_cases(agreement.history, agreement.trusted).float().to(self.device)
        doubted = self.collective.first(doubted) > 0  # rounding may differ between ranks
        self.doubted = [case for case, is_doubted in zip(self.case_index, doubted.tolist(), strict=True) if is_doubted]
        few = bool(few_kept(doubted, agreement.trusted))
        # With nobody doubted, going on with labels "as they are" would only give up the protection.
        if self.config.memorised_share > 0 and self.doubted and self._must_go_back(few):
            self._go_back(few)
        elif self.config.skip_doubted:
            self.taught = taught_cases(doubted, agreement.trusted, self.weighting.bias)

    def _must_go_back(self, few: bool) -> bool:
        """Wrong labels begin to be known by heart, or hardly any label is right and they were seen often.

        Args:
            few: hardly any given label is not doubted.
        """
        config, bias = self.config, float(self.weighting.bias)
        # Not where the labels left would be wrong the same way.
        begun = bias < config.most_one_sided and self.weighting.memorisation.has_begun()
        often = self._steps(math.inf, config.all_doubted_visits)
        alone = few and bias < config.most_one_sided_alone and self.training_step - self.start_step >= often
        decided = torch.tensor(float(begun or alone), device=self.device)
        return bool(self.collective.first(decided))  # one rank alone must not go back

    def _go_back(self, few: bool) -> None:
        """To the average over the last steps, which knows less of the wrong labels, and on without doubted cases."""
        self._leave_out(self.doubted)
        self.opinion.load_state_dict(self.teacher.module.state_dict())
        given = len(self.train_loader.given)
        begun = "The network has begun to learn wrong labels by heart"
        why = "Hardly any label agrees with the network" if few else begun
        self.print_to_log_file(
            f"{why}. It goes back to its average over the last steps and learns from the trusted cases and the {given} "
            "others whose labels disagree with it no more than trusted ones do, as they are. "
            f"Left out: {', '.join(self.left_out)}."
        )

    def _leave_out(self, cases: list[str]) -> None:
        """No patches of these cases any more; those in batches that worker processes have made before teach nothing."""
        self.doubted, self.has_memorised = cases, True
        self.train_loader.leave_out(cases)
        self.train_loader.least_trusted = 0
        self.taught = torch.ones_like(self.taught)
        self.taught[[self.case_index[case] for case in cases]] = 0.0

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        means = self.weighting.statistics.means()
        self.epoch_trusted_dice = means.get("trusted_dice", math.nan)
        self.print_to_log_file(describe_epoch(means, self.phase))
        # nnU-Net's local logger knows fixed keys only; the others (Weights & Biases) take ours.
        for logger in self.logger.loggers:
            for name, value in means.items():
                logger.log(f"metadcseg/{name}", value, self.current_epoch)

    # ---- the end ------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """As in the base class; a finished training goes on as if it had not been finished."""
        super().on_train_start()
        if self.own_layer is not None:
            last_segmentation_layer(self.network).load_state_dict(self.own_layer)
            self.own_layer = None

    def on_train_end(self) -> None:
        """As in the base class; names the doubted cases, and from then on the second opinion predicts."""
        self._predict_opinion()
        if self.doubted is not None:
            self.print_to_log_file(
                f"{len(self.doubted)} labels disagree with the second opinion more than trusted ones do: "
                f"{', '.join(self.doubted) or 'none'}. `metadcseg audit` ranks all cases and shows where."
            )
        super().on_train_end()

    def _predict_opinion(self) -> None:
        """Make the layer that predicts the mixture of the two last layers that the second opinion is."""
        if self.given_head is None or not (self.config.given_opinion and self.config.predict_opinion):
            return
        layer, bias = last_segmentation_layer(self.network), self.weighting.bias
        self.own_layer = {name: value.clone() for name, value in layer.state_dict().items()}
        mix_layers(layer, self.given_head.layer, bias)
        self.print_to_log_file(
            f"What predicts from now on has a share of {1 - float(bias):.2f} of what was learned of the given labels."
        )

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def on_epoch_end(self) -> None:
        """nnU-Net's epoch end, but `checkpoint_best` follows the Dice on trusted patches.

        nnU-Net's pseudo Dice is measured on doubtful validation labels, so its best epoch is the one that fits their
        noise best. Ours: moving average over epochs (0.9, as nnU-Net's) of the Dice on trusted training patches after
        the start. Until then every epoch's, so that an interrupted training can go on. `checkpoint_final` remains the
        one to use (docs/method.md).
        """
        improved = self._track_trusted_dice()
        self._best_ema = math.inf  # nnU-Net then never sees a new best
        super().on_epoch_end()
        self._best_ema = self.best_trusted_dice
        if improved:
            self.print_to_log_file(f"New best Dice on trusted patches (moving average): {self.best_trusted_dice:.4f}")
        if improved or self.best_trusted_dice is None:
            self.current_epoch -= 1  # nnU-Net has already counted this epoch
            self.save_checkpoint(join(self.output_folder, "checkpoint_best.pth"))
            self.current_epoch += 1

    def _track_trusted_dice(self) -> bool:
        """Moves the average over epochs; true where it is the best so far."""
        if self.starting or not math.isfinite(self.epoch_trusted_dice):
            return False
        average, new = self.trusted_dice_average, self.epoch_trusted_dice
        self.trusted_dice_average = new if average is None else 0.9 * average + 0.1 * new
        if self.best_trusted_dice is not None and self.trusted_dice_average <= self.best_trusted_dice:
            return False
        self.best_trusted_dice = self.trusted_dice_average
        return True

    def save_checkpoint(self, filename: str) -> None:
        """As in the base class; the best Dice in it is ours, whatever nnU-Net's epoch end is made to see."""
        seen, self._best_ema = self._best_ema, self.best_trusted_dice
        super().save_checkpoint(filename)
        self._best_ema = seen

    def extra_state(self) -> dict:
        average = None if self.teacher is None else self.teacher.state_dict()
        speaks = self.config.teacher or self.has_memorised  # alpha was last made with the average's opinion
        return {
            "step": self.training_step,
            "start_dice": self.start_dice,
            "has_features": self.has_features,
            "trusted_dice_average": self.trusted_dice_average,
            "best_trusted_dice": self.best_trusted_dice,
            "teacher": average if speaks else None,
            "silent_teacher": None if speaks else average,
            "doubted": self.doubted,
            "left_out": self.left_out,
            "network_gain": self.network_gain.direction,
            "own_layer": self.own_layer,
            "given_head": None if self.given_head is None else self.given_head.state_dict(),
            "cases": list(self.case_index),
            "trusted": self.train_loader.trusted,
            "weighting": self.weighting.state_dict(),
        }

    def load_extra_state(self, state: dict) -> None:
        self.training_step = state["step"]
        self.start_dice = state["start_dice"]
        # Checkpoints before 2026-11-30 have none.
        self.has_features = state.get("has_features", self.start_dice >= self.config.warm_up_dice)
        self.trusted_dice_average = state["trusted_dice_average"]
        self._best_ema = self.best_trusted_dice = state["best_trusted_dice"]
        left_out = state.get("left_out")  # checkpoints before 2026-11-28 have none
        self.doubted, self.has_memorised = state.get("doubted", left_out), left_out is not None
        average = state["teacher"] or state.get("silent_teacher")  # checkpoints before 2026-11-27 may have neither
        if self.teacher is not None and average is not None:
            self.teacher.load_state_dict(average)
        self.network_gain.direction = state["network_gain"]
        self.own_layer = state.get("own_layer")  # checkpoints before 2026-11-29 have none
        if self.given_head is not None:
            self.given_head.load_state_dict(state["given_head"])
        self._weighting_state = {name: state.get(name) for name in ("cases", "trusted", "weighting")}

    def _restore_weighting(self, state: dict, trusted: list[str]) -> None:
        """The weighting's state belongs to numbered cases, trusted or not, so they must still be the same."""
        if state["cases"] != list(self.case_index):
            raise ValueError(
                f"The checkpoint was trained on {len(state['cases'])} cases that are not the {len(self.case_index)} of "
                "this fold now; restore the old splits_final.json to continue, or train anew without --c."
            )
        if state["trusted"] is not None and set(state["trusted"]) != set(trusted):
            raise ValueError(
                f"The checkpoint was trained with {len(state['trusted'])} trusted cases that are not the "
                f"{len(trusted)} of this fold now; restore the old trusted_cases.json to continue, or train anew "
                "without --c."
            )
        self.weighting.load_state_dict(state["weighting"])
