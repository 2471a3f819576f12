from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from noise_tools import output
from noise_tools.errors import NoiseToolsError


def test_appears_only_when_complete(tmp_path):
    folder = tmp_path / "Dataset001_New"
    with output.written_whole(folder) as temporary:
        (temporary / "file").write_text("x")
        assert not folder.exists() and not temporary.name.startswith("Dataset")
    assert (folder / "file").read_text() == "x" and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_error_leaves_nothing_and_keeps_the_old(tmp_path, error):
    folder = tmp_path / "Dataset001_New"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(type(error)), output.written_whole(folder) as temporary:
        (temporary / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == [folder] and [p.name for p in folder.iterdir()] == ["old"]


@pytest.mark.parametrize("left", ["", "-replaced"])
def test_what_a_killed_run_of_the_same_process_number_left_hinders_nobody(tmp_path, left):
    """In containers every run has the same number."""
    folder, old = tmp_path / "Dataset001_New", tmp_path / f".noise_tools-Dataset001_New-{os.getpid()}{left}"
    for path in (folder, old):
        path.mkdir()
        (path / "old").write_text("old")
    with output.written_whole(folder) as temporary:
        (temporary / "file").write_text("x")
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert sorted(tmp_path.iterdir()) == sorted([folder, old]) and (old / "old").exists()


def test_a_failing_rename_brings_the_old_back(tmp_path, monkeypatch):
    from pathlib import Path

    folder = tmp_path / "Dataset001_New"
    folder.mkdir()
    (folder / "old").write_text("old")
    rename = Path.rename

    def fail(self, target):
        if self.name.startswith(".noise_tools") and not self.name.endswith("-replaced"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(NoiseToolsError, match="Input/output error"), output.written_whole(folder):
        pass
    assert list(tmp_path.iterdir()) == [folder] and (folder / "old").read_text() == "old"


@pytest.fixture
def no_links(monkeypatch):
    """A file system that refuses hard links, as exFAT does."""

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


def test_a_hard_link_where_there_are_links(tmp_path):
    (tmp_path / "source").write_text("x")
    output.link_or_copy(tmp_path / "source", tmp_path / "link")
    assert (tmp_path / "link").samefile(tmp_path / "source")


def test_a_copy_where_there_are_none(tmp_path, no_links):
    (tmp_path / "source").write_text("x")
    output.link_or_copy(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "x" and not (tmp_path / "copy").samefile(tmp_path / "source")


def test_no_copy_where_something_else_is_wrong(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    (tmp_path / "source").write_text("x")
    with pytest.raises(OSError, match="No space left"):
        output.link_or_copy(tmp_path / "source", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def never_writes_over(tmp_path, put):
    (tmp_path / "new").write_text("new")
    (tmp_path / "there").write_text("there")
    with pytest.raises(FileExistsError):
        put(tmp_path / "new", tmp_path / "there")
    assert (tmp_path / "there").read_text() == "there"


@pytest.mark.parametrize("put", [output.link_or_copy, output.copy_new])
def test_never_writes_over_a_file(tmp_path, put):
    never_writes_over(tmp_path, put)


def test_never_writes_over_a_file_where_there_are_no_links(tmp_path, no_links):
    never_writes_over(tmp_path, output.link_or_copy)


def test_a_data_set_is_reserved_for_one_run(tmp_path):
    says = "Data set 503 is being written by another run; wait for it, or choose another id with -o"
    with output.reserved(tmp_path, 503):
        with pytest.raises(NoiseToolsError, match=says):
            with output.reserved(tmp_path, 503):
                raise AssertionError("two runs had the same id")
        with output.reserved(tmp_path, 504):
            assert len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.iterdir())


def test_a_reservation_ends_with_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), output.reserved(tmp_path, 503):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_killed_keeps_nobody_off(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from noise_tools import output\n"
        "with output.reserved(Path(sys.argv[1]), 503): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with output.reserved(tmp_path, 503):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_on_a_file_that_is_gone_does_not_count(tmp_path, monkeypatch):
    """The run before removes its file between the moment this run opens it and the moment this run locks it."""
    lock, calls = output._lock, []

    def lock_late(file):
        calls.append(file)
        if len(calls) == 1:
            os.unlink(file.name)
        return lock(file)

    monkeypatch.setattr(output, "_lock", lock_late)
    with output.reserved(tmp_path, 503):
        assert len(calls) == 2
        monkeypatch.undo()
        with pytest.raises(NoiseToolsError, match="another run"), output.reserved(tmp_path, 503):
            raise AssertionError("two runs had the same id")


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(NoiseToolsError, match="Cannot write in .*nowhere .No such file or directory"):
        with output.reserved(tmp_path / "nowhere", 503):
            raise AssertionError("reserved nothing")


@pytest.mark.parametrize(
    ("name", "content", "ours"),
    [
        ("noise_manifest.json", "{}", True),
        ("dataset.json", '{"description": "Synthetic phantom by noise_tools: a bent structure"}', True),
        ("dataset.json", '{"description": "Patients of 2019"}', False),
        ("dataset.json", "{", False),
        ("notes.txt", "", False),
    ],
)
def test_only_what_noise_tools_made_is_replaced(tmp_path, name, content, ours):
    folder = tmp_path / "Dataset503_New"
    folder.mkdir()
    (folder / name).write_text(content)
    if ours:
        assert output.output_folder(tmp_path, 503, "New", overwrite=True) == folder
    else:
        with pytest.raises(NoiseToolsError, match="Dataset503_New was not made by noise_tools"):
            output.output_folder(tmp_path, 503, "New", overwrite=True)


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_or_file_in_the_place_is_refused(tmp_path, kind, overwrite):
    place, elsewhere = tmp_path / "Dataset503_New", tmp_path / "elsewhere"
    if kind == "file":
        place.touch()
    else:
        place.symlink_to(elsewhere, target_is_directory=True)
    if kind == "link":
        elsewhere.mkdir()
        (elsewhere / "noise_manifest.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(NoiseToolsError, match=f"New is a {kind.split()[-1]}.*expected a folder or nothing"):
        output.output_folder(tmp_path, 503, "New", overwrite)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("name", "mended"), [("Dataset503_X", "'X'"), ("Dataset7", "'NAME'")])
def test_a_name_with_a_number_is_refused(tmp_path, name, mended):
    with pytest.raises(NoiseToolsError, match=f"--name is '{name}'; give the name without its number.*: {mended}"):
        output.output_folder(tmp_path, 503, name, overwrite=False)
