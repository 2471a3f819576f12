from __future__ import annotations

import pytest
import torch

from nnunetv2_metadcseg.agreement import (
    EXTRA,
    LEAST_FORGOTTEN,
    MISSING,
    SWAPPED,
    CaseAgreement,
    disagreement,
    hard_labels,
)

BALANCED = torch.zeros(2)  # errors that cancel out


def one_hot(labels, heads: int = 3) -> torch.Tensor:
    """A row of class numbers -> (1, K, V, 1)."""
    return torch.nn.functional.one_hot(torch.tensor(labels), heads).T.float()[None, ..., None]


def soft(labels, heads: int = 3) -> torch.Tensor:
    """Probabilities whose decision is `labels`."""
    return torch.softmax(2 * one_hot(labels, heads), 1)


def valid_like(labels) -> torch.Tensor:
    return torch.ones(1, 1, len(labels), 1)


class TestDisagreement:
    label, teacher = [0, 1, 0, 1, 2, 2], [0, 1, 1, 0, 1, 2]

    def test_directions(self):
        found = disagreement(one_hot(self.label), soft(self.teacher), valid_like(self.label), False)
        assert found.differs.flatten().tolist() == [False, False, True, True, True, False]
        assert found.direction.flatten()[2:5].tolist() == [MISSING, EXTRA, SWAPPED]
        assert found.counts().tolist() == [[1, 1, 1]]

    def test_ignored_voxels_never_disagree(self):
        valid = valid_like(self.label)
        valid[0, 0, 2:4] = 0
        found = disagreement(one_hot(self.label), soft(self.teacher), valid, False)
        assert found.differs.flatten().tolist() == [False, False, False, False, True, False]
        assert found.counts()[0].tolist() == [0, 0, 1]

    def test_regions_are_decided_one_by_one(self):
        label = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]])[..., None]
        teacher = torch.tensor([[[0.9, 0.2, 0.1], [0.6, 0.8, 0.4]]])[..., None]
        valid = torch.ones(1, 1, 3, 1)
        found = disagreement(label, teacher, valid, True)
        assert found.differs[0, :, :, 0].tolist() == [[False, True, False], [True, False, False]]
        assert found.direction[0, 0, 1, 0] == EXTRA
        assert found.direction[0, 1, 0, 0] == MISSING
        valid[0, 0, 1] = 0
        assert disagreement(label, teacher, valid, True).differs.sum() == 1

    def test_hard_labels(self):
        probabilities = torch.tensor([[[0.2], [0.5], [0.3]]])
        assert hard_labels(probabilities, False).flatten().tolist() == [0, 1, 0]
        assert hard_labels(probabilities + 0.1, True).flatten().tolist() == [0, 1, 0]

    def test_structure_size_is_the_mean_foreground_of_both(self):
        valid = valid_like(self.label)
        assert disagreement(one_hot(self.label), soft(self.teacher), valid, False).sizes.tolist() == [4]
        valid[0, 0, 4:] = 0
        assert disagreement(one_hot(self.label), soft(self.teacher), valid, False).sizes.tolist() == [2]
        label, teacher = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]]), torch.zeros(1, 2, 3)
        assert disagreement(label, teacher, torch.tensor([[[1.0, 1.0, 0.0]]]), True).sizes.tolist() == [1.5]

    def test_some_of_the_patches(self):
        label = torch.cat([one_hot(self.label), one_hot(self.teacher)])
        found = disagreement(label, soft(self.teacher).expand(2, -1, -1, 1), torch.ones(2, 1, 6, 1), False)
        assert found[1:].counts().tolist() == [[0, 0, 0]]
        assert found[:1].counts().tolist() == [[1, 1, 1]]
        assert found[:1].sizes.tolist() == [4]


def new(trusted: list[bool], **settings) -> CaseAgreement:
    """Without mistakes where there is no structure, unless set otherwise: the numbers are plainer."""
    return CaseAgreement(len(trusted), torch.tensor(trusted), **({"base_share": 0.0} | settings))


def update(cases: CaseAgreement, numbers, counts, sizes) -> None:
    """All patches have something that is not ignored."""
    counts, sizes = (torch.as_tensor(x, dtype=torch.float32) for x in (counts, sizes))
    cases.update(torch.as_tensor(numbers), counts, sizes, torch.ones(len(sizes), dtype=torch.bool))


def agreement(rates: list[list[float]], trusted: list[bool], **settings) -> CaseAgreement:
    """Every case seen once with these disagreement rates (without a base share) and a structure of 100 voxels."""
    result = new(trusted, **settings)
    update(result, torch.arange(len(rates)), 100 * torch.tensor(rates), torch.full((len(rates),), 100.0))
    return result


class TestCases:
    def test_rates_are_disagreeing_per_structure_voxel(self):
        cases = new([True, False, False])
        update(cases, [1], [[10.0, 20.0, 0.0]], [40.0])
        assert cases.rates().tolist() == [[0, 0, 0], [0.25, 0.5, 0], [0, 0, 0]]

    def test_momentum_over_visits(self):
        cases = new([False], momentum=0.75)
        update(cases, [0], [[8.0, 0.0, 0.0]], [16.0])
        update(cases, [0], [[0.0, 8.0, 0.0]], [16.0])
        torch.testing.assert_close(cases.rates()[0], torch.tensor([0.375, 0.125, 0.0]))

    @pytest.mark.parametrize(("trusted", "own"), [(0.1, 0.3), (0.7, 0.35)], ids=["best given labels", "floor"])
    def test_excess_is_what_given_labels_disagree_more_than_trusted_ones(self, trusted, own):
        rates = [[0.3, 0.2, 0.0], [0.1, 0.1, 0.1], [trusted, 0.0, 0.0]]
        excess = agreement(rates, [False, False, True], best_share=0.0).excess()
        assert excess.tolist() == pytest.approx([0.4 - trusted, (0.4 - trusted) / own])

    def test_excess_is_unknown_without_trusted_cases(self):
        assert agreement([[0.5, 0, 0], [0.3, 0, 0]], [False, False]).excess().isnan().all()
        assert new([True, False]).excess().isnan().all()

    def test_patches_where_all_is_ignored_teach_nothing(self):
        cases, untouched = agreement([[0.5, 0.25, 0]], [False], base_share=0.25), new([False])
        before = cases.state_dict()
        for each in (cases, untouched):
            each.update(torch.tensor([0]), torch.zeros(1, 3), torch.zeros(1), torch.tensor([False]))
        for name in ("counts", "sizes", "history", "visits"):
            assert torch.equal(cases.state_dict()[name], before[name])
        update(untouched, [0], [[1.0, 0, 0]], [2.0])
        assert untouched.rates()[0, 0] == 0.5

    def test_patches_without_structure_count_as_a_share_of_an_average_one(self):
        cases = new([True, False, False], momentum=0.5, base_share=0.25)
        update(cases, [0, 1, 2], [[0.0, 10, 0], [0.0, 0, 0], [0.0, 10, 0]], [295.0, 0.0, 5.0])  # 100 on average
        assert cases.rates()[:, 1].tolist() == pytest.approx([10 / 320, 0, 10 / 30])
        update(cases, [2], [[0.0, 0, 0]], [0.0])  # this time it agrees
        usual, keep = (0.999 * 300) / (0.999 * 3 + 1), 0.5**LEAST_FORGOTTEN
        assert cases.rates()[2, 1].item() == pytest.approx(keep * 10 / (keep * 30 + 0.5 * 0.25 * usual))

    def test_background_of_large_images_hardly_changes_what_is_known_of_a_case(self):
        cases = agreement([[0.1, 0.1, 0], [0.3, 0.1, 0]], [True, False], base_share=0.25)
        before = cases.rates().clone()
        for _ in range(5):
            update(cases, [0, 1], [[0.0, 0, 0]] * 2, [0.0, 0.0])
        torch.testing.assert_close(cases.rates(), before, rtol=0.15, atol=0)

    def test_stray_voxels_are_no_evidence_against_labels_without_structure(self):
        beliefs = []
        for share in (0.0, 0.25):
            cases = new([True, False, False], max_optimism=1.0, base_share=share)
            update(cases, [0, 1, 2], [[50.0, 50, 0], [50.0, 50, 0], [0.0, 20, 0]], [500.0, 500.0, 10.0])
            beliefs.append(cases.label_belief(torch.tensor([2]), BALANCED)[0, MISSING].item())
        assert beliefs == pytest.approx([0.1 / 2, 50 / (500 + 84.2) / (20 / (10 + 84.2))], rel=1e-2)

    def test_a_case_that_occurs_twice_in_a_batch_counts_both_patches(self):
        cases = new([False, False])
        update(cases, [1, 0, 1], [[1.0, 0, 0], [2.0, 0, 0], [5.0, 3, 0]], [10.0, 4.0, 20.0])
        torch.testing.assert_close(cases.rates(), torch.tensor([[0.5, 0, 0], [0.2, 0.1, 0]]))

    def test_order_of_the_patches_makes_no_difference(self):
        patches = (torch.tensor([1, 0, 1, 1]), torch.randint(0, 9, (4, 3)).float(), torch.randint(9, 20, (4,)).float())
        forward, backward = (new([True, False], base_share=0.25) for _ in range(2))
        for _ in range(3):
            update(forward, *patches)
            update(backward, *(t.flip(0) for t in patches))
        assert torch.equal(forward.rates(), backward.rates())

    def test_belief_is_the_teachers_error_over_the_cases_disagreement(self):
        # The teacher errs by 0.1 on trusted cases; the best given-label case differs as much.
        cases = agreement([[0.05, 0.05, 0], [0.05, 0.05, 0], [0.5, 0.05, 0]], [True, False, False], best_share=0.0)
        belief = cases.label_belief(torch.tensor([1, 2]), BALANCED)
        torch.testing.assert_close(belief[:, :2], torch.tensor([[0.98, 0.98], [0.1, 0.98]]))

    def test_the_best_given_cases_raise_the_teachers_error_within_bounds(self):
        settings = {"best_share": 0.0, "max_optimism": 2.5}
        doubled = agreement([[0.1, 0, 0], [0.2, 0, 0]], [True, False], **settings)
        assert doubled.teacher_error()[0].item() == pytest.approx(0.2)
        bounded = agreement([[0.1, 0, 0], [0.9, 0, 0]], [True, False], **settings)
        assert bounded.teacher_error()[0].item() == pytest.approx(0.25)
        lower = agreement([[0.1, 0, 0], [0.01, 0, 0]], [True, False], **settings)
        assert lower.teacher_error()[0].item() == pytest.approx(0.1)

    @pytest.mark.parametrize(
        ("sides", "expected"),
        [((0.9, 0.1), [0.1, 0.82, 0.1]), ((0.0, 1.0), [0.98, 0.1, 0.1]), ((1.0, 1.0), [0.1, 0.1, 0.1])],
        ids=["too large", "too small", "unknown"],
    )
    def test_one_sided_labels_are_right_on_their_other_side(self, sides, expected):
        cases = agreement([[0.05, 0.05, 0.05], [0.5, 0.5, 0.5]], [True, False], best_share=0.0, max_optimism=1.0)
        belief = cases.label_belief(torch.tensor([1]), torch.tensor(sides))
        torch.testing.assert_close(belief, torch.tensor([expected]))

    def test_labels_are_believed_until_a_trusted_case_was_seen(self):
        cases = agreement([[0.5, 0.5, 0.5]], [False])
        assert (cases.label_belief(torch.tensor([0]), BALANCED) == 0.98).all()

    def test_belief_stays_inside_its_bounds(self):
        cases = agreement([[0.0, 0, 0], [1.0, 1, 1]], [True, False])
        belief = cases.label_belief(torch.tensor([0, 1]), BALANCED)
        assert belief.min() >= 0.019
        assert belief.max() <= 0.981

    def test_only_trusted_cases_seen(self):
        cases = new([True, False])
        update(cases, [0], [[1.0, 2, 0]], [10.0])
        torch.testing.assert_close(cases.teacher_error(), torch.tensor([0.1, 0.2, 0.0]))

    def test_trusted_cases_without_structure_do_not_tell_the_teachers_error(self):
        cases = agreement([[0.2, 0.1, 0], [0.01, 0, 0], [0.6, 0, 0]], [True, True, False])
        cases.empty = torch.tensor([False, True, True])
        torch.testing.assert_close(cases.excess()[0], torch.tensor(0.3))
        assert cases.teacher_error()[:2].tolist() == pytest.approx([0.3, 0.15])  # at most 1.5 times the trusted rate
        cases.empty[:] = True  # no others: better these than none
        assert cases.excess()[0].item() == pytest.approx(0.6 - 0.155)

    def test_state_round_trip(self):
        cases = agreement([[0.1, 0.2, 0], [0.4, 0, 0.1]], [True, False], base_share=0.25)
        other = new([True, False], base_share=0.25)
        other.load_state_dict(cases.state_dict())
        for each in (cases, other):
            update(each, [1], [[3.0, 1, 0]], [9.0])
        assert torch.equal(cases.rates(), other.rates()) and torch.equal(cases.history, other.history)
        assert torch.equal(cases.visits, other.visits)

    def test_history_adds_up_what_was_seen_and_what_right_labels_would_have_shown(self):
        cases = new([True, False])
        given, trusted = torch.tensor([[30.0, 10, 0]]), torch.tensor([[8.0, 2, 0]])
        update(cases, [1], given, [100.0])
        assert not cases.history.any() and not cases.visits.any()  # nothing is expected until a trusted case was seen
        for _ in range(2):
            update(cases, [0, 1], torch.cat([trusted, given]), [100.0, 100.0])
        expected = 100 * float(cases.teacher_error().sum())
        torch.testing.assert_close(cases.history, torch.tensor([[20.0, 2 * expected], [80.0, 2 * expected]]))
        assert cases.visits.tolist() == [2, 2]

    def test_a_state_without_history_begins_with_the_last_rates(self):
        cases = agreement([[0.1, 0.2, 0], [0.4, 0, 0.1]], [True, False])
        state = cases.state_dict()
        del state["history"], state["visits"]
        other = new([True, False])
        other.load_state_dict(state)
        ratio = other.history[:, 0] / other.history[:, 1]
        torch.testing.assert_close(ratio, cases.rates().sum(1) / cases.teacher_error().sum())


class TestCaseBeliefs:
    """Cases 0 and 1 have doubtful labels, case 2 is trusted."""

    @staticmethod
    def believed(*alphas: float | None, **settings) -> CaseAgreement:
        result = new([False, False, True], **settings)
        for case, alpha in enumerate(alphas):
            if alpha is not None:
                result.update_beliefs(torch.tensor([case]), torch.tensor([100 * alpha]), torch.tensor([100]))
        return result

    def test_beliefs_are_the_mean_alpha_where_label_and_teacher_disagree(self):
        assert self.believed(0.8, 0.3).case_beliefs().tolist() == pytest.approx([0.8, 0.3, 1.0])

    def test_all_are_believed_while_nothing_is_known(self):
        assert self.believed().case_beliefs().tolist() == [1, 1, 1]

    def test_unknown_cases_are_believed_like_the_mean_of_the_known(self):
        assert self.believed(0.4).case_beliefs().tolist() == pytest.approx([0.4, 0.4, 1.0])

    def test_patches_add_up_and_momentum_keeps_the_past(self):
        cases = self.believed(momentum=0.75)
        cases.update_beliefs(torch.tensor([0, 0]), torch.tensor([10.0, 0.0]), torch.tensor([10, 10]))
        assert cases.beliefs[0] == 0.5
        cases.update_beliefs(torch.tensor([0]), torch.tensor([10.0]), torch.tensor([10]))
        assert cases.beliefs[0] == 0.75 * 0.5 + 0.25

    def test_patches_without_disagreement_teach_nothing(self):
        cases = self.believed(0.4)
        cases.update_beliefs(torch.tensor([0, 1]), torch.zeros(2), torch.zeros(2))
        assert cases.beliefs[0].item() == pytest.approx(0.4)
        assert cases.beliefs[1] == -1

    def test_state_round_trip(self):
        cases, other = self.believed(0.4, 0.9), self.believed()
        other.load_state_dict(cases.state_dict())
        assert torch.equal(cases.case_beliefs(), other.case_beliefs())
