"""The active loop: proposals, answers of a person, and the list of trusted cases."""

from __future__ import annotations

import json

import pytest

from nnunetv2_metadcseg.label_audit_predict import AuditError
from nnunetv2_metadcseg.label_audit_trust import confirm, confirmed_cases, propose, write_proposal
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
    with pytest.raises(AuditError, match="checked cases already"):
        write_proposal(out, 2)
    assert json.loads(file.read_text())["c"] == "checked"


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
        ({"x": "checked"}, "names x"),
        (["a"], "list, expected"),
    ],
)
def test_answers_that_add_nothing_are_errors(tmp_path, answers, message):
    with pytest.raises(AuditError, match=message):
        confirmed_cases(answers, ["a", "b"], tmp_path / "f.json")


def test_confirm_of_broken_json(tmp_path):
    file = tmp_path / "f.json"
    file.write_text("{")
    with pytest.raises(AuditError, match="not valid JSON"):
        confirm(file, tmp_path, [], ["a"])
    assert not (tmp_path / "trusted_cases.json").exists()
