"""What the command line turns into a plain sentence: the package's one exception, and refused access."""

from __future__ import annotations

import errno
from pathlib import Path


class NoiseToolsError(ValueError):
    """Bad input. The message is one sentence: what was found, what was expected, how to mend it."""


def access_refused(error: Exception) -> str | None:
    """A sentence where the system refused a file or folder; None for any other error."""
    refused = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    if not refused or not error.filename:
        return None
    path = Path(error.filename)
    hidden = path.name.startswith(".")  # a temporary file, whose name says nothing to the user
    place = f"write in {path.parent}" if hidden else f"open {path}"
    return f"Cannot {place} ({error.strerror}); correct its permissions, or give another folder."
