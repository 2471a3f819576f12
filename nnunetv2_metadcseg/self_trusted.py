"""nnUNetTrainerMetaDCSegSelfTrusted: MetaDCSeg where nobody has checked any label; it chooses the trusted cases itself.

It trains on all given labels first and notes how well each agrees with what the network predicts before it has learned
that label by heart (trusted_choice.py). The best-agreeing cases become the trusted ones; MetaDCSeg goes on from there.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass

import torch
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor

from nnunetv2_metadcseg.agreement import class_overlaps
from nnunetv2_metadcseg.config import MetaDCSegConfig
from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg
from nnunetv2_metadcseg.trusted_cases import TrustedCasesError, read_trusted_cases
from nnunetv2_metadcseg.trusted_choice import CaseScores, choose_cases
from nnunetv2_metadcseg.trusted_trainer import first_output

FILE_NAME = "self_trusted_cases.json"


@dataclass(frozen=True)
class SelfTrustedConfig(MetaDCSegConfig):
    """Settings of nnUNetTrainerMetaDCSegSelfTrusted: those of MetaDCSeg, and how the trusted cases are chosen."""

    # The choice is made after the first of these shares of the training, but no later than after so many visits of
    # every case (or, as few cases are soon visited, so many steps): no label is learned by heart by then. But in any
    # case after so many patches per case, within the second share: the predictions mean something by then.
    early_fractions: tuple[float, float] = (0.1, 0.3)
    early_visits: float = 20
    early_steps: int = 1000
    early_patches: float = 5
    # Visits of that share of the early phase weigh most: predictions of the first steps say nothing.
    score_memory: float = 0.3
    # Share of the fold's cases to trust, and their least number.
    chosen_share: float = 0.1
    least_chosen: int = 2


class nnUNetTrainerMetaDCSegSelfTrusted(nnUNetTrainerMetaDCSeg):
    """MetaDCSeg that chooses its trusted cases itself, by agreement with an early training on all given labels.

    Declared trusted cases are ignored, and the log says so: nnUNetTrainerMetaDCSeg uses them. The choice is written to
    `self_trusted_cases.json` in the fold's output folder. See docs/method.md for the rule and what it cannot do.
    """

    config = SelfTrustedConfig()

    # ---- set-up -------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        super().initialize()
        self.chosen: list[str] = []  # empty until the choice
        self._scores_state: dict | None = None  # of a checkpoint, until the cases are numbered

    def trusted_cases(self, training: list[str]) -> list[str]:
        """The chosen ones; none before the choice.

        Raises:
            TrustedCasesError: fewer than three training cases.
        """
        if len(training) <= self.config.least_chosen:
            raise TrustedCasesError(
                f"Found {len(training)} training cases, expected more than the {self.config.least_chosen} that "
                f"{type(self).__name__} must trust; add cases, or declare trusted cases for nnUNetTrainerMetaDCSeg."
            )
        return [case for case in training if case in self.chosen]

    def declared_cases(self) -> list[str]:
        """What the data set declares, which this trainer does not use; a broken declaration counts as none."""
        try:
            return read_trusted_cases(self.preprocessed_dataset_folder_base, self.dataset_json)
        except TrustedCasesError:
            return []

    def build_train_loader(self, dataset, initial_patch_size, transforms) -> nnUNetDataLoader:
        loader = super().build_train_loader(dataset, initial_patch_size, transforms)
        if not self.chosen:
            classes = self.encoder.num_heads - (not self.label_manager.has_regions)
            memory = self.config.score_memory * self.early_steps
            self.scores = CaseScores(len(self.case_index), classes, memory, self.device, self.collective)
            if self._scores_state is not None:
                self.scores.load_state_dict(self._scores_state)
            self._announce()
        return loader

    @property
    def early_steps(self) -> int:
        """Steps before the choice, at least one."""
        config, (share, most) = self.config, self.config.early_fractions
        soon = self._steps(share, config.early_visits, config.early_steps)
        return max(1, round(max(soon, self._steps(most, config.early_patches / self.patches_per_view))))

    def _announce(self) -> None:
        patches = self.early_steps * self.configuration_manager.batch_size / len(self.case_index)
        self.print_to_log_file(
            f"The trusted cases are chosen after {self.early_steps} of {self.total_steps} steps on all given labels "
            f"({patches:.1f} patches per case on average)."
        )
        declared = self.declared_cases()
        if declared:
            self.print_to_log_file(
                f"WARNING: {len(declared)} trusted cases are declared, but {type(self).__name__} chooses its own; "
                "train nnUNetTrainerMetaDCSeg to use them."
            )

    @property
    def start_step(self) -> int:
        return self.early_steps

    @property
    def phase(self) -> str:
        return super().phase if self.chosen else "all given labels; the trusted cases are not chosen yet"

    # ---- one step -----------------------------------------------------------------------------------------------

    def train_step(self, batch: dict) -> dict:
        result = super().train_step(batch)
        if not self.chosen and self.training_step >= self.early_steps:
            self._choose()
        return result

    def further_steps(self) -> None:
        """No steps without a gradient before the choice: Adam would count them, and begin with far too large ones."""
        if self.chosen:
            super().further_steps()

    def training_targets(self, batch: dict, data: Tensor, outputs, label: Tensor, valid: Tensor):
        """Before the choice, and for batches made before it, the labels as given; then as MetaDCSeg."""
        if not self.chosen:
            self._observe(batch, first_output(outputs), label, valid)
        elif not self._some_rank_has_an_early_batch(batch):
            return super().training_targets(batch, data, outputs, label, valid)
        self.tap.pop()
        return label, valid

    def _observe(self, batch: dict, logits: Tensor, label: Tensor, valid: Tensor) -> None:
        """Scores the cases by the student's own logits, which were computed before it learned from this batch."""
        overlaps = class_overlaps(self.probabilities(logits), label, valid, self.label_manager.has_regions)
        self.scores.update(self.case_numbers(batch), overlaps)
        self.weighting.statistics.add(agreement=self.scores.class_dice().mean())

    def _some_rank_has_an_early_batch(self, batch: dict) -> bool:
        """Workers make batches in advance; with DDP all ranks must do the same, since MetaDCSeg makes reductions."""
        early = bool(batch["undivided"])
        if self.collective.world_size == 1:
            return early
        return bool(self.collective.sum(torch.tensor(float(early), device=self.device)))

    # ---- the choice ---------------------------------------------------------------------------------------------

    def _choose(self) -> None:
        cases = list(self.case_index)
        scores = self.collective.first(self.scores.scores()).tolist()  # sums over ranks may differ by rounding
        count = max(self.config.least_chosen, round(self.config.chosen_share * len(cases)))
        best = choose_cases(scores, self.scores.labelled.tolist(), min(count, len(cases) - 1))
        if not best:
            raise TrustedCasesError(
                f"None of the {len(cases)} training cases showed labelled foreground in the {self.early_steps} steps "
                "of the early phase, so none can be trusted; check the labels, or train longer."
            )
        self.chosen = [cases[i] for i in sorted(best)]
        self.weighting.agreement.trusted[sorted(best)] = True
        if self.teacher is not None:  # it has averaged over networks that learned the wrong labels
            self.teacher.updates = 0
        self.train_loader.set_trusted(self.chosen)
        self._report({cases[i]: scores[i] for i in best}, dict(zip(cases, scores, strict=True)))
        self.absent_classes = self.find_absent_classes(self.chosen, cases)
        self.weighting.known_classes.absent = self._absent_heads()

    def _report(self, chosen: dict[str, float], scores: dict[str, float]) -> None:
        """Log the choice by name and write it to the fold's output folder."""
        named = ", ".join(f"{case} ({score:+.3f})" for case, score in chosen.items())
        self.print_to_log_file(
            f"Chosen after {self.training_step} steps as trusted, by agreement with the predictions (Dice beyond the "
            f"mean of the class): {named}"
        )
        declared = set(self.declared_cases())
        if declared:
            self.print_to_log_file(f"{len(declared & set(chosen))} of these {len(chosen)} are declared trusted cases.")
        if self.local_rank != 0:
            return
        content = {
            "cases": self.chosen,
            "step": self.training_step,
            "early_agreement": self.scores.class_dice().tolist(),
            "scores": {case: None if math.isnan(score) else round(score, 6) for case, score in scores.items()},
        }
        file = join(self.output_folder, FILE_NAME)
        with open(f"{file}.partial", "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=2)
        os.replace(f"{file}.partial", file)

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def extra_state(self) -> dict:
        return super().extra_state() | {
            "self_trusted": {"chosen": self.chosen, "scores": None if self.chosen else self.scores.state_dict()}
        }

    def load_extra_state(self, state: dict) -> None:
        super().load_extra_state(state)
        self.chosen = list(state["self_trusted"]["chosen"])
        self._scores_state = state["self_trusted"]["scores"]
