"""From a batch's predictions to soft targets and voxel weights: the parts of MetaDCSeg together, without nnU-Net."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nnunetv2_metadcseg.agreement import (
    NUM_DIRECTIONS,
    CaseAgreement,
    Disagreement,
    disagreement,
    foreground,
    hard_labels,
)
from nnunetv2_metadcseg.center_distance import CenterDistance, region_weights
from nnunetv2_metadcseg.collective import Collective
from nnunetv2_metadcseg.config import MetaDCSegConfig
from nnunetv2_metadcseg.epoch_statistics import EpochStatistics
from nnunetv2_metadcseg.evidence import (
    NUM_VOXEL_INPUTS,
    TEACHER_OF_LABEL,
    TEACHER_OF_PSEUDO,
    Evidence,
    at_decisions,
    at_voxels,
    collect,
)
from nnunetv2_metadcseg.given_label_head import LabelBias
from nnunetv2_metadcseg.influence import HeadInfluence, logit_gradient
from nnunetv2_metadcseg.memorisation import MemorisationWatch
from nnunetv2_metadcseg.meta_weights import MetaWeights


class LabelWeighting:
    """Learns alpha (belief in the given label) and beta (in the pseudo-label) and makes targets and weights of them.

    Args:
        config: settings. regions: sigmoid heads.
        trusted: (number of cases,) bool, which of the numbered cases are trusted.
        collective: reductions over DDP ranks.
        memorisation_horizon: steps over which the watch on memorisation averages.
    """

    def __init__(
        self,
        config: MetaDCSegConfig,
        regions: bool,
        trusted: Tensor,
        collective: Collective | None = None,
        memorisation_horizon: int = 1,
    ) -> None:
        self.config, self.regions = config, regions
        self.collective = collective or Collective()
        self.agreement = CaseAgreement(
            len(trusted),
            trusted,
            config.case_momentum,
            config.best_share,
            config.max_optimism,
            self.collective,
        )
        self.centers = CenterDistance(config.center_momentum, config.dcd_temperature, config.dcd_strength)
        self.direction = HeadInfluence(config.influence_momentum)
        self.meta = MetaWeights(
            NUM_VOXEL_INPUTS + (NUM_DIRECTIONS if config.context else 0),
            config.meta_hidden,
            learning_rate=config.meta_learning_rate,
            pull=config.meta_pull,
            device=trusted.device,
            collective=self.collective,
        )
        self.mean_odds: Tensor | None = None  # of the given label by the teacher, where they disagree
        self.label_bias = LabelBias(config.bias_momentum, trusted.device, self.collective)
        self.memorisation = MemorisationWatch(memorisation_horizon, config.memorised_share, device=trusted.device)
        self.statistics = EpochStatistics()

    @property
    def bias(self) -> Tensor:
        """One-sidedness of label errors, a scalar in [0, 1]; 1 while nothing is known."""
        return self.label_bias()

    # ---- what is learned from every batch -----------------------------------------------------------------------

    @torch.no_grad()
    def observe_features(self, features: Tensor, student: Tensor, valid: Tensor) -> None:
        """Move the centers; features (B, C, *S), student probabilities (B, K, *S), valid (B, 1, *S)."""
        weights = region_weights(student, self.regions)
        self.centers.update(self.collective.sum(self.centers.sums(features, weights, valid)))
        self.statistics.add(boundary=(weights[:, -1:] * valid).sum() / valid.sum().clamp_min(1))

    @torch.no_grad()
    def compare(self, teacher: Tensor, label: Tensor, valid: Tensor) -> Disagreement:
        """Where labels and teacher disagree; teacher, label (B, K, *S), valid (B, 1, *S)."""
        return disagreement(label, teacher, valid, self.regions)

    @torch.no_grad()
    def observe_agreement(self, cases: Tensor, found: Disagreement) -> None:
        """Count the disagreements of the patches' cases (B,)."""
        self.agreement.update(cases, found.counts(), found.sizes)
        if self.config.memorised_share > 0:
            excess = self.agreement.excess()
            self.memorisation.update(excess)
            self.statistics.add(excess=excess)

    @torch.no_grad()
    def observe_bias(self, said: Tensor, predicted: Tensor, label: Tensor, valid: Tensor) -> None:
        """Count what the layer of the given labels gets wrong on trusted patches.

        Args:
            said, predicted: probabilities of that layer and of the one that predicts, label: (B, K, *S).
            valid: (B, 1, *S). B may be zero; every DDP rank must call it.
        """
        decisions = (hard_labels(said, self.regions), hard_labels(predicted, self.regions), label)
        self.label_bias.update(*(foreground(decision, valid, self.regions) for decision in decisions))
        self.statistics.add(label_bias=self.bias)

    def observe_trusted(self, features: Tensor, logits: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
        """Move the influence direction of the last layer.

        Args:
            features: (B, C, *S) and logits: (B, K, *S), both of trusted patches. loss: of such logits.
        """
        gradient = logit_gradient(loss, logits)
        with torch.no_grad():
            self.direction.update(self.collective.mean(self.direction.step_direction(features, gradient)))

    # ---- what it is used for ------------------------------------------------------------------------------------

    @torch.no_grad()
    def alpha(
        self,
        features: Tensor,
        student: Tensor,
        teacher: Tensor,
        label: Tensor,
        valid: Tensor,
        found: Disagreement,
        cases: Tensor,
        gain: Tensor | None = None,
        learn: float | None = None,
    ) -> Tensor:
        """Belief in the given label: (B, H, *S), one wherever label and teacher agree.

        Args:
            features: (B, C, *S). student, teacher: probabilities (B, K, *S). label: (B, K, *S). valid: (B, 1, *S).
            found: where label and teacher differ. cases: (B,).
            gain: influence of the given label minus that of the pseudo-label (B, H, *S); None: of the last layer.
            learn: share of the meta learning rate for a meta step on this batch; None: no meta step.
        """
        differs = found.differs
        rates = self.agreement.rates()[cases] if self.config.context else None
        evidence = collect(features, student, teacher, label, found, self.centers, rates, self.regions)
        prior = self._prior(evidence, found.direction, cases)
        if self.config.influence == "none":
            belief = torch.sigmoid(prior)
        else:
            if learn is not None and (gain is not None or self.direction.direction is not None):
                if gain is None:
                    gains = self._head_gain(evidence, found.pseudo, label)
                else:
                    gains = at_decisions(gain, evidence.where)
                self.meta.update(evidence.inputs, prior, gains, learn)
            belief = self.meta.alpha(evidence.inputs, prior)
        share = differs.sum() / (valid.sum() * differs.shape[1])
        self.statistics.add(disagreeing=share, alpha=belief.mean(), beta=1 - belief.mean())
        voxels = differs.flatten(1).sum(1)
        sums = torch.zeros(len(cases), device=belief.device).index_add_(0, evidence.where[0], belief)
        self.agreement.update_beliefs(cases, sums, voxels)
        alpha = torch.ones(differs.shape, device=label.device)
        alpha[evidence.where] = belief
        return alpha

    def _prior(self, evidence: Evidence, direction: Tensor, cases: Tensor) -> Tensor:
        if not self.config.agreement_prior:
            return torch.zeros(len(evidence.features), device=direction.device)
        belief = self.agreement.label_belief(cases, self.label_bias.sides())
        belief = belief[evidence.where[0], at_decisions(direction, evidence.where)]
        return torch.logit(belief) + self.config.voxel_prior * (1 - self.bias) * self._odds(evidence)

    def _odds(self, evidence: Evidence) -> Tensor:
        """The teacher's log odds of the given label against its own decision, less their running mean: (V,)."""
        label, pseudo = (evidence.inputs[:, column] for column in (TEACHER_OF_LABEL, TEACHER_OF_PSEUDO))
        odds = (label / pseudo.clamp_min(1e-6)).clamp_min(1e-2).log()
        total, count = self.collective.sum(torch.stack([odds.sum(), odds.new_tensor(float(len(odds)))]))
        mean = total / count.clamp_min(1)
        old = mean if self.mean_odds is None else self.mean_odds
        self.mean_odds = torch.where(count > 0, 0.95 * old + 0.05 * mean, old)
        return odds - self.mean_odds

    def _head_gain(self, evidence: Evidence, pseudo: Tensor, label: Tensor) -> Tensor:
        """<D, p - y> - <D, p - yhat> = <D, yhat - y>: the student's own prediction drops out."""
        difference = at_voxels(pseudo, evidence.where) - at_voxels(label, evidence.where)
        gain = self.direction.directional(evidence.features) * difference
        if self.regions:
            return gain.gather(1, evidence.where[1][:, None])[:, 0]
        return gain.sum(1)

    @torch.no_grad()
    def mixed_target(
        self,
        alpha: Tensor,
        features: Tensor,
        teacher: Tensor,
        label: Tensor,
        valid: Tensor,
        found: Disagreement,
        cases: Tensor,
        trust: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Soft target (B, K, *S) and weight (B, 1 or K, *S) of given-label patches.

        Args:
            alpha: (B, H, *S); features, teacher, label, valid, found, cases as in `alpha`.
            trust: the user's own trust in the given label, (B, 1, *S) in [0, 1], or None. It multiplies alpha; what
                is lost there is weight lost, not given to the teacher.
        """
        pseudo = teacher if self.config.soft_pseudo_labels else found.pseudo
        beta = 1 - alpha
        if trust is not None:
            alpha = alpha * trust
        total = alpha + beta
        target = (alpha * label + beta * pseudo) / total.clamp_min(1e-6)
        weight = valid * total
        if self.config.dcd_strength > 0:
            weight = weight * self.centers.gamma(features, valid)
        if self.config.case_weighting:
            counts = self.agreement.case_weights(self.config.least_case_weight, self.label_bias.sides()[0])[cases]
            self.statistics.add(case_weight=counts.mean())
            structure = label if self.regions else 1 - label[:, :1]
            weight = weight * torch.where(structure > 0.5, counts.view(-1, *[1] * (weight.ndim - 1)), 1.0)
        return target, weight

    # ---- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        return {
            "agreement": self.agreement.state_dict(),
            "centers": self.centers.state_dict(),
            "direction": self.direction.direction,
            "mean_odds": self.mean_odds,
            "label_bias": self.label_bias.counts,
            "memorisation": self.memorisation.state_dict(),
            "meta": self.meta.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.agreement.load_state_dict(state["agreement"])
        self.centers.load_state_dict(state["centers"])
        self.direction.direction = state["direction"]
        self.mean_odds, self.label_bias.counts = state["mean_odds"], state["label_bias"]
        if "memorisation" in state:  # checkpoints before 2026-11-27 have none
            self.memorisation.load_state_dict(state["memorisation"])
        self.meta.load_state_dict(state["meta"])
