"""The benchmark's own data: noise_tools' phantom with wrong labels, preprocessed, and a small 3D configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from nnunetv2_metadcseg.small_config import add_small_configuration

CLEAN, NOISY = "900", "901"
CASES, TRUSTED, BATCH_SIZE = 12, 4, 4


def make_phantom(folder: Path) -> tuple[Path, str]:
    """Writes raw and preprocessed data into `folder`; returns the plans file and the small configuration's name.

    Raises OSError with the last line of a command that failed.
    """
    raw, preprocessed = folder / "raw", folder / "preprocessed"
    for path in (raw, preprocessed):
        path.mkdir()
    # nnU-Net's planner takes nnUNet_n_proc_DA as a number of threads and refuses the 0 that suits training.
    variables = {"nnUNet_raw": str(raw), "nnUNet_preprocessed": str(preprocessed), "nnUNet_n_proc_DA": "1"}
    variables["nnUNet_results"] = str(folder / "results")
    noise_tools, planner = "noise_tools.cli", "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints"
    run_module(variables, noise_tools, "phantom", "-o", CLEAN, "-n", str(CASES), "--test", "0", "--seed", "0")
    run_module(
        *(variables, noise_tools, "corrupt", "-d", CLEAN, "-o", NOISY, "--noise", "erosion", "dilation", "affine"),
        *("--case-fraction", "0.6", "--label-dice", "0.6", "--trusted", str(TRUSTED), "--seed", "0"),
    )
    run_module(variables, planner, "-d", NOISY, "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    plans_file = next(preprocessed.glob(f"Dataset{NOISY}_*/nnUNetPlans.json"))
    return plans_file, add_small_configuration(plans_file, "3d_fullres", batch_size=BATCH_SIZE)


def run_module(variables: Mapping[str, str], module: str, *arguments: str) -> None:
    """Runs `python -m module arguments`, silently."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        raise OSError(f"python -m {module} {' '.join(arguments)} ended with status {done.returncode}: {last}")
