from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_metadcseg.label_audit_output import MAPS, TABLES, check_output, left_over, worth_keeping, written_whole
from nnunetv2_metadcseg.label_audit_predict import AuditError


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    out = tmp_path / "audit"
    for kind in MAPS:
        (out / kind).mkdir(parents=True)
        (out / kind / "case_1.nii.gz").write_text(kind)
    for name in TABLES:
        (out / name).write_text("old")
    (out / "audit.json").write_text(json.dumps({"cases": {"case_1": {"rank": 1, "trusted": False}}}))
    return out


def replace(out: Path) -> None:
    check_output(out, overwrite=True)
    with written_whole(out) as folder:
        (folder / "new").write_text("new")


def test_an_untouched_audit_is_replaced(audit):
    (audit / "to_check.json").write_text(json.dumps({"case_1": "to check"}))
    replace(audit)
    assert [f.name for f in audit.iterdir()] == ["new"] and [f.name for f in audit.parent.iterdir()] == ["audit"]


@pytest.mark.parametrize("answer", ["checked", "skip"])
def test_answers_are_not_deleted(audit, answer):
    (audit / "to_check.json").write_text(json.dumps({"case_1": answer}))
    with pytest.raises(AuditError, match="to_check.json is not as the audit wrote it"):
        replace(audit)


def test_answers_that_were_handed_over_are_not_deleted(audit):
    (audit / "to_check.1.json").write_text(json.dumps({"case_1": "skip"}))
    with pytest.raises(AuditError, match="to_check.1.json is not as the audit wrote it"):
        replace(audit)


@pytest.mark.parametrize("name", ["proposed/mine.nii.gz", "proposed/case_1_mine.nii.gz", "thesis/a.doc", "notes.txt"])
def test_files_of_a_person_are_not_deleted(audit, name):
    (audit / name).parent.mkdir(exist_ok=True)
    (audit / name).write_text("mine")
    with pytest.raises(AuditError, match=f"{Path(name).name} is not as the audit wrote it"):
        replace(audit)
    assert (audit / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["proposed/case_1.nii.gz", "audit.csv", "audit.html", "audit.json"])
def test_what_was_edited_is_not_deleted(audit, name):
    """A map that was corrected, or notes in a table."""
    later = (audit / "audit.json").stat().st_mtime + 600
    os.utime(audit / name, (later, later))
    with pytest.raises(AuditError, match=f"{name} is not as the audit wrote it.* copied without dates, remove the"):
        replace(audit)


@pytest.mark.parametrize("name", [".DS_Store", "given/.DS_Store", ".~lock.audit.csv#", "Thumbs.db", "._audit.csv"])
def test_what_file_managers_leave_stands_in_nobodys_way(audit, name):
    (audit / name).write_text("")
    replace(audit)


def test_a_link_is_followed(audit):
    link = audit.with_name("link")
    link.symlink_to(audit)
    replace(link)
    assert link.is_symlink() and (audit / "new").read_text() == "new"


def test_a_link_to_nothing_becomes_its_target(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "later")
    replace(tmp_path / "link")
    assert (tmp_path / "later" / "new").read_text() == "new"


def test_the_current_directory_is_refused(audit, monkeypatch):
    monkeypatch.chdir(audit)
    with pytest.raises(AuditError, match="is the current directory"):
        replace(Path("."))


def test_a_mount_point_is_refused():
    with pytest.raises(AuditError, match="/ is a mount point, expected a folder in it"):
        check_output(Path("/"), overwrite=True)


def failing_rename(fails: Callable[[Path, Path], bool]) -> Callable[[Path, Path], Path]:
    rename = Path.rename

    def new(path: Path, target: Path) -> Path:
        if fails(path, target):
            raise OSError(errno.EBUSY, "busy")
        return rename(path, target)

    return new


@pytest.mark.parametrize("fails", [lambda old, new: old.name == "audit", lambda old, new: new.name == "audit"])
def test_a_complete_audit_that_cannot_take_its_place_is_kept(audit, monkeypatch, fails):
    monkeypatch.setattr(Path, "rename", failing_rename(lambda old, new: fails(old, new) and "replaced" not in old.name))
    with pytest.raises(AuditError, match=r"complete, but cannot be moved to .*/audit \(busy\), .* lies in .*/audit_2;"):
        replace(audit)
    assert sorted(f.name for f in audit.parent.iterdir()) == ["audit", "audit_2"]
    assert (audit / "audit.csv").read_text() == "old" and (audit.parent / "audit_2" / "new").read_text() == "new"


def test_a_complete_audit_that_cannot_be_renamed_at_all_stays_where_it_is(audit, monkeypatch):
    monkeypatch.setattr(Path, "rename", failing_rename(lambda old, new: (old / "new").exists()))
    with pytest.raises(AuditError, match="lies in "):
        replace(audit)
    kept = next(audit.parent.glob(".audit.*"))
    assert (audit / "audit.csv").read_text() == "old" and (kept / "new").read_text() == "new"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("to_check.json", '{"case_1": "checked"}'),
        ("to_check.json", '{"case_1": "che'),  # saved half way
        ("proposed/mine.nii.gz", "mine"),
    ],
)
def test_what_a_person_does_while_the_audit_runs_is_not_deleted(audit, name, content):
    (audit / "to_check.json").write_text(json.dumps({"case_1": "to check"}))
    check_output(audit, overwrite=True)
    message = r"audit.* was added or edited while the audit ran, .* lies in .*/audit_2\."
    with pytest.raises(AuditError, match=message), written_whole(audit) as folder:
        (folder / "new").write_text("new")
        (audit / name).write_text(content)
    assert (audit / name).read_text() == content and (audit / "audit.csv").read_text() == "old"
    assert (audit.parent / "audit_2" / "new").read_text() == "new"


def test_a_folder_that_appears_while_the_audit_runs_is_not_deleted(tmp_path):
    with pytest.raises(AuditError, match="/audit was added"), written_whole(tmp_path / "audit") as folder:
        (folder / "new").write_text("new")
        (tmp_path / "audit").mkdir()
        (tmp_path / "audit" / "audit.csv").write_text("of another audit")
    assert sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*.*")) == ["audit/audit.csv"]
    assert (tmp_path / "audit_2" / "new").exists()


def test_an_audit_that_fails_leaves_nothing(audit):
    with pytest.raises(ValueError, match="broken"), written_whole(audit):
        raise ValueError("broken")
    assert (audit / "audit.csv").read_text() == "old" and [f.name for f in audit.parent.iterdir()] == ["audit"]


def test_what_failed_at_the_end_is_kept(audit):
    message = r"not the page .ValueError: no reason.; .* lies in .*/audit_2, and nothing was"
    with pytest.raises(AuditError, match=message), written_whole(audit) as folder:
        (folder / "map").write_text("hours of work")
        with worth_keeping("the page"):
            raise ValueError
    assert (audit.with_name("audit_2") / "map").exists() and (audit / "audit.csv").read_text() == "old"


def test_what_a_killed_audit_leaves_is_found(audit):
    assert left_over(audit) == [] and left_over(audit / "no" / "folder") == []
    (audit.parent / ".audit.txt").touch()
    (audit.parent / ".audit.old.12345678").mkdir()  # of an audit named audit.old
    with written_whole(audit) as folder:
        assert left_over(audit) == [folder]
    (audit.parent / f"{folder.name}.replaced").mkdir()
    assert [f.name for f in left_over(audit)] == [f"{folder.name}.replaced"]
