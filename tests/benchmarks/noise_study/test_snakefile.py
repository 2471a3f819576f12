from __future__ import annotations

import shutil
import subprocess

import pytest

from .conftest import STUDY

pytestmark = pytest.mark.skipif(
    shutil.which("snakemake") is None, reason="snakemake is not installed (pip install '.[study]')"
)


HOLLOW = """
import pathlib, sys
with open("calls.txt", "a") as file:
    print(pathlib.Path(__file__).name, *sys.argv[1:], sep="|", file=file)
"""


HOLLOW_RUN = """
import argparse, pathlib, sys
sys.path.insert(0, str(pathlib.Path(__file__).parent))
from result_store import store_run
from settings import load_study
parser = argparse.ArgumentParser()
for name in ("config", "work", "cell", "arm", "fold", "seed", "threads", "device"):
    parser.add_argument(f"--{name}")
args = vars(parser.parse_args())
store_run(load_study(args["config"]).results, [{key: args[key] for key in ("cell", "arm", "fold", "seed")}])
"""


def snakemake(config_file, *options: str, study=STUDY) -> str:
    command = ["snakemake", "-s", str(study / "Snakefile"), "--cores", "1"]
    command += ["--config", f"study={config_file}", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=config_file.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def hollow_study(tmp_path):
    """The workflow with scripts that do nothing but note how they were called, and store a row per run."""
    folder = tmp_path / "hollow study"
    folder.mkdir()
    for name in ("Snakefile", "settings.py", "arms.py", "result_store.py"):
        shutil.copy(STUDY / name, folder)
    for name in ("prepare_cell.py", "run_arm.py", "tables.py"):
        text = HOLLOW + (HOLLOW_RUN if name == "run_arm.py" else "")
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def counts(out: str) -> dict[str, str]:
    return dict(line.split()[:2] for line in out.splitlines() if len(line.split()) == 2)


def test_dry_run_plans_every_run(config_file):
    jobs = counts(snakemake(config_file, "-n"))
    assert (jobs["clean"], jobs["corrupt"], jobs["train"], jobs["tables"]) == ("1", "2", "10", "1")


def test_other_training_or_results_repeat_the_runs_alone(config_file, hollow_study):
    text = config_file.read_text(encoding="utf-8")
    snakemake(config_file, study=hollow_study)
    for change in ("optimizer: adam\n", "results: other\n"):
        config_file.write_text(change + text, encoding="utf-8")
        jobs = counts(snakemake(config_file, "-n", study=hollow_study))
        assert jobs["train"] == "10" and "corrupt" not in jobs


def test_deleted_results_and_another_page(config_file, hollow_study):
    snakemake(config_file, study=hollow_study)
    assert "Nothing to be done" in snakemake(config_file, "-n", study=hollow_study)
    jobs = counts(snakemake(config_file, "page=other.md", "-n", study=hollow_study))
    assert jobs["tables"] == "1" and "train" not in jobs
    (config_file.parent / "results" / "toy_20.csv").unlink()
    jobs = counts(snakemake(config_file, "-n", study=hollow_study))
    assert (jobs["train"], jobs["tables"]) == ("4", "1") and "corrupt" not in jobs


def test_folders_with_spaces(config_file, hollow_study):
    folder = config_file.parent / "my study"
    folder.mkdir()
    config_file = config_file.rename(folder / "my config.yaml")
    snakemake(config_file, "page=my page.md", study=hollow_study)
    calls = (folder / "calls.txt").read_text(encoding="utf-8").splitlines()
    assert len(calls) == 14
    assert f"prepare_cell.py|--config|{config_file}|--work|{folder / 'work'}|--clean|toy|--fold|0|-np|1" in calls
    assert calls[-1] == f"tables.py|--config|{config_file}|--page|my page.md"
