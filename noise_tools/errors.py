"""The one exception that the command line turns into a plain sentence, and what others' errors give for one."""

from __future__ import annotations

import errno
from pathlib import Path


class NoiseToolsError(ValueError):
    """Bad input. The message is one sentence: what was found, what was expected, how to mend it."""


def reason_of(error: BaseException) -> str:
    """Why a library refused a file, in one line: its last, as the first of SimpleITK's is a place in its C++ source."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def access_refused(error: Exception) -> str | None:
    """A sentence where the system refused a file or folder; None for any other error."""
    refused = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    if not refused or not error.filename:
        return None
    path = Path(error.filename)
    hidden = path.name.startswith(".")  # a temporary file, whose name says nothing to the user
    place = f"write in {path.parent}" if hidden else f"open {path}"
    return f"Cannot {place} ({error.strerror}); correct its permissions, or give another folder."
