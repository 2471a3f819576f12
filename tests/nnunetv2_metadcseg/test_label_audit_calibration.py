"""Every network of an audit has its own offsets, and the page says what they mean."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from nnunetv2_metadcseg.label_audit_calibration import (
    Calibration,
    by_structure,
    calibrate,
    calibration_notes,
    case_sample,
    size_errors,
)
from nnunetv2_metadcseg.label_audit_predict import CasePrediction, Structure
from tests.nnunetv2_metadcseg.ramps import line, ramp


class TwoFolds:
    """Fold 0 predicts the structure three voxels too long, fold 1 three too short."""

    folds, structures = (0, 1), [Structure("organ", (1,), 1)]
    label_manager = SimpleNamespace(has_regions=False)
    lengths = {"a": 100, "b": 110, "doubtful": 300}

    def __init__(self, trusted: list[str]) -> None:
        self.trusted = trusted

    def predict(self, case, folds, learned):
        edge = self.lengths[case] + (3 if folds == [0] else -3)
        p = np.stack([1 - ramp(edge), ramp(edge)])
        given = line(self.lengths[case]).astype(np.int16)
        return CasePrediction(given, given, p, np.ones(given.shape, bool), {}, True)


def test_every_fold_has_its_own_offsets():
    offsets = calibrate(TwoFolds(["a", "b"]), ["a", "b", "doubtful"]).offsets
    assert -2 < offsets[0][1] < -1 and 1 < offsets[1][1] < 2  # a voxel is half a logit


def test_one_trusted_case_is_not_enough_to_calibrate():
    assert calibrate(TwoFolds(["a"]), ["a", "b", "doubtful"]).offsets == {}


STRUCTURES = [Structure("liver", (1,), 1), Structure("spleen", (2,), 2)]


def test_offsets_by_structure():
    leans = np.array([0, 0.4, 0.3])
    found = Calibration({0: np.array([0, -1.5, 0]), 1: np.array([0, 0.5, 0])}, {0: leans, 1: leans})
    assert by_structure(found, STRUCTURES) == {"liver": [-1.5, 0.5]}
    assert size_errors(found, STRUCTURES) == pytest.approx({"liver": 0.5})
    assert by_structure(Calibration(), STRUCTURES) == {}


def test_notes_name_the_structures_and_by_how_much():
    found = Calibration({0: np.array([0, -1.2, 0.2])}, {0: np.array([0, 0.4, -0.4])})
    larger, smaller = calibration_notes(found, STRUCTURES)
    assert "liver were mostly larger" in larger and "by 50 %" in larger and "undertrained" in larger
    assert "spleen were mostly smaller" in smaller and "by 33 %" in smaller


def test_what_a_network_has_not_learned_is_said_plainly():
    offsets, leans = {0: np.array([0, -4.0, 0])}, {0: np.array([0, 1.93, -2.0])}
    liver, spleen = calibration_notes(Calibration(offsets, leans, {0: np.array([0, 0.1, 0])}), STRUCTURES)
    assert "does not segment liver yet" in liver and "56.1 times the labelled volume" in liver and "%" not in liver
    assert "does not segment spleen yet" in spleen and "next to nothing of it" in spleen  # no offset helps there
    (liver,) = calibration_notes(Calibration(offsets, leans, {0: np.array([0, 0.8, 0.8])}), STRUCTURES)
    assert "mostly larger" in liver  # labels that are too large, and the offset mends it


def test_the_dice_of_trusted_cases_is_that_with_offsets():
    found = calibrate(TwoFolds(["a", "b"]), ["a", "b", "doubtful"])
    assert found.dice[0][1] > 0.99 and found.dice[1][1] > 0.99


def test_no_note_where_sizes_hardly_differ():
    found = calibrate(TwoFolds(["a", "b"]), ["a", "b", "doubtful"])
    for fold in (0, 1):  # 3 % in volume, although more than a logit
        one = Calibration({fold: found.offsets[fold]}, {fold: found.leans[fold]})
        assert abs(found.leans[fold][1]) == pytest.approx(0.03, abs=0.005)
        assert calibration_notes(one, TwoFolds.structures) == []
    assert calibration_notes(calibrate(TwoFolds(["a"]), ["a", "b"]), TwoFolds.structures) == []


def test_label_of_another_shape_names_the_case():
    class Cut(TwoFolds):
        def predict(self, case, folds, learned):
            found = super().predict(case, folds, learned)
            if case == "b":
                found.given, found.valid = found.given[..., 1:], found.valid[..., 1:]
            return found

    with pytest.raises(ValueError, match="^Case b: The label has the shape .*expected that of the image"):
        calibrate(Cut(["a", "b"]), ["a", "b"])


def test_regions_are_compared_by_region():
    given = np.array([[[0, 1, 2, 9]]], np.int16)
    structures = [Structure("core", (2,), 1), Structure("whole", (1, 2), 0)]
    prediction = CasePrediction(given, given, np.full((2, 1, 1, 4), 0.5), given != 9, {}, True)
    case = case_sample(prediction, structures, regions=True)
    assert case.given.tolist() == [2, 1]
    assert case.label.tolist() == [[False, True, True], [False, False, True]]
