"""From a batch's predictions to soft targets and voxel weights: the parts of MetaDCSeg together, without nnU-Net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_metadcseg.agreement import (
    EXTRA,
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
from nnunetv2_metadcseg.fusion import Fuse, unfused
from nnunetv2_metadcseg.given_label_head import LabelBias
from nnunetv2_metadcseg.influence import HeadInfluence, logit_gradient
from nnunetv2_metadcseg.known_classes import KnownClasses
from nnunetv2_metadcseg.label_depth import LabelDepth
from nnunetv2_metadcseg.memorisation import MemorisationWatch
from nnunetv2_metadcseg.meta_weights import MetaWeights
from nnunetv2_metadcseg.patches import Patches

BELIEVED = 0.98  # most that is believed by rule; one would mean that label and second opinion agree

TrustedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits, labels and weights of trusted patches


@dataclass(frozen=True)
class Doubtful:
    """Decisions of a batch in which label and second opinion differ.

    Attributes:
        where: index tensors (batch, decision, *spatial), each (V,). inputs: of the meta-weight network, (V, F).
        prior: log odds of the given label, (V,). judged: one where they tell of label errors, else zero, (V,).
    """

    where: tuple[Tensor, ...]
    inputs: Tensor
    prior: Tensor
    judged: Tensor


class LabelWeighting:
    """Learns alpha (belief in the given label) and beta (in the pseudo-label) and makes targets and weights of them.

    Args:
        config: settings. regions: sigmoid heads.
        trusted: (number of cases,) bool, which of the numbered cases are trusted.
        collective: reductions over DDP ranks.
        memorisation_horizon: steps over which the watch on memorisation averages.
        fuse: how tensor functions are run (fusion.py).
        spacing: of voxels, per axis of a patch; None: all alike.
    """

    def __init__(
        self,
        config: MetaDCSegConfig,
        regions: bool,
        trusted: Tensor,
        collective: Collective | None = None,
        memorisation_horizon: int = 1,
        fuse: Fuse = unfused,
        spacing: Sequence[float] | None = None,
    ) -> None:
        self.config, self.regions = config, regions
        self.collective = collective or Collective()
        self.agreement = CaseAgreement(
            len(trusted),
            trusted,
            config.case_momentum,
            config.best_share,
            config.max_optimism,
            config.base_share,
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
        self.label_depth = LabelDepth(config.bias_momentum, trusted.device, self.collective, spacing)
        self.looks_at_depth = config.label_depth
        self.known_classes = KnownClasses(config.bias_momentum, self.collective)
        self.memorisation = MemorisationWatch(memorisation_horizon, config.memorised_share, device=trusted.device)
        self.statistics = EpochStatistics()
        self._observe, self._gather, self._decide = map(fuse, (self._observe, self._gather, self._decide))

    @property
    def bias(self) -> Tensor:
        """One-sidedness of label errors, a scalar in [0, 1]; 1 while nothing is known."""
        return self.label_bias()

    # ---- what is learned from every batch -----------------------------------------------------------------------

    @torch.no_grad()
    def observe(
        self, patches: Patches, logits: Tensor, trusted_loss: TrustedLoss | None, num_given: int
    ) -> Disagreement:
        """Move the centers, count the disagreements of the patches' cases, move the influence direction.

        Args:
            patches: of all kinds; the teacher may have seen the first B' only. logits: (B, K, *S) of the student.
            trusted_loss: of logits, labels and weights; None: the direction stays. num_given: trusted patches follow.

        Returns:
            Where labels and teacher disagree, in the first B' patches.
        """
        parts, statistics = self._observe(patches, logits, trusted_loss, num_given)
        self.statistics.add(**statistics)
        return Disagreement(*parts)

    def _observe(
        self, patches: Patches, logits: Tensor, trusted_loss: TrustedLoss | None, num_given: int
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Fields of the disagreement, and scalars for the log."""
        features, label, valid = patches.features, patches.label, patches.valid
        if trusted_loss is not None and num_given < len(features):  # first, since it takes most memory
            trusted = slice(num_given, None)
            self._move_direction(trusted_loss, features[trusted], logits[trusted], label[trusted], valid[trusted])
        statistics = {"boundary": self._move_centers(features, patches.student, valid)}
        looked = slice(0, len(patches.teacher))
        found = self.compare(patches.teacher, label[looked], valid[looked])
        evidence = self.as_evidence(found, patches.teacher, label[looked], valid[looked])
        statistics["excess"] = self._count(patches.cases[looked], evidence, valid[looked])
        return (found.pseudo, found.differs, found.direction, found.sizes), statistics

    def _move_centers(self, features: Tensor, student: Tensor, valid: Tensor) -> Tensor:
        """Gives the boundary's share of the voxels, a scalar."""
        weights = region_weights(student, self.regions)
        self.centers.update(self.collective.sum(self.centers.sums(features, weights, valid)))
        return (weights[:, -1:] * valid).sum() / valid.sum().clamp_min(1)

    def compare(self, teacher: Tensor, label: Tensor, valid: Tensor) -> Disagreement:
        """Where labels and teacher disagree; teacher, label (B, K, *S), valid (B, 1, *S) or of every region."""
        return disagreement(label, teacher, valid, self.regions)

    def as_evidence(self, found: Disagreement, teacher: Tensor, label: Tensor, valid: Tensor) -> Disagreement:
        """What of a disagreement counts for or against cases: not where a class is named that no trusted case holds.

        Args:
            found: what `compare` gives for the others.
        """
        if self.known_classes.absent is None:
            return found
        return self.compare(teacher, label, valid * self.known_classes.judged(label, found.pseudo, self.regions))

    def _count(self, cases: Tensor, found: Disagreement, valid: Tensor) -> Tensor:
        """Gives the disagreement in excess of that of trusted labels, a scalar."""
        self.agreement.update(cases, found.counts(), found.sizes, valid.flatten(1).any(1))
        excess = self.agreement.excess()
        self.memorisation.update(excess)
        return excess[0]

    def _move_direction(
        self, loss: TrustedLoss, features: Tensor, logits: Tensor, label: Tensor, valid: Tensor
    ) -> None:
        """Of the last layer; all of trusted patches."""
        gradient = logit_gradient(lambda z: loss(z, label, valid), logits)
        self.direction.update(self.collective.mean(self.direction.step_direction(features, gradient)))

    @torch.no_grad()
    def observe_bias(self, said: Tensor, predicted: Tensor, label: Tensor, valid: Tensor) -> None:
        """Count what the layer of the given labels gets wrong on trusted patches; may be part of a fused function.

        Args:
            said, predicted: probabilities of that layer and of the one that predicts, label: (B, K, *S).
            valid: (B, 1, *S). B may be zero; every DDP rank must call it.
        """
        said = self.known_classes.without_absent(said, self.regions)
        decided, predicted = hard_labels(said, self.regions), hard_labels(predicted, self.regions)
        structure = foreground(label, valid, self.regions)
        said, wanted, found = (m[:, -structure.shape[1] :] for m in (said, decided, predicted))
        self.known_classes.update(found, structure)
        self.label_bias.update(said, wanted, structure, (found == structure).to(valid.dtype) * valid)
        if self.looks_at_depth:
            decided, predicted, label = map(self._structure, (decided, predicted, label))
            self.label_depth.update(decided, label, (predicted == label) & (valid > 0))

    def _structure(self, label: Tensor) -> Tensor:
        """Where a label (B, K, *S) has structure, of each region: (B, H, *S) bool."""
        return label > 0.5 if self.regions else label[:, :1] < 0.5

    def note_one_sidedness(self) -> None:
        """Look at depths from now on, or not: they only count where labels are too large. Waits for the device."""
        too_large = float(self.label_bias.sides()[0])
        self.looks_at_depth = self.config.label_depth and too_large >= self.config.least_too_large

    def forget_one_sidedness(self) -> None:
        """Count label errors anew."""
        self.label_bias.set_counts(None)
        self.label_depth.counts.zero_()

    # ---- what it is used for ------------------------------------------------------------------------------------

    @torch.no_grad()
    def alpha(self, patches: Patches, found: Disagreement) -> Tensor:
        """Belief in the given label: (B, H, *S), one wherever label and teacher agree. Without a meta step.

        Args:
            patches: all with a teacher. found: where their label and teacher differ.
        """
        where = found.differs.nonzero(as_tuple=True)
        *known, _ = self._gather(patches, found, where, None, False)
        return self._believe(patches, found, Doubtful(where, *known))[0]

    def targets(
        self,
        patches: Patches,
        found: Disagreement,
        trust: Tensor | None = None,
        gain: Tensor | None = None,
        learn: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What given-label patches are trained on: alpha (B, H, *S), soft target (B, K, *S), weight (B, 1 or K, *S).

        Args:
            patches, found: as in `alpha`.
            trust: the user's own trust in the given label, (B, 1, *S) in [0, 1], or None. It multiplies alpha; what
                is lost there is weight lost, not given to the teacher.
            gain: influence of the given label minus that of the pseudo-label (B, H, *S); None: of the last layer.
            learn: share of the meta learning rate for a meta step on this batch; None: no meta step.
        """
        where = found.differs.nonzero(as_tuple=True)  # here the host waits for the device
        with torch.enable_grad():
            *known, objective = self._gather(patches, found, where, gain, learn is not None)
        if objective is not None:
            self.meta.step(objective, learn)
        with torch.no_grad():
            alpha, target, weight, statistics = self._decide(patches, found, Doubtful(where, *known), trust)
        self.statistics.add(**statistics)
        return alpha, target, weight

    def _gather(
        self, patches: Patches, found: Disagreement, where: tuple[Tensor, ...], gain: Tensor | None, learn: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """All but the first field of `Doubtful`, for the disagreeing decisions `where`; what a meta step lowers."""
        with torch.no_grad():
            rates = self.agreement.rates()[patches.cases] if self.config.context else None
            evidence = collect(patches, found, where, self.centers, rates, self.regions)
            judged = self._judged(patches, found, where)
            prior = self._prior(evidence, found.direction, patches, judged)
            known = gain is not None or self.direction.direction is not None
            if not learn or not known or self.config.influence == "none":
                return evidence.inputs, prior, judged, None
            if gain is None:
                gains = self._head_gain(evidence, found.pseudo, patches.label)
            else:
                gains = at_decisions(gain, where)
        return evidence.inputs, prior, judged, self.meta.objective(evidence.inputs, prior, gains * judged)

    def _judged(self, patches: Patches, found: Disagreement, where: tuple[Tensor, ...]) -> Tensor:
        """Which disagreeing decisions tell of label errors: (V,) of ones, zeros as in `as_evidence`."""
        ones = torch.ones(len(where[0]), device=found.differs.device)
        if self.known_classes.absent is None:
            return ones
        return ones * at_decisions(self.known_classes.judged(patches.label, found.pseudo, self.regions), where)

    def _decide(
        self, patches: Patches, found: Disagreement, doubtful: Doubtful, trust: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Alpha, target, weight, and scalars for the log."""
        alpha, statistics = self._believe(patches, found, doubtful)
        pseudo = patches.teacher if self.config.soft_pseudo_labels else found.pseudo
        target, weight, count = self._mix(patches, alpha, pseudo, trust)
        if count is not None:
            statistics["case_weight"] = count
        return alpha, target, weight, statistics

    def _believe(self, patches: Patches, found: Disagreement, doubtful: Doubtful) -> tuple[Tensor, dict[str, Tensor]]:
        """Alpha as a map (B, H, *S), and scalars for the log."""
        where, prior, judged = doubtful.where, doubtful.prior, doubtful.judged
        belief = torch.sigmoid(prior) if self.config.influence == "none" else self.meta.alpha(doubtful.inputs, prior)
        belief = self._unless_unknown(belief, patches.label, where)
        belief = torch.where(judged > 0, belief, BELIEVED)  # nothing vouches for what the second opinion says there
        share = found.differs.sum() / (patches.valid.sum() * found.differs.shape[1])
        sums = torch.zeros(len(patches.cases), 2, device=belief.device)
        sums = sums.index_add_(0, where[0], torch.stack([belief * judged, judged], 1))
        self.agreement.update_beliefs(patches.cases, *sums.unbind(1))
        alpha = torch.ones(found.differs.shape, device=belief.device)
        alpha[where] = belief
        return alpha, {"disagreeing": share, "alpha": belief.mean(), "beta": 1 - belief.mean()}

    def _unless_unknown(self, belief: Tensor, label: Tensor, where: tuple[Tensor, ...]) -> Tensor:
        """Belief (V,) in given labels at the disagreeing decisions `where`, more in those of classes not yet found.

        Args:
            label: (B, K, *S) of zeros and ones.
        """
        known = self.known_classes()
        if known is None:
            return belief
        label = at_voxels(label, where)
        if self.regions:
            unknown = label.gather(1, where[1][:, None])[:, 0] * (1 - known)[where[1]]
        else:
            unknown = (label[:, 1:] * (1 - known)).sum(1)
        return torch.maximum(belief, (unknown + (1 - unknown) * belief).clamp_max(BELIEVED))

    def _prior(self, evidence: Evidence, direction: Tensor, patches: Patches, judged: Tensor) -> Tensor:
        """Log odds of the given label (V,); judged (V,): which decisions tell of label errors."""
        if not self.config.agreement_prior:
            return torch.zeros(len(evidence.features), device=direction.device)
        where, sides = evidence.where, self.label_bias.sides()
        direction = at_decisions(direction, where)
        belief = self.agreement.label_belief(patches.cases, sides)[where[0], direction]
        prior = torch.logit(belief) + self.config.voxel_prior * (1 - self.bias) * self._odds(evidence, judged)
        if not self.looks_at_depth:
            return prior
        # The edge of what is labelled is no border of the label: unlabelled voxels count as structure here.
        structure = self._structure(patches.label) | (patches.valid == 0)
        depth = at_decisions(self.label_depth.of(structure), where)
        return prior + torch.where(direction == EXTRA, sides[0] * self.label_depth.log_ratio()[depth], 0.0)

    def _odds(self, evidence: Evidence, judged: Tensor) -> Tensor:
        """The teacher's log odds of the given label against its own decision, less their running mean: (V,)."""
        label, pseudo = (evidence.inputs[:, column] for column in (TEACHER_OF_LABEL, TEACHER_OF_PSEUDO))
        odds = (label / pseudo.clamp_min(1e-6)).clamp_min(1e-2).log()
        total, count = self.collective.sum(torch.stack([(odds * judged).sum(), judged.sum()]))
        mean = total / count.clamp_min(1)
        old = mean if self.mean_odds is None else self.mean_odds
        self.mean_odds = torch.where(count > 0, 0.95 * old + 0.05 * mean, old)
        return odds - self.mean_odds

    def _head_gain(self, evidence: Evidence, pseudo: Tensor, label: Tensor) -> Tensor:
        """<D, p - y> - <D, p - yhat> = <D, yhat - y>: the student's own prediction drops out."""
        difference = at_voxels(pseudo, evidence.where).sub_(at_voxels(label, evidence.where))
        gain = self.direction.directional(evidence.features).mul_(difference)
        if self.regions:
            return gain.gather(1, evidence.where[1][:, None])[:, 0]
        return gain.sum(1)

    def _mix(
        self, patches: Patches, alpha: Tensor, pseudo: Tensor, trust: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Target, weight, and the mean weight of labelled structure where it is weighed."""
        beta = 1 - alpha
        count = self._structure_weight(alpha, patches.cases) if self.config.case_weighting else None
        if trust is not None:
            alpha = alpha * trust
        total = alpha + beta
        weight = patches.valid * total
        if self.config.dcd_strength > 0:
            weight = weight * self.centers.gamma(patches.features, patches.valid)
        # In place: a map for every class is large.
        target = (alpha * patches.label).addcmul_(beta, pseudo).div_(total.clamp_min(1e-6))
        if count is None:
            return target, weight, None
        structure = self._structure(patches.label)
        seen = structure & (patches.valid > 0)
        return target, weight * torch.where(structure, count, 1.0), (count * seen).sum() / seen.sum()

    def _structure_weight(self, alpha: Tensor, cases: Tensor) -> Tensor:
        """How much structure in given labels counts: (B, H, *S), of alpha (B, H, *S) and the patches' cases (B,).

        (1 - too_large (1 - belief))^2, belief being alpha where label and teacher disagree and the mean alpha of the
        case elsewhere. Errors that cancel out do no harm, so doubt counts in proportion to how one-sided they are. Of
        labels that are all too large much of the structure is wrong and pulls predictions along; their background is
        right. Of labels that are all too small the structure is right, and so is nearly all of the much larger
        background. Squared, since what is believed pulls as well: at a faint edge a label that is too large confirms in
        full what is predicted inside, and denies in part what is predicted outside.
        """
        of_case = self.agreement.case_beliefs()[cases].view(-1, *[1] * (alpha.ndim - 1))
        doubt = self.label_bias.sides()[0] * (1 - torch.where(alpha < 1, alpha, of_case))
        return (1 - doubt).square().clamp_min(self.config.least_case_weight)

    # ---- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        return {
            "agreement": self.agreement.state_dict(),
            "centers": self.centers.state_dict(),
            "direction": self.direction.direction,
            "mean_odds": self.mean_odds,
            "label_bias": self.label_bias.counts,
            "label_depth": self.label_depth.counts,
            "spacing": self.label_depth.spacing,
            "known_classes": self.known_classes.counts,
            "absent_classes": self.known_classes.absent,
            "memorisation": self.memorisation.state_dict(),
            "meta": self.meta.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.agreement.load_state_dict(state["agreement"])
        self.centers.load_state_dict(state["centers"])
        self.direction.direction = state["direction"]
        self.mean_odds = state["mean_odds"]
        self.label_bias.set_counts(state["label_bias"])
        self.label_depth.counts = state.get("label_depth", self.label_depth.counts).clone()  # none before 2026-11-29 j
        self.label_depth.spacing = state.get("spacing", self.label_depth.spacing)  # the audit has none of its own
        self.known_classes.counts = state.get("known_classes")  # checkpoints before 2026-11-30 have none
        self.known_classes.absent = state.get("absent_classes", self.known_classes.absent)
        self.note_one_sidedness()
        if "usual" in state["agreement"]:  # checkpoints before 2026-11-29 have none, or one that watched other rates
            self.memorisation.load_state_dict(state["memorisation"])
        self.meta.load_state_dict(state["meta"])
