"""Imported once by run_queue.py's fork server, so that a run does not spend ten seconds on importing torch and nnU-Net.

Only what others wrote is imported here: this project's code is imported afresh by every run, so that a run never uses
older code than the version that it records.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import nnunetv2
import nnunetv2.inference.predict_from_raw_data
import nnunetv2.training.nnUNetTrainer.nnUNetTrainer  # noqa: F401
import scipy.ndimage
import scipy.spatial  # noqa: F401
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

# nnU-Net's search for a trainer of another package imports all its own ones first.
with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
    recursive_find_python_class(
        str(Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer"),
        "no such trainer",
        "nnunetv2.training.nnUNetTrainer",
        nnunetv2.__path__[0],
    )
