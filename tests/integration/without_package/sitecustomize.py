"""Makes this project unimportable in every Python process that finds this folder on PYTHONPATH.

It stands for a second environment with a stock nnU-Net only; a real one would cost minutes of installation.
"""

from __future__ import annotations

import importlib.abc
import sys

BLOCKED = ("nnunetv2_metadcseg", "noise_tools")


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


sys.meta_path.insert(0, Blocker())
