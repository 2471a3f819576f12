"""Every network of an audit has its own offsets, and the page says what they mean."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from nnunetv2_metadcseg.label_audit_calibration import by_structure, calibrate, case_sample, lean_notes
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
    offsets = calibrate(TwoFolds(["a", "b"]), ["a", "b", "doubtful"])
    assert -2 < offsets[0][1] < -1 and 1 < offsets[1][1] < 2  # a voxel is half a logit


def test_one_trusted_case_is_not_enough_to_calibrate():
    assert calibrate(TwoFolds(["a"]), ["a", "b", "doubtful"]) == {}


def test_offsets_by_structure():
    structures = [Structure("liver", (1,), 1), Structure("spleen", (2,), 2)]
    assert by_structure({0: np.array([0, -1.5, 0]), 1: np.array([0, 0.5, 0])}, structures) == {"liver": [-1.5, 0.5]}
    assert by_structure({}, structures) == {}


def test_notes_name_the_structures():
    assert lean_notes({}) == lean_notes({"liver": [0.2, 0.7]}) == []
    larger, smaller = lean_notes({"liver": [-1.2, -1], "spleen": [0.7]})
    assert "liver" in larger and "too large on the whole" in larger
    assert "spleen" in smaller and "too small on the whole" in smaller


def test_regions_are_compared_by_region():
    given = np.array([[[0, 1, 2, 9]]], np.int16)
    structures = [Structure("core", (2,), 1), Structure("whole", (1, 2), 0)]
    prediction = CasePrediction(given, given, np.full((2, 1, 1, 4), 0.5), given != 9, {}, True)
    case = case_sample(prediction, structures, regions=True)
    assert case.given.tolist() == [2, 1]
    assert case.label.tolist() == [[False, True, True], [False, False, True]]
