from __future__ import annotations

import math

import pytest
import torch

from nnunetv2_metadcseg.agreement import class_overlaps
from nnunetv2_metadcseg.trusted_choice import CaseScores, choose_cases
from tests.nnunetv2_metadcseg.ranks import run_ranks

NAN = math.nan


def visit(scores: CaseScores, case: int, dice: float, size: float = 100.0, label_only: bool = True) -> None:
    """A patch of one class whose decision and label have `size` voxels together and that Dice."""
    overlaps = [dice * size / 2, size / 2, size / 2 if label_only else 0.0]
    scores.update(torch.tensor([case]), torch.tensor([[overlaps]]))


class TestClassOverlaps:
    label = torch.tensor([[[[1, 1, 0, 0], [0, 0, 1, 1]]]]).float()  # (1, 1, 2, 4)
    decision = torch.tensor([[[[1, 0, 0, 0], [1, 1, 1, 1]]]]).float()

    def test_classes_without_background(self):
        label, decision = (torch.cat([1 - x, x], 1) for x in (self.label, self.decision))
        overlaps = class_overlaps(0.2 + 0.6 * decision, label, torch.ones(1, 1, 2, 4), regions=False)
        assert overlaps.tolist() == [[[3, 5, 4]]]

    def test_regions(self):
        label = torch.cat([self.label, 0 * self.label], 1)
        decision = torch.cat([self.decision, self.label], 1)
        overlaps = class_overlaps(0.2 + 0.6 * decision, label, torch.ones(1, 1, 2, 4), regions=True)
        assert overlaps.tolist() == [[[3, 5, 4], [0, 4, 0]]]

    def test_ignored_voxels_do_not_count(self):
        valid = torch.ones(1, 1, 2, 4)
        valid[..., 0] = 0
        overlaps = class_overlaps(self.decision, self.label, valid, regions=True)
        assert overlaps.tolist() == [[[2, 3, 3]]]


class TestScores:
    def make(self, cases: int = 3, classes: int = 1, memory: float = 1e6) -> CaseScores:
        return CaseScores(cases, classes, memory, "cpu")

    def test_better_agreement_scores_higher(self):
        scores = self.make()
        for _ in range(4):
            for case, dice in enumerate((0.9, 0.5, 0.7)):
                visit(scores, case, dice)
        assert scores.scores().argsort(descending=True).tolist() == [0, 2, 1]

    def test_a_case_visited_while_the_network_was_poor_does_not_lose_by_it(self):
        """Case 0 beats its contemporaries but was seen early; plain Dice would put it behind case 2."""
        scores = self.make(4, memory=30)
        for _ in range(6):
            visit(scores, 0, 0.4)
            visit(scores, 1, 0.2)
        for _ in range(60):
            visit(scores, 2, 0.8)
            visit(scores, 3, 0.9)
        assert scores.scores()[0] > scores.scores()[2]

    def test_hard_classes_do_not_count_against_a_case(self):
        """Two classes, one half as well predicted as the other: both cases agree as well as their class does."""
        scores = self.make(2, 2)
        for _ in range(20):
            overlaps = torch.tensor([[[45.0, 50, 50], [0, 0, 0]], [[0, 0, 0], [20.0, 50, 50]]])
            scores.update(torch.tensor([0, 1]), overlaps)
        assert scores.scores().abs().max() < 0.01

    def test_large_structures_do_not_win_by_size(self):
        scores = self.make(2)
        for _ in range(20):
            scores.update(torch.tensor([0, 1]), torch.tensor([[[400.0, 500, 500]], [[36.0, 40, 40]]]))
        assert scores.scores()[1] > scores.scores()[0]

    def test_agreement_seen_once_counts_less_than_seen_often(self):
        scores = self.make(3)
        for _ in range(20):
            visit(scores, 0, 0.8)
            visit(scores, 1, 0.4)
        visit(scores, 2, 0.8)
        assert scores.scores()[0] > scores.scores()[2] > scores.scores()[1]

    def test_early_visits_are_forgotten(self):
        scores = self.make(2, memory=5)
        for first, second in ((0.2, 0.8), (0.8, 0.2)):
            for _ in range(30):
                scores.update(torch.tensor([0, 1]), torch.tensor([[[50 * first, 50, 50]], [[50 * second, 50, 50]]]))
        assert scores.scores()[0] > scores.scores()[1]

    def test_cases_without_labelled_foreground_or_never_seen_have_none(self):
        scores = self.make(3)
        visit(scores, 0, 0.5)
        visit(scores, 1, 0.0, label_only=False)
        assert torch.isnan(scores.scores()).tolist() == [False, True, True]

    def test_empty_agreement_teaches_nothing(self):
        scores = self.make(2)
        visit(scores, 0, 0.5)
        before = scores.scores()
        scores.update(torch.tensor([0]), torch.zeros(1, 1, 3))
        torch.testing.assert_close(scores.scores(), before, equal_nan=True)

    def test_a_structure_that_the_label_lacks_counts_against_it(self):
        scores = self.make(2, 2)
        full = [[45.0, 50, 50], [45.0, 50, 50]]
        for _ in range(5):
            scores.update(torch.tensor([0, 1]), torch.tensor([full, [[45.0, 50, 50], [0, 50, 0]]]))
        assert scores.scores()[0] > scores.scores()[1] + 0.1

    def test_stray_voxels_of_a_structure_that_the_label_lacks_do_not(self):
        scores = self.make(2, 2)
        for _ in range(5):
            both = [[45.0, 50, 50], [45.0, 50, 50]], [[45.0, 50, 50], [0, 1, 0]]
            scores.update(torch.tensor([0, 1]), torch.tensor(both))
        assert scores.scores()[0] - scores.scores()[1] < 0.03

    def test_state_round_trip(self):
        scores, other = self.make(), self.make()
        visit(scores, 1, 0.7)
        other.load_state_dict(scores.state_dict())
        for one in (scores, other):
            visit(one, 0, 0.4)
        torch.testing.assert_close(other.scores(), scores.scores(), equal_nan=True, rtol=0, atol=0)
        assert torch.equal(other.class_dice(), scores.class_dice())


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(6):
        sizes = torch.randint(1, 90, (4, 2, 2), generator=generator).float()
        overlap = (sizes.amin(2) * torch.rand(4, 2, generator=generator)).floor()
        found.append((torch.randint(0, 5, (4,), generator=generator), torch.cat([overlap[..., None], sizes], 2)))
    return found


def scored(rank: int | None) -> torch.Tensor:
    """Scores after all batches; a rank sees its half of each."""
    scores = CaseScores(5, 2, 10, "cpu")
    mine = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    for cases, overlaps in batches():
        scores.update(cases[mine], overlaps[mine])
    return scores.scores()


def test_two_ranks_come_to_the_scores_of_one_process(tmp_path):
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    first, second = run_ranks(scored, tmp_path)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, scored(None), rtol=0, atol=1e-6)


class TestChoice:
    one = [[True]] * 5

    def test_the_best(self):
        assert choose_cases([0.1, 0.5, -0.2, 0.3, 0.0], self.one, 2) == [1, 3]

    def test_those_without_a_score_cannot_be_chosen(self):
        assert choose_cases([NAN, 0.5, NAN, 0.3, NAN], self.one, 3) == [1, 3]
        assert choose_cases([NAN] * 5, self.one, 2) == []

    def test_every_class_is_among_them(self):
        labelled = [[True, False], [True, False], [True, True], [True, False], [True, True]]
        assert choose_cases([0.9, 0.8, 0.1, 0.7, 0.2], labelled, 2) == [0, 4]

    def test_a_class_of_one_case_only_if_its_label_agrees_well(self):
        scores = [0.9, 0.8, 0.7, 0.3, 0.2, 0.1]
        bad, good = ([[True, case == holder] for case in range(6)] for holder in (5, 1))
        assert choose_cases(scores, bad, 1) == [0]
        assert choose_cases(scores, good, 1) == [1]

    def test_no_more_than_asked_for_however_many_classes(self):
        labelled = torch.eye(5, dtype=torch.bool).tolist()
        assert len(choose_cases([0.9, 0.8, 0.1, 0.7, 0.2], labelled, 2)) == 2

    def test_rarest_class_first(self):
        labelled = [[True, True, False], [True, True, False], [False, True, True], [True, False, True]]
        assert choose_cases([0.9, 0.8, -0.5, 0.7], labelled, 1) == [3]

    def test_a_class_that_exists_nowhere_changes_nothing(self):
        assert choose_cases([0.1, 0.3, 0.2], [[True, False]] * 3, 2) == [1, 2]

    def test_equal_scores_go_by_number(self):
        assert choose_cases([0.5] * 5, self.one, 2) == [0, 1]
