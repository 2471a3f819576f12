"""The numbers of cases and labels, and their ranking, from disagreements and made-up predictions."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from nnunetv2_metadcseg.label_audit import Disagreement, pooled, proposed_label, wrong_probability
from nnunetv2_metadcseg.label_audit_balance import Record
from nnunetv2_metadcseg.label_audit_decision import beyond_chance
from nnunetv2_metadcseg.label_audit_findings import (
    CaseFinding,
    LabelFinding,
    measure,
    probability_of_given,
    voxel_ratios,
)
from nnunetv2_metadcseg.label_audit_notes import unvouched_notes
from nnunetv2_metadcseg.label_audit_predict import CasePrediction, Structure
from nnunetv2_metadcseg.label_audit_score import score

PROPERTIES = {"spacing": (2.0, 1.0, 1.0)}


def test_probability_of_the_given_label():
    given = np.array([[[0, 1, 2, 9]]], np.int16)
    probabilities = np.array([0.7, 0.2, 0.1])[:, None, None, None] * np.ones((3, 1, 1, 4))
    valid = np.array([[[True, True, True, False]]])
    prediction = CasePrediction(given, given, probabilities, valid, {}, True)
    assert probability_of_given(prediction, (), False).ravel().tolist() == pytest.approx([0.7, 0.2, 0.1, 1])


def test_probability_of_the_given_label_with_regions():
    given = np.array([[[0, 1, 2]]], np.int16)
    structures = [Structure("whole", (1, 2), 0), Structure("core", (2,), 1)]
    probabilities = np.array([0.8, 0.3])[:, None, None, None] * np.ones((2, 1, 1, 3))
    prediction = CasePrediction(given, given, probabilities, np.ones(given.shape, bool), {}, True)
    assert probability_of_given(prediction, structures, True).ravel().tolist() == pytest.approx([0.2, 0.7, 0.3])


def test_numbers_per_label_agree_with_those_of_the_case():
    """Three classes, none above 1/2: given and most probable label agree, so no label differs either."""
    p = np.array([[0.25, 0.25, 0.4], [0.45, 0.3, 0.35], [0.3, 0.45, 0.25]]).reshape(3, 1, 1, 3)
    given = p.argmax(0).astype(np.int16)
    prediction = CasePrediction(given, given, p, np.ones(given.shape, bool), PROPERTIES, True)
    found = measure("case", prediction, [Structure("one", (1,), 1), Structure("two", (2,), 2)], trusted=False)
    assert found.rate == found.parts["one"].rate == found.parts["two"].rate == 0


def test_what_the_trainer_saw_finds_a_label_that_the_network_knows_by_heart():
    """Both labels agree with the prediction by now."""
    right, known, trusted = (finding(name, record) for name, record in (("a", 1.0), ("b", 6.0), ("c", 1.0)))
    trusted.trusted = True
    score([right, known, trusted])
    assert known.rank == 1 and known.reliability < 0.5 < right.reliability


NOTHING = Disagreement(0, 0, 0, 0)


def lesions(number: int, empty: int, trusted: bool = False, out_of_fold: bool = True, stray=NOTHING) -> list:
    """Cases with right labels, `empty` of them without a lesion."""
    random, made = np.random.default_rng(number), []
    for i in range(number):
        part = stray if i < empty else Disagreement(*random.uniform(30, 60, 2), 1000, 1000)
        name = f"{'trusted' if trusted else 'case'}_{out_of_fold}_{i}"
        made.append(CaseFinding(name, out_of_fold, trusted, {"x": part}, part, None, (9, 9, 9), (1, 1, 1)))
    return made


@pytest.mark.parametrize("stray", [NOTHING, Disagreement(0, 1, 1, 0)])
@pytest.mark.parametrize(
    "others",
    [
        [],  # a stock model without trusted cases
        lesions(5, 4, trusted=True),  # most trusted cases are empty
        lesions(5, 5, trusted=True),
        lesions(5, 0, trusted=True, out_of_fold=False),  # -f 0
    ],
)
def test_labels_that_are_rightly_empty_make_no_others_suspicious(others, stray):
    cases = lesions(20, 8, stray=stray)
    score([*cases, *deepcopy(others)])
    reliabilities = [f.reliability for f in cases if f.whole.labelled]
    assert 0.35 < min(reliabilities) and max(reliabilities) < 0.65
    assert all(f.labels[0].reliability == f.reliability for f in cases)
    assert all(f.reliability > 0.97 for f in cases if not f.whole.labelled)


def with_rare_label(cases: list, every: int) -> list:
    """Every so many cases get a label that agrees ten times better than the other; the rest lack it."""
    random = np.random.default_rng(0)
    for i, case in enumerate(cases):
        rare = Disagreement(*random.uniform(0.3, 0.6, 2), 100, 100) if every and i % every == 0 else NOTHING
        case.parts["rare"] = rare
    cases[0].parts["rare"] = replace(cases[0].parts["rare"], extra=0.0, missing=0.0)  # the best: agrees wholly
    return cases


@pytest.mark.parametrize("every", [4, 40])
def test_a_rare_label_without_trusted_case_is_not_the_least_reliable_everywhere(every):
    cases = [*with_rare_label(lesions(5, 0, trusted=True), 0), *with_rare_label(lesions(40, 0), every)]
    score(cases)
    for f in cases:
        usual, rare = (label.reliability for label in f.labels)
        assert rare > 0.85 > 0.65 > usual
    (note,) = unvouched_notes(cases)
    assert note.startswith("No trusted case holds rare: ")


def test_no_note_on_labels_that_trusted_cases_hold_or_nobody():
    trusted, others = lesions(5, 0, trusted=True), lesions(8, 0)
    assert unvouched_notes(with_rare_label(trusted, 5) + with_rare_label(others, 4)) == []
    assert unvouched_notes(with_rare_label(trusted, 0) + with_rare_label(others, 0)) == []
    assert unvouched_notes(with_rare_label(others, 4)) == []


def finding(case: str, record: float) -> CaseFinding:
    part = Disagreement(1, 1, 100, 100)
    return CaseFinding(case, False, False, {"x": part}, part, None, (1, 1, 1), (1, 1, 1), Record(record, 200))


LIVER, TUMOUR = Structure("liver", (1,), 1), Structure("tumour", (2,), 2)


def ball(center: tuple, radius: float) -> np.ndarray:
    grid = np.indices((24, 32, 32))
    return sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True)) < radius**2


def liver_with_tumour(left_out: bool) -> CasePrediction:
    """The network finds both, and errs at the liver's surface; the label may lack the tumour."""
    given = ball((12, 16, 16), 10).astype(np.int16)
    predicted = np.where(ball((12.7, 16, 16), 10), 1, 0).astype(np.int16)
    predicted[ball((12, 18, 18), 2.5)] = 2
    if not left_out:
        given[ball((12, 18.4, 18), 2.5)] = 2
    probabilities = np.stack([np.where(predicted == k, 0.8, 0.1) for k in range(3)])
    return CasePrediction(given, predicted, probabilities, np.ones(given.shape, bool), PROPERTIES, True)


def livers() -> tuple[list[CasePrediction], list[CaseFinding]]:
    """Four trusted cases, four right ones, and one without its tumour."""
    predictions = [liver_with_tumour(i == 8) for i in range(9)]
    return predictions, [measure(f"case_{i}", p, [LIVER, TUMOUR], i < 4) for i, p in enumerate(predictions)]


def test_a_left_out_tumour_is_not_hidden_by_a_right_liver():
    predictions, cases = livers()
    score(cases)
    bad, given, predicted = cases[8], predictions[8].given, predictions[8].predicted
    assert (bad.rank, bad.decided_by) == (1, "tumour") and bad.whole_ratio < 1.5 < 5 < bad.ratio
    assert bad.worst.name == "tumour"  # also while neither label is said to differ
    ratios = voxel_ratios(bad, given, predicted, [LIVER, TUMOUR], regions=False)
    suspicion = wrong_probability(probability_of_given(predictions[8], (), regions=False), ratios)
    proposed = proposed_label(given, predicted, suspicion)
    assert ((proposed == 2) == (predicted == 2)).all()
    assert ((proposed > 0) == (given > 0)).all()  # the liver's surface differs as much as elsewhere
    assert all(f.decided_by == "" and f.reliability == pytest.approx(0.5) for f in cases[:8])


def test_the_ratio_at_a_voxel_is_that_of_the_region_in_question():
    whole, core = Structure("whole", (1, 2), 0), Structure("core", (2,), 1)
    made = CaseFinding("a", True, False, {}, NOTHING, None, (4,), (1,), whole_ratio=1.0, ratio=6.0)
    by_chance = 1 / beyond_chance(1.0, 2)
    made.labels = [LabelFinding(s.name, 0, beyond * by_chance, None) for s, beyond in ((whole, 3.0), (core, 7.0))]
    given, predicted = np.array([0, 0, 1, 2]), np.array([0, 1, 2, 2])
    assert voxel_ratios(made, given, predicted, [whole, core], regions=True).tolist() == [1, 3, 7, 1]


def organs(number: int, trusted: bool, random: np.random.Generator, worse: float = 1.0) -> list[CaseFinding]:
    """Twelve labels; those of the smaller organs vary more."""
    sizes, made = np.geomspace(300, 100000, 12), []
    for i in range(number):
        rates = 0.1 * worse * np.exp(random.normal(0, np.linspace(0.6, 0.15, 12)))
        pairs = enumerate(zip(rates, sizes, strict=True))
        parts = {str(k): Disagreement(rate * n / 2, rate * n / 2, n, int(n)) for k, (rate, n) in pairs}
        whole = pooled(list(parts.values()))
        made.append(CaseFinding(f"{worse}_{trusted}_{i}", True, trusted, parts, whole, None, (9,), (1,)))
    return made


def test_three_trusted_cases_do_not_make_labels_decide_that_vary_by_nature():
    random = np.random.default_rng(0)
    right, wrong = organs(30, False, random), organs(30, False, random, worse=1.8)
    score([*organs(3, True, random), *right, *wrong])
    assert sum(f.decided_by != "" for f in right) <= 3
    assert np.mean([f.rank > 30 for f in right]) > 0.9


def test_one_structure_is_the_whole_case():
    cases = lesions(5, 0, trusted=True) + lesions(9, 2)
    score(cases)
    for f in cases:
        assert f.ratio == f.whole_ratio and f.decided_by == ""
        assert voxel_ratios(f, np.ones(3), np.zeros(3), [LIVER], regions=False) == f.ratio


@pytest.mark.parametrize(
    ("spacing", "reader", "expected"),
    [
        ((1.0, 1.0, 1.0), {"sitk_stuff": {}}, "mm"),  # NIfTI at 1 mm
        ((1.0, 1.0, 1.0), {"nibabel_stuff": {}}, "mm"),
        ((1.0, 1.0, 1.0), {}, "px"),  # TIFF without the file that says its spacing
        ((2.0, 0.5, 0.5), {}, "mm"),
    ],
)
def test_lengths_are_in_voxels_where_no_spacing_is_known(spacing, reader, expected):
    prediction = liver_with_tumour(left_out=False)
    prediction.properties = {"spacing": spacing} | reader
    assert measure("a", prediction, [LIVER, TUMOUR], False).unit == expected
