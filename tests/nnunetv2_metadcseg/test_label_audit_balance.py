"""One-sided label errors in the audit: labels are measured beside right ones, and one side is doubted more."""

from __future__ import annotations

import math

import pytest

from nnunetv2_metadcseg.label_audit import Disagreement
from nnunetv2_metadcseg.label_audit_balance import (
    FEW_VISITS,
    MOST_DISCOUNT,
    Balance,
    Record,
    find_balance,
    mean_record,
    with_records,
)

NOTHING = Disagreement(0, 0, 0, 0)


def part(extra: float, missing: float) -> Disagreement:
    return Disagreement(100 * extra, 100 * missing, 100, 100)


RIGHT = [part(0.0, 0.15), part(0.01, 0.14), part(0.2, 0.0)]  # predictions are too large; one label is drawn generously


def test_labels_are_measured_beside_the_typical_right_one():
    """A right label lacks what the network predicts too much, a wrong one agrees with it."""
    right, wrong = part(0.0, 0.16), part(0.12, 0.01)
    assert right.rate > wrong.rate
    balance = find_balance([right, right, wrong, wrong], RIGHT)
    assert balance.center == pytest.approx(-0.13 * 3 / 5)
    assert balance.rate(wrong) > 2 * balance.rate(right)


def test_the_side_of_errors_that_go_one_way_or_cancel_out():
    even = [part(0.05, 0.05), part(0.04, 0.04)]
    large, small, moved = part(0.3, 0), part(0, 0.3), part(0.2, 0.2)
    assert find_balance([large, moved, large], even).side == pytest.approx(1)
    assert find_balance([small, moved, small], even).side == pytest.approx(-1)
    cancelling = find_balance([large, small, moved], even)
    assert cancelling.side == pytest.approx(0) and cancelling.center == 0
    assert cancelling.rate(large) == large.rate and cancelling.rate(moved) == moved.rate


def test_a_wrecked_label_does_not_decide_the_side():
    assert find_balance([part(1.9, 0), *[part(0, 0.3)] * 6], [part(0, 0)]).side < 0


def test_a_left_out_structure_counts_among_labels_that_are_too_large():
    balance = Balance(0.0, 1.0)
    assert balance.rate(part(0, 2.0)) == pytest.approx((1 - MOST_DISCOUNT) * 2)
    assert balance.rate(part(0.3, 0)) == pytest.approx(0.3)
    assert Balance(0.0, 0.5).rate(part(0, 1.0)) == pytest.approx(1 - MOST_DISCOUNT / 4)


@pytest.mark.parametrize(("doubtful", "right"), [([], RIGHT), (RIGHT, []), (RIGHT, [NOTHING]), ([NOTHING], RIGHT)])
def test_without_right_or_doubtful_labels_nothing_is_known(doubtful, right):
    assert find_balance(doubtful, right) == Balance()
    assert Balance().rate(RIGHT[1]) == pytest.approx(RIGHT[1].rate)


def test_no_structure_no_disagreement():
    assert Balance(-0.1, 1.0).rate(NOTHING) == 0


def test_an_empty_label_is_not_measured_by_the_boundaries_of_others():
    stray = Disagreement(0, 1, 100, 0)
    assert Balance(-0.1, 0.0).rate(stray) == pytest.approx(0.01)
    alone, beside = (find_balance([part(0.3, 0), *more], RIGHT) for more in ([], [Disagreement(0, 0, 100, 0)] * 9))
    assert alone == beside


def test_a_single_trusted_case_is_not_measured_by_itself():
    only = part(0.0, 0.1)
    assert find_balance([part(0.3, 0)], [only]).rate(only) > 0


class TestRecords:
    right = [2.0, 2.0, 2.0, 2.0]  # as the last case, which is trusted

    def joined(self, ratios: list[float], records: list[float | None], side: float, visits=math.inf) -> list[float]:
        """Ratios of the first cases, beside others whose labels are right."""
        trusted = [False] * (len(records) + 3) + [True]
        records = [None if record is None else Record(record, visits) for record in [*records, *self.right]]
        return with_records([*ratios, *[1.0] * 4], records, trusted, side)[: len(ratios)]

    def test_count_less_the_fewer_visits_there_were(self):
        never, few, many = (self.joined([1.0], [8.0], side=0.0, visits=n)[0] for n in (0, FEW_VISITS, 100 * FEW_VISITS))
        assert never < 1.05 and few == pytest.approx(4**0.25) and many == pytest.approx(2, rel=0.01)

    def test_mean_of_several_networks(self):
        assert mean_record([Record(1.0, 10), Record(3.0, 5)]) == Record(2.0, 15)
        assert mean_record([]) is None

    def test_count_as_much_as_the_prediction_where_errors_cancel_out(self):
        assert self.joined([1.0, 4.0], [8.0, 2.0], side=0.0) == pytest.approx([2.0, 2.0])

    def test_count_nothing_where_all_errors_go_one_way(self):
        assert self.joined([0.5, 3.0], [8.0, 2.0], side=-1.0) == pytest.approx([0.5, 3.0])

    def test_cases_that_were_not_trained_on_keep_their_ratio(self):
        assert self.joined([0.7, 1.0], [None, 8.0], side=0.0) == pytest.approx([0.7, 2.0])
        assert with_records([0.7, 1.0], [None, None], [False, True], 0.0) == [0.7, 1.0]

    def test_a_label_that_agrees_wholly_stays_below_one_that_does_not(self):
        low, high = self.joined([0.0, 0.1], [2.0, 2.0], side=0.0)
        assert 0 < low < high

    def test_cases_that_tell_nothing_are_not_what_is_expected(self):
        records = [Record(ratio, math.inf) for ratio in (0.0, 0.0, 2.0, 8.0)]
        tell, trusted = [False, False, True, True], [False] * 4
        usual, wrong = with_records([1.0] * 4, records, trusted, 0.0, tell)[2:]
        assert 0.5 < usual < 1 < wrong < 4
        # None of those that the trainer counted tells: then all of them.
        assert with_records([1.0], records[3:], [False], 0.0, [False]) == pytest.approx([1.0])
