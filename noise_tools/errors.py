"""The one exception that the command line turns into a plain sentence."""

from __future__ import annotations


class NoiseToolsError(ValueError):
    """Bad input. The message is one sentence: what was found, what was expected, how to mend it."""
