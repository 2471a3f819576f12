from __future__ import annotations

import errno

import pytest

from noise_tools.errors import access_refused


@pytest.mark.parametrize(
    ("file", "place"),
    [("/data/out/.report.x7d", "write in /data/out"), ("/data/scan.nii.gz", "open /data/scan.nii.gz")],
)
def test_refused_access_names_what_the_user_knows(file, place):
    sentence = access_refused(PermissionError(errno.EACCES, "Permission denied", file))
    assert sentence.startswith(f"Cannot {place} (Permission denied); ")


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError(errno.ENOSPC, "No space left", "f"), PermissionError(errno.EPERM, "x")]
)
def test_other_errors_keep_their_words(error):
    assert access_refused(error) is None
