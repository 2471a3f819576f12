from __future__ import annotations

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


def test_link_or_copy_falls_back_to_a_copy(tmp_path, monkeypatch):
    import os

    source = tmp_path / "source"
    source.write_text("x")
    output.link_or_copy(source, tmp_path / "link")
    assert (tmp_path / "link").samefile(source)

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    output.link_or_copy(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "x" and not (tmp_path / "copy").samefile(source)


def test_link_or_copy_never_writes_over_a_file(tmp_path):
    (tmp_path / "new").write_text("new")
    (tmp_path / "source").write_text("source")
    output.link_or_copy(tmp_path / "source", tmp_path / "target")
    with pytest.raises(FileExistsError):
        output.link_or_copy(tmp_path / "new", tmp_path / "target")
    assert (tmp_path / "source").read_text() == "source"
