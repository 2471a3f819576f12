from __future__ import annotations

import shutil
import subprocess

import pytest

from .conftest import STUDY


@pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not installed (pip install '.[study]')")
def test_dry_run_plans_every_run(config_file):
    command = ["snakemake", "-s", str(STUDY / "Snakefile"), "-n", "--cores", "1", "--config", f"study={config_file}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=config_file.parent)
    assert done.returncode == 0, done.stderr
    counts = dict(line.split()[:2] for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert (counts["clean"], counts["corrupt"], counts["train"], counts["tables"]) == ("1", "2", "10", "1")
