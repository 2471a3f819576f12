"""Offsets on small arrays whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit, softmax

from nnunetv2_metadcseg import calibration
from nnunetv2_metadcseg.calibration import BOUND, fit_offsets, sample
from tests.nnunetv2_metadcseg.ramps import WIDTH, line, ramp

EVERYWHERE = line(WIDTH)


def shifted(p: np.ndarray, offsets: np.ndarray, regions: bool) -> np.ndarray:
    """Probabilities (K, 1, 1, WIDTH) with offsets on their logits."""
    offsets = offsets.reshape(-1, 1, 1, 1)
    return expit(logit(p) + offsets) if regions else softmax(np.log(np.maximum(p, 1e-12)) + offsets, 0)


def following(ends: list) -> list:
    """Parts of a line between the ends of the one before and their own; background, what is left, first."""
    return [1 - ends[-1], ends[0], *(b - a for a, b in zip(ends, ends[1:], strict=False))]


def softmax_case(edges: tuple[float, ...], labels: tuple[int, ...]):
    """Structures that follow each other along the line."""
    masks = [part > 0 for part in following([line(edge).astype(int) for edge in labels])]
    return sample(np.stack(following([ramp(edge) for edge in edges])), masks, EVERYWHERE, regions=False)


def size(p: np.ndarray, head: int) -> int:
    return int((p.argmax(0) == head).sum())


def test_predictions_become_as_large_as_the_labels():
    offsets = fit_offsets([softmax_case((end + 6,), (end,)) for end in (100, 110, 120)], regions=False)
    assert offsets[0] == 0 and offsets[1] == pytest.approx(-0.5 * 6, abs=0.4)
    p = shifted(np.stack([1 - ramp(160), ramp(160)]), offsets, regions=False)
    assert size(p, 1) == pytest.approx(154, abs=1) and p.sum(0).ravel() == pytest.approx(np.ones(WIDTH))


def test_every_structure_has_its_own_offset():
    cases = [softmax_case((100 + i, 200 + 2 * i), (103 + i, 196 + 2 * i)) for i in (0, 4, 8)]
    offsets = fit_offsets(cases, regions=False)
    first, last = ramp(110), ramp(205)
    p = shifted(np.stack([1 - last, first, last - first]), offsets, regions=False)
    assert size(p, 1) == pytest.approx(113, abs=1) and size(p, 2) == pytest.approx(201 - 113, abs=2)


def test_regions_are_independent():
    def case(outer, inner):
        p = np.stack([ramp(outer + 4), ramp(inner - 2)])
        return sample(p, [line(outer), line(inner)], EVERYWHERE, regions=True)

    offsets = fit_offsets([case(200, 50), case(204, 52), case(208, 54)], regions=True)
    p = shifted(np.stack([ramp(304), ramp(98)]), offsets, regions=True)
    assert [(q > 0.5).sum() for q in p] == pytest.approx([300, 100], abs=1)
    assert logit(p[0, 0, 0, 303]) == pytest.approx(logit(ramp(304)[0, 0, 303]) + offsets[0], abs=1e-3)


@pytest.mark.parametrize(
    "cases",
    [
        [],
        [softmax_case((110,), (104,))],
        [softmax_case((100,), (100,)), softmax_case((200,), (200,))],
        [softmax_case((110,), (104,)), softmax_case((200,), (212,))],
        [softmax_case((end + lean,), (end,)) for end, lean in ((100, 4), (102, -6), (104, 9), (106, 20), (108, 11))],
    ],
    ids=["none", "one", "no lean", "they differ", "perhaps chance"],
)
def test_no_offset_without_evidence(cases):
    assert not fit_offsets(cases, regions=False).any()


def test_a_structure_that_no_trusted_case_holds_stays_as_it_is():
    offsets = fit_offsets([softmax_case((end + 6, end + 6), (end, end)) for end in (100, 110, 120)], regions=False)
    assert offsets[1] < 0 == offsets[2]


def test_bounded_and_blind_to_what_is_ignored():
    p = np.stack([1 - ramp(300), ramp(300)])
    case = sample(p, [~line(100), line(100)], EVERYWHERE, regions=False)
    assert -BOUND <= fit_offsets([case, case], regions=False)[1] < -0.99 * BOUND
    p = np.stack([1 - ramp(110), ramp(110)])
    seen = sample(p, [~line(104), line(104)], line(104), regions=False)
    assert not fit_offsets([seen, seen], regions=False).any()


def test_large_cases_are_thinned_out():
    p = np.tile(np.stack([1 - ramp(110), ramp(110)]), (1, 1, 4000, 1))
    masks = [np.tile(mask, (1, 4000, 1)) for mask in (~line(104), line(104))]
    case = sample(p, masks, np.ones(p.shape[1:], bool), regions=False)
    assert case.logits.shape[1] == case.label.shape[1] <= 50_000
    assert fit_offsets([case, case], regions=False)[1] == pytest.approx(-3, abs=0.5)


def test_huge_cases_are_thinned_out_before_anything_is_copied(monkeypatch):
    cases = [softmax_case((end + 6,), (end,)) for end in (100, 110, 120)]
    monkeypatch.setattr(calibration, "MOST_NUMBERS", WIDTH)
    thin = [softmax_case((end + 6,), (end,)) for end in (100, 110, 120)]
    assert thin[0].given.tolist() == [150, 50]
    assert fit_offsets(thin, regions=False) == pytest.approx(fit_offsets(cases, regions=False), abs=0.6)


def test_structures_that_are_missed_altogether_are_not_made_up_for_elsewhere():
    fine, missed = softmax_case((100,), (99,)), softmax_case((-20,), (80,))
    assert not fit_offsets([missed, missed, missed, fine, fine], regions=False).any()
