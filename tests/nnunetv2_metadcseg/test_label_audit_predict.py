"""nnU-Net's side of the audit: what a model has seen, and what is said where something cannot be read."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from nnunetv2_metadcseg.label_audit_predict import AuditError, FoldNetwork, TrainedModel, explained, same_geometry


def test_same_geometry():
    image = {"spacing": [2.0, 1, 1], "nibabel_stuff": {"original_affine": np.eye(4)}, "class_locations": {}}
    label = {"spacing": (2.0, 1, 1 + 1e-6), "nibabel_stuff": {"original_affine": np.eye(4)}}
    assert same_geometry(label, image)
    assert not same_geometry(label | {"spacing": (1, 1, 1)}, image)
    assert not same_geometry(label | {"nibabel_stuff": {"original_affine": np.diag([-1, 1, 1, 1])}}, image)
    assert not same_geometry(label | {"sitk_stuff": {"origin": (0, 0)}}, image)
    left, right = ({"sitk_stuff": {"original_orientation": name}} for name in ("LPS", "RAS"))
    assert same_geometry(left, left) and not same_geometry(left, right)


@pytest.mark.parametrize("left_out", [["b", "d"], [], None])
def test_says_which_cases_the_trainer_left_out(left_out):
    ours = {"state": {"left_out": left_out, "cases": ["a", "b", "d"]}, "trainer": "nnUNetTrainerMetaDCSeg"}
    note = FoldNetwork(SimpleNamespace(maps="prediction"), 0, None, ours).note
    assert note.endswith("left out 2 cases as doubtful: b, d.") if left_out else note is None


def test_trusted_cases_may_be_absent_but_not_broken(tmp_path):
    def model(dataset: dict) -> TrainedModel:
        made = TrainedModel.__new__(TrainedModel)
        made.preprocessed, made.dataset_json = tmp_path, dataset
        made.dataset = SimpleNamespace(identifiers=["a", "b", "c"])
        return made

    assert model({"trusted_cases": ["b", "a"]}).trusted == ["a", "b"]
    assert model({}).trusted == []
    with pytest.raises(AuditError, match="Trusted cases b.nii.gz are not among the 3 preprocessed cases"):
        _ = model({"trusted_cases": ["b.nii.gz", "a"]}).trusted
    (tmp_path / "trusted_cases.json").write_text("[1]")
    with pytest.raises(AuditError, match="list of case identifiers"):
        _ = model({}).trusted


def one_fold(ours: dict | None) -> TrainedModel:
    """Trained on a, b and c, says splits_final.json now; a, b and d are trusted."""
    model = TrainedModel.__new__(TrainedModel)
    model.maps, model.folds, model.trusted = "prediction", (0,), ["a", "b", "d"]
    model.splits = [{"train": ["a", "b", "c"], "val": ["d"]}]
    model.dataset = SimpleNamespace(identifiers=list("abcd"))
    model.networks = {0: FoldNetwork(model, 0, None, ours)}
    return model


@pytest.mark.parametrize(
    ("ours", "unseen"),
    [
        ({"trainer": "nnUNetTrainerTrustedOnly", "state": {"trusted": ["a"]}}, "bcd"),  # until 2026-11-30
        ({"trainer": "nnUNetTrainerTrustedOnly", "state": {}}, "cd"),  # older: those declared now
        ({"trainer": "nnUNetTrainerMixed", "state": {}}, "d"),
        (None, "d"),
        ({"trainer": "OurOwnTrustedOnly", "state": {}, "seen": ["a"]}, "bcd"),  # whatever its name
        ({"trainer": "nnUNetTrainerMetaDCSeg", "state": {"trusted": ["a"], "cases": ["a", "b", "c"]}}, "d"),
    ],
)
def test_which_labels_a_network_has_seen(ours, unseen):
    model = one_fold(ours)
    assert model.cases() == list("abcd")
    assert {case for case in "abcd" if model.folds_for(case)[1]} == set(unseen)
    assert model.split_notes() == []


@pytest.mark.parametrize("known", [{"seen": ["b", "c", "d"]}, {"state": {"cases": ["b", "c", "d"]}}])
def test_a_split_that_changed_after_the_training_is_not_believed(known):
    model = one_fold({"trainer": "nnUNetTrainerMetaDCSeg", "state": {}} | known)
    assert [case for case in "abcd" if model.folds_for(case)[1]] == ["a"]
    (note,) = model.split_notes()
    assert note.startswith("The network of fold 0 was trained on 1 cases that are not in the training part")


def test_learned_weights_take_what_nnunet_cropped_away_for_background():
    """nnU-Net's crop marks it -1, which the trainer's transforms remove."""
    looked_at = []
    network = FoldNetwork(SimpleNamespace(maps="prediction"), 0, None, None)
    network.predictor = SimpleNamespace(predict_logits_from_preprocessed_data=lambda image: image)
    network.trainer_record = SimpleNamespace(suspicion=lambda case, image, label, logits: looked_at.append(label))
    network.run("a", np.zeros((1, 1, 1, 3), np.float32), np.array([[[[-1, 0, 2]]]], np.int8), learned=True)
    assert looked_at[0].flatten().tolist() == [0, 0, 2]


def test_why_a_label_cannot_be_read_is_said(tmp_path):
    """SimpleITK's first line is a place in its C++ source; of CUDA's many lines the first says what went wrong."""
    import nibabel
    import SimpleITK as sitk

    sheared = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), sheared), tmp_path / "a.nii.gz")
    with pytest.raises(AuditError, match="x .RuntimeError: ITK ERROR: ITK only supports orthonormal direction"):
        with explained("x"):
            sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    for text, says in (("CUDA error: no memory\nCompile with DSA", "CUDA error: no memory"), ("", "no reason given")):
        with pytest.raises(AuditError, match=f"x .RuntimeError: {says}"), explained("x"):
            raise RuntimeError(text)
