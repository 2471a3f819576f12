from __future__ import annotations

import pytest
import torch

from nnunetv2_metadcseg.doubt import doubted_cases, few_kept, taught_cases


def doubted(ratios: list[float], trusted: int, sizes: float = 1000.0) -> list[bool]:
    """Of cases with these disagreements by those expected; the last ones are trusted."""
    history = torch.tensor([[ratio * sizes, sizes] for ratio in ratios])
    return doubted_cases(history, torch.arange(len(ratios)) >= len(ratios) - trusted).tolist()


TRUSTED = [0.7, 0.8, 0.9, 1.0, 1.1]


class TestDoubtedCases:
    def test_labels_that_disagree_more_than_trusted_ones(self):
        assert doubted([0.6, 1.2, 2.5, 3.0, *TRUSTED], 5) == [False, False, True, True, *[False] * 5]

    def test_all_given_labels_may_be_wrong(self):
        assert doubted([2.2, 2.5, 4.0, *TRUSTED], 5) == [True] * 3 + [False] * 5

    def test_what_is_expected_may_be_too_much(self):
        """Where no given label is right the error of the teacher on unseen cases is taken to be its largest."""
        assert doubted([1.2, 1.4, 0.6, *(ratio / 1.5 for ratio in TRUSTED)], 5) == [True, True, False] + [False] * 5

    def test_a_trusted_case_is_never_doubted(self):
        assert doubted([1.0, 1.0, 0.9, 1.1, 9.0], 3) == [False] * 5

    def test_trusted_cases_that_differ_more_leave_more_room(self):
        assert doubted([2.2, *TRUSTED], 5)[0]
        assert not doubted([2.2, 0.3, 0.6, 1.0, 2.0, 3.5], 5)[0]

    def test_few_trusted_cases_leave_more_room(self):
        assert doubted([1.5, *[0.9, 1.0, 1.1] * 3], 9)[0]
        assert not doubted([1.5, 1.0], 1)[0]
        assert doubted([3.0, 1.0], 1)[0]

    def test_cases_that_were_never_seen(self):
        history = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [10.0, 10.0]])
        assert not doubted_cases(history, torch.tensor([False, False, False, True])).any()
        assert not doubted_cases(torch.zeros(3, 2), torch.tensor([False, False, True])).any()
        assert not doubted_cases(torch.ones(3, 2), torch.zeros(3, dtype=torch.bool)).any()


@pytest.mark.parametrize("bias", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("doubted", "less"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([1, 0, 1, 1], [1, 0, 1, 1]),
        ([1, 1, 1, 1], [0, 0, 0, 0]),  # none is left: all
        ([1] * 19 + [0], [0] * 20),  # too few are left: all
        ([1] * 18 + [0] * 2, [1] * 18 + [0] * 2),
    ],
)
def test_whose_labels_are_still_learned(doubted, less, bias):
    trusted = torch.tensor([False] * len(doubted) + [True, True])
    asked = torch.tensor([*doubted, 0, 0]) > 0
    assert few_kept(asked, trusted) == (any(doubted) and not any(less))
    taught = taught_cases(asked, trusted, torch.tensor(bias))
    torch.testing.assert_close(taught, torch.tensor([bias if x else 1.0 for x in [*less, 0, 0]]))
