"""The active loop: proposals, answers of a person, and the list of trusted cases."""

from __future__ import annotations

import json
import os

import pytest

from nnunetv2_metadcseg.label_audit_predict import AuditError
from nnunetv2_metadcseg.label_audit_trust import (
    confirm,
    confirmed_cases,
    propose,
    read_answers,
    set_aside,
    write_proposal,
)
from nnunetv2_metadcseg.trusted_cases import read_trusted_cases

AUDIT = {
    "cases": {
        "a": {"rank": 3, "trusted": False},
        "b": {"rank": 1, "trusted": True},
        "c": {"rank": 2, "trusted": False},
        "d": {"rank": 4, "trusted": False},
    }
}


@pytest.fixture
def out(tmp_path):
    (tmp_path / "audit.json").write_text(json.dumps(AUDIT))
    return tmp_path


def test_proposes_the_least_reliable_that_are_not_trusted():
    assert list(propose(AUDIT, 2).items()) == [("c", "to check"), ("a", "to check")]
    assert list(propose(AUDIT, 10)) == ["c", "a", "d"]


def test_nothing_to_propose():
    with pytest.raises(AuditError, match="at least 1"):
        propose(AUDIT, 0)
    with pytest.raises(AuditError, match="none left"):
        propose({"cases": {"b": {"rank": 1, "trusted": True}}}, 5)


def test_proposal_is_written_but_an_edited_one_is_not_lost(out):
    file = write_proposal(out, 2)
    assert json.loads(file.read_text()) == {"c": "to check", "a": "to check"}
    write_proposal(out, 1)
    file.write_text(json.dumps({"c": "checked", "a": "to check"}))
    with pytest.raises(AuditError, match="not handed over; .* rename it to to_check.1.json"):
        write_proposal(out, 2)
    assert json.loads(file.read_text())["c"] == "checked"


def test_a_proposal_with_skipped_cases_is_not_lost(out):
    file = write_proposal(out, 2)
    file.write_text(json.dumps({"c": "skip", "a": "to check"}))
    with pytest.raises(AuditError, match="not handed over; .* rename it to to_check.1.json"):
        write_proposal(out, 2)
    assert json.loads(file.read_text())["c"] == "skip"


def test_rounds_leave_out_what_was_answered_before(out):
    file = write_proposal(out, 2)
    file.write_text(json.dumps({"c": "checked", "a": "to check"}))
    assert set_aside(file) == out / "to_check.1.json"
    assert read_answers(write_proposal(out, 2)) == {"a": "to check", "d": "to check"}
    file.write_text(json.dumps({"a": "skip", "d": "checked"}))
    assert set_aside(file) == out / "to_check.2.json"
    with pytest.raises(AuditError, match="trusted or answered already"):
        write_proposal(out, 2)
    assert not file.exists() and read_answers(out / "to_check.1.json")["c"] == "checked"


def test_answers_of_another_name_are_not_renamed(out):
    (out / "mine.json").write_text("{}")
    (out / "to_check.copy.json").write_text("no answers")
    assert set_aside(out / "mine.json") == out / "mine.json" and (out / "mine.json").exists()
    assert list(read_answers(write_proposal(out, 1))) == ["c"]


@pytest.mark.parametrize("content", [[], {}, {"cases": ["a"]}, {"cases": {"a": {"rank": 1}}}])
def test_proposal_of_a_file_that_is_no_audit(tmp_path, content):
    (tmp_path / "audit.json").write_text(json.dumps(content))
    with pytest.raises(AuditError, match="not an audit"):
        write_proposal(tmp_path, 2)


def test_proposal_over_a_file_that_is_no_proposal(out):
    (out / "to_check.json").write_text("[]")
    with pytest.raises(AuditError, match="holds a list"):
        write_proposal(out, 2)


@pytest.fixture
def answered(tmp_path):
    """An audit of Dataset504_Demo whose case c is checked, and its preprocessed and raw labels."""
    for folder, data in (("out", None), ("pre", "gt_segmentations"), ("raw", "labelsTr")):
        (tmp_path / folder / "Dataset504_Demo" / (data or "")).mkdir(parents=True)
        if data:
            (tmp_path / folder / "Dataset504_Demo" / data / "c.nii").write_bytes(b"label")
    (tmp_path / "out" / "audit.json").write_text(json.dumps(AUDIT | {"dataset": "Dataset504_Demo"}))
    (tmp_path / "out" / "to_check.json").write_text(json.dumps({"c": "checked"}))
    return tmp_path


def confirm_answered(root, dataset="Dataset504_Demo", trusted=()):
    file, raw = root / "out" / "to_check.json", root / "raw" / dataset
    return confirm(file, root / "pre" / dataset, trusted, ["b", "c"], raw, ".nii")[0]


def test_confirm_refuses_another_data_set(answered):
    with pytest.raises(AuditError, match="audit of Dataset504_Demo, but -d names Dataset505_Other"):
        confirm_answered(answered, "Dataset505_Other")


def test_confirm_refuses_declared_cases_that_do_not_exist(answered):
    with pytest.raises(AuditError, match="name b.nii, which is none of its cases"):
        confirm_answered(answered, trusted=["b.nii"])


def test_confirm_refuses_a_label_that_was_corrected_but_not_preprocessed(answered):
    data = answered / "raw" / "Dataset504_Demo"
    assert confirm_answered(answered) == ["c"]
    (data / "labelsTr" / "c.nii").write_bytes(b"other")
    with pytest.raises(AuditError, match="c.nii is not the one that was preprocessed.*run nnUNetv2_preprocess"):
        confirm_answered(answered)
    (data / "own.nii").write_bytes(b"label")
    (data / "dataset.json").write_text(json.dumps({"dataset": {"c": {"label": "own.nii"}}}))
    assert confirm_answered(answered) == ["c"]


@pytest.mark.parametrize(("number", "named"), [(1, None), (2, "2 cases: c00, c01"), (11, "11 cases: c00, .*, c09 ...")])
def test_all_labels_that_were_not_preprocessed_are_named_at_once(answered, number, named):
    names = [f"c{i:02d}" for i in range(number)]
    for folder, content in (("pre", b"label"), ("raw", b"other")):
        data = answered / folder / "Dataset504_Demo" / ("labelsTr" if folder == "raw" else "gt_segmentations")
        for name in names:
            (data / f"{name}.nii").write_bytes(content)
    file, folders = answered / "out" / "to_check.json", [answered / x / "Dataset504_Demo" for x in ("pre", "raw")]
    file.write_text(json.dumps(dict.fromkeys(names, "checked")))
    ends = f"confirm again .the same holds for {named}.[.]$" if named else "confirm again[.]$"
    with pytest.raises(AuditError, match=ends):
        confirm(file, folders[0], [], names, folders[1], ".nii")


def test_confirm_looks_at_labels_where_variables_say(answered, monkeypatch):
    data = answered / "raw" / "Dataset504_Demo"
    monkeypatch.setenv("DEMO_LABELS", str(data / "labelsTr"))
    (data / "dataset.json").write_text(json.dumps({"dataset": {"c": {"label": "$DEMO_LABELS/c.nii"}}}))
    assert confirm_answered(answered) == ["c"]
    (data / "labelsTr" / "c.nii").write_bytes(b"other")
    with pytest.raises(AuditError, match="c.nii is not the one that was preprocessed"):
        confirm_answered(answered)


def test_confirm_refuses_a_label_that_another_configuration_alone_has_seen(answered):
    """nnU-Net's copy of the labels follows whichever configuration was preprocessed last."""
    (answered / "out" / "audit.json").write_text(
        json.dumps(AUDIT | {"dataset": "Dataset504_Demo", "data_identifier": "nnUNetPlans_3d_fullres"})
    )
    preprocessed = answered / "pre" / "Dataset504_Demo"
    (preprocessed / "nnUNetPlans_3d_fullres").mkdir()
    made, copy = preprocessed / "nnUNetPlans_3d_fullres" / "c.pkl", preprocessed / "gt_segmentations" / "c.nii"
    made.touch()
    os.utime(made, (1000, 1000))
    os.utime(copy, (1030, 1030))  # copied with the folder, without dates
    assert confirm_answered(answered) == ["c"]
    os.utime(copy, (2000, 2000))
    message = "newer than what nnUNetPlans_3d_fullres in .* holds.*only copied without its dates, touch the .pkl files"
    with pytest.raises(AuditError, match=message):
        confirm_answered(answered)
    os.utime(made, (3000, 3000))
    assert confirm_answered(answered) == ["c"]


def test_confirm_of_a_folder(answered):
    with pytest.raises(AuditError, match="is a folder"):
        confirm(answered / "out", answered / "pre", [], ["c"])


def test_proposal_needs_an_audit(tmp_path):
    with pytest.raises(AuditError, match="run the audit first"):
        write_proposal(tmp_path, 2)


def test_confirm_adds_checked_cases_only(tmp_path):
    answers = tmp_path / "to_check.json"
    answers.write_text(json.dumps({"c": "checked", "a": "to check", "d": "skip", "b": "checked"}))
    new, file = confirm(answers, tmp_path, ["b"], ["a", "b", "c", "d"])
    assert new == ["c"] and json.loads(file.read_text()) == ["b", "c"]
    assert read_trusted_cases(tmp_path, {}) == ["b", "c"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"a": "to check"}, "no case"),
        ({"a": "yes"}, "'yes' for a"),
        ({"a": ["checked"]}, "for a"),
        ({"x": "checked"}, "names x"),
        (["a"], "list, expected"),
    ],
)
def test_answers_that_add_nothing_are_errors(tmp_path, answers, message):
    with pytest.raises(AuditError, match=message):
        file = tmp_path / "f.json"
        file.write_text(json.dumps(answers))
        confirmed_cases(read_answers(file), ["a", "b"], file)


def test_confirm_of_broken_json(tmp_path):
    file = tmp_path / "f.json"
    file.write_text("{")
    with pytest.raises(AuditError, match="not valid JSON"):
        confirm(file, tmp_path, [], ["a"])
    assert not (tmp_path / "trusted_cases.json").exists()


def test_answers_saved_with_a_mark_are_read(tmp_path):
    file = tmp_path / "to_check.json"
    file.write_text(json.dumps({"a": "checked"}), encoding="utf-8-sig")  # Notepad, PowerShell
    assert read_answers(file) == {"a": "checked"}
