"""Disagreement of labels with the teacher (the second opinion), case by case: the prior of the weights.

Label noise belongs to whole cases. If a case's label disagrees with the teacher on a share d of its structure, and
the teacher alone is wrong on a share e of unseen clean structure, then a disagreeing voxel of this case is the
teacher's mistake with probability about e / d: the probability that the given label is right there. Both shares are
counted per direction (the label has foreground where the teacher has none, lacks it, or names another class), so that
labels that are only too large do not cost belief where they are too small.

A teacher also sees structure where there is none, however little a case has. So mistakes are expected in proportion to
the structure plus a share of that of an average patch. Without it a few voxels in a case without structure, or with
little, would be as much evidence against its label as a label that has nothing in common with the image. For the same
reason trusted cases without structure do not tell how often the teacher is wrong where there is some.

Tensors only. B batch, K heads, H decisions per voxel (1 for softmax heads, K for region heads), D directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_metadcseg.collective import Collective
from nnunetv2_metadcseg.patches import PerPatch

EXTRA, MISSING, SWAPPED = 0, 1, 2
NUM_DIRECTIONS = 3
USUAL_MOMENTUM = 0.999  # of the structure of an average patch, per step
LEAST_FORGOTTEN = 0.05  # by a patch without structure, of what one of average structure makes a case forget


def probabilities_of(logits: Tensor, regions: bool) -> Tensor:
    """Softmax over the heads of (B, K, *S) logits, or the sigmoid of every region head."""
    return torch.sigmoid(logits) if regions else torch.softmax(logits, 1)


def one_hot(index: Tensor, count: int) -> Tensor:
    """Which of `count` numbers an index (B, 1, ...) is: bool (B, count, ...)."""
    numbers = torch.arange(count, device=index.device, dtype=index.dtype)
    return index == numbers.view(1, -1, *[1] * (index.ndim - 2))


def hard_labels(probabilities: Tensor, regions: bool) -> Tensor:
    """(B, K, *S) probabilities or targets -> zeros and ones of the same shape (one-hot unless `regions`)."""
    if regions:
        return (probabilities > 0.5).to(probabilities.dtype)
    if probabilities.is_cuda:  # there argmax is quick, and a loop over classes is not
        return one_hot(probabilities.argmax(1, keepdim=True), probabilities.shape[1]).to(probabilities.dtype)
    # The first of equal maxima, as argmax gives, which is many times slower along this axis on the CPU. Class by class
    # and in place, without masks: these have to be converted, which costs more than all the rest.
    probabilities = probabilities.detach()
    top = probabilities.amax(1, keepdim=True)
    hard, free = torch.empty_like(probabilities), torch.ones_like(top)
    for given, decided in zip(probabilities.split(1, 1), hard.split(1, 1), strict=True):
        torch.ge(given, top, out=decided)
        decided.mul_(free)
        free.sub_(decided)
    return hard


def foreground(maps: Tensor, valid: Tensor, regions: bool) -> Tensor:
    """Maps (B, heads, *S) without the background head, zero where ignored; valid (B, 1, *S)."""
    return (maps * valid)[:, 0 if regions else 1 :]


def overlaps(maps: Tensor, label: Tensor, valid: Tensor, regions: bool) -> Tensor:
    """Overlap of maps and label, size of the maps, size of the label: (B, K, 3), in voxels.

    Args:
        maps: decisions or probabilities, label: (B, heads, *S). valid: (B, 1, *S), zero where ignored.
        regions: no background head.
    """
    maps, label = (foreground(m, valid, regions) for m in (maps, label))
    return torch.stack([x.flatten(2).sum(2) for x in (maps * label, maps, label)], 2)


def class_overlaps(probabilities: Tensor, label: Tensor, valid: Tensor, regions: bool) -> Tensor:
    """`overlaps` of the decision that the probabilities (B, heads, *S) make."""
    return overlaps(hard_labels(probabilities, regions), label, valid, regions)


@dataclass(frozen=True)
class Disagreement(PerPatch):
    """Where labels and the teacher's decision differ, and how: made once per step, used by all that follows.

    Attributes:
        pseudo: the teacher's decision (B, K, *S). differs: (B, H, *S) bool.
        direction: (B, H, *S) int64, meaningless where they agree.
        sizes: mean number of foreground voxels of label and decision, per patch: (B,).
    """

    pseudo: Tensor
    differs: Tensor
    direction: Tensor
    sizes: Tensor

    def counts(self) -> Tensor:
        """Disagreeing voxels per patch and direction: (B, D)."""
        masks = (self.differs & (self.direction == d) for d in range(NUM_DIRECTIONS))
        return torch.stack([mask.flatten(1).sum(1) for mask in masks], 1).float()


def disagreement(label: Tensor, teacher: Tensor, valid: Tensor, regions: bool) -> Disagreement:
    """Where a label and the teacher's decision differ, and how.

    Args:
        label: (B, K, *S) of zeros and ones. teacher: (B, K, *S) probabilities. valid: (B, 1, *S), or of every region.
    """
    pseudo = hard_labels(teacher, regions)
    if regions:
        differs = (pseudo != label) & (valid > 0)
        direction = torch.where(label > 0, EXTRA, MISSING)
        foreground = label + pseudo
    else:
        label_bg, pseudo_bg = label[:, :1], pseudo[:, :1]
        differs = ((pseudo * label).sum(1, keepdim=True) < 0.5) & (valid > 0)
        extra = torch.where(pseudo_bg < 0.5, SWAPPED, EXTRA)
        direction = torch.where(label_bg < 0.5, extra, MISSING)
        foreground = 2 - label_bg - pseudo_bg
    return Disagreement(pseudo, differs, direction, (foreground * valid).flatten(1).sum(1) / 2)


class CaseAgreement:
    """Running disagreement rates of every case, and the probability that a given label is right.

    Args:
        num_cases: cases are numbered; the caller keeps the numbering.
        trusted: (num_cases,) bool.
        momentum: share of a case's old counts kept when a patch of average structure is seen.
        best_share: share of the given-label cases that agree best with the teacher; the rate that they do not exceed
            stands for the teacher's own error on unseen structure, but at least the trusted rate and at most
            `max_optimism` times it.
        max_optimism: the teacher was trained on the trusted cases, so its error there is too small; this bounds by
            how much.
        base_share: mistakes are expected as if every patch held this share of an average patch's structure more.
        collective: reductions over DDP ranks, which may bring different numbers of patches.

    Attributes:
        empty: (num_cases,) bool, cases known to be without structure. Those of them that are trusted do not count for
            the teacher's error, unless there are no others. The caller sets it.
    """

    def __init__(
        self,
        num_cases: int,
        trusted: Tensor,
        momentum: float = 0.7,
        best_share: float = 0.2,
        max_optimism: float = 1.5,
        base_share: float = 0.25,
        collective: Collective | None = None,
    ) -> None:
        self.collective = collective or Collective()
        self.trusted, self.base_share = trusted, base_share
        self.empty = torch.zeros_like(trusted)
        self.momentum, self.best_share, self.max_optimism = momentum, best_share, max_optimism
        self.counts = torch.zeros(num_cases, NUM_DIRECTIONS, device=trusted.device)
        self.sizes = torch.zeros(num_cases, device=trusted.device)  # of the structure, and the base share
        self.usual = torch.zeros(2, device=trusted.device)  # structure of the last patches, and their number
        self.beliefs = torch.full((num_cases,), -1.0, device=trusted.device)  # -1: not yet known
        # Over all visits: disagreeing voxels, and how many there would be if the label were right.
        self.history = torch.zeros(num_cases, 2, device=trusted.device)
        self.visits = torch.zeros(num_cases, device=trusted.device)  # patches in that history

    def update_beliefs(self, cases: Tensor, alpha_sums: Tensor, voxels: Tensor) -> None:
        """Fold in the mean alpha where label and teacher disagree: cases (B,), sums of alpha and voxels (B,)."""
        totals = torch.zeros(len(self.beliefs), 2, device=self.beliefs.device)
        totals = self.collective.sum(totals.index_add_(0, cases, torch.stack([alpha_sums, voxels.float()], 1)))
        mean = totals[:, 0] / totals[:, 1].clamp_min(1)
        keep = torch.where(self.beliefs < 0, 0.0, self.momentum)
        self.beliefs = torch.where(totals[:, 1] > 0, keep * self.beliefs + (1 - keep) * mean, self.beliefs)

    def case_beliefs(self) -> Tensor:
        """Mean alpha of every case where its label and the teacher disagree: (num_cases,); 1 for trusted cases.

        Of cases not yet known the mean of the others; 1 while nothing is known.
        """
        known = (self.beliefs >= 0) & ~self.trusted
        mean = torch.where(known.any(), (self.beliefs * known).sum() / known.sum().clamp_min(1), 1.0)
        return torch.where(self.trusted, 1.0, torch.where(known, self.beliefs, mean))

    def update(self, cases: Tensor, counts: Tensor, sizes: Tensor, looked: Tensor) -> None:
        """Fold in patches: cases (B,) int64, counts (B, D), sizes (B,); looked (B,) bool, False where all is ignored.

        Patches of the same case are added up. Counts are whole numbers (and halves), so their order makes no
        difference and all DDP ranks get the same sums.
        """
        totals = torch.zeros(len(self.sizes), NUM_DIRECTIONS + 2, device=self.sizes.device)
        seen = torch.cat([counts, sizes[:, None], looked[:, None].to(sizes.dtype)], 1)
        totals = self.collective.sum(totals.index_add_(0, cases, seen))
        counts, sizes, patches = totals[:, :-2], totals[:, -2], totals[:, -1]
        self.usual = USUAL_MOMENTUM * self.usual + totals[:, -2:].sum(0)
        usual = self.usual_size()
        # Patches with little structure, such as the background of a large image, make a case forget little.
        keep = torch.where(patches > 0, self.momentum ** (sizes / usual).clamp(LEAST_FORGOTTEN, 1), 1.0)
        sizes = sizes + patches * self.base_share * usual
        add = torch.where(self.sizes == 0, 1.0, 1 - self.momentum)  # nothing is known yet of a new case
        self.counts = keep[:, None] * self.counts + add[:, None] * counts
        self.sizes = keep * self.sizes + add * sizes
        self.history = self.history + self._beside_expected(counts, sizes)
        self.visits = torch.where(self.history[:, 1] > 0, self.visits + patches, 0.0)

    def usual_size(self) -> Tensor:
        """Voxels of structure in an average patch."""
        return (self.usual[0] / self.usual[1].clamp_min(1)).clamp_min(1e-6)

    def _beside_expected(self, counts: Tensor, sizes: Tensor) -> Tensor:
        """Disagreeing voxels, and those expected of right labels: (num_cases, 2); zeros while that is not known."""
        error = self.teacher_error().sum()
        return torch.where(error.isfinite(), torch.stack([counts.sum(1), sizes * error], 1), 0.0)

    def rates(self) -> Tensor:
        """Disagreeing voxels per voxel of structure (and base share), (num_cases, D); zero for cases not yet seen."""
        return self.counts / self.sizes.clamp_min(1e-6)[:, None]

    def excess(self) -> Tensor:
        """By how much given labels disagree with the teacher more than trusted ones do: (2,), nan where unknown.

        As a rate, and as a multiple of the teacher's own mistakes on given labels: of the rate of those that agree best
        (of half the trusted rate at least: the best may have no structure).
        """
        trusted, best = self._own_errors()
        excess = self._mean(self.rates().sum(1), ~self.trusted) - trusted.sum()
        own = torch.maximum(best, trusted.sum() / 2).clamp_min(1e-6)
        return torch.stack([excess, excess / own])

    def teacher_error(self) -> Tensor:
        """Expected disagreement of the teacher with right labels of unseen cases, per direction: (D,)."""
        floor, best = self._own_errors()
        total = best.clamp(floor.sum(), self.max_optimism * floor.sum())
        error = torch.where(best.isfinite(), floor * total / floor.sum().clamp_min(1e-6), floor)
        return torch.where(floor.isfinite(), error, torch.inf)

    def _own_errors(self) -> tuple[Tensor, Tensor]:
        """Rates of trusted cases (D,), and of the given-label cases that agree best, a scalar; nan where unknown."""
        # Masks instead of selected rows, whose number the host would have to wait for.
        rates, given = self.rates(), (self.sizes > 0) & ~self.trusted
        best = torch.nanquantile(rates.sum(1).where(given, torch.nan), self.best_share)
        telling = self.trusted & ~self.empty
        return self._mean(rates, torch.where(telling.any(), telling, self.trusted)), best

    def _mean(self, values: Tensor, group: Tensor) -> Tensor:
        """Over the cases of a group (num_cases,) that were seen; nan if there are none."""
        group = (self.sizes > 0) & group
        return (values * group.view(-1, *[1] * (values.ndim - 1))).sum(0) / group.sum()

    def label_belief(self, cases: Tensor, sides: Tensor) -> Tensor:
        """Probability that the given label is right where it disagrees with the teacher: (B, D) for cases (B,).

        Where all labels are too large they hardly ever lack anything, so there the mistake is the teacher's; and
        likewise where all are too small.

        Args:
            sides: (2,) in [0, 1] (given_label_head.LabelBias.sides).
        """
        belief = self.teacher_error() / self.rates()[cases].clamp_min(1e-6)
        balance = sides[1] - sides[0]
        safe = torch.stack([balance, -balance, torch.zeros_like(balance)]).clamp_min(0)  # as EXTRA, MISSING, SWAPPED
        return (1 - (1 - safe) * (1 - belief.clamp_max(1))).clamp(0.02, 0.98)

    def state_dict(self) -> dict:
        names = ("counts", "sizes", "usual", "beliefs", "history", "visits")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        self.counts, self.sizes = state["counts"].clone(), state["sizes"].clone()
        self.beliefs = state["beliefs"].clone()
        self.usual = state.get("usual", self.usual).clone()  # checkpoints before 2026-11-29 have none
        recent = self._beside_expected(self.counts, self.sizes)  # checkpoints before 2026-11-28 have no history
        self.history = state.get("history", recent).clone()
        # Checkpoints before 2026-11-30 do not tell; they were worth as much as many.
        self.visits = state.get("visits", torch.full_like(self.sizes, torch.inf)).clone()
