"""The phantom, corrupted, planned and preprocessed once per test session by the real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnunetv2_metadcseg.cli import ext_path

HERE = Path(__file__).parent
CLEAN, NOISY = "Dataset900_Phantom", "Dataset901_PhantomNoisy"
CONFIGURATION = "tiny"


@dataclass(frozen=True)
class Workspace:
    """nnU-Net's three folders, the environment that names them, and the process that runs its commands."""

    root: Path
    environment: dict[str, str]
    server: subprocess.Popen

    def folder(self, kind: str, *parts: str) -> Path:
        """A path in `raw`, `preprocessed` or `results`."""
        return Path(self.environment[f"nnUNet_{kind}"], *parts)

    def model(
        self, trainer: str, dataset: str = NOISY, configuration: str = CONFIGURATION, plans: str = "nnUNetPlans"
    ) -> Path:
        """The folder of a trained model."""
        return self.folder("results", dataset, f"{trainer}__{plans}__{configuration}")

    def run(
        self, command: str, *arguments: object, expect: int | None = 0, fresh: bool = False, **variables: str | None
    ):
        """Runs a console script of this environment in a fork of the command server.

        `fresh` starts a new Python process, as a shell would. `variables` are added to the environment (None removes
        one).
        """
        environment = {**self.environment, **variables}
        environment = {name: value for name, value in environment.items() if value is not None}
        line = [str(Path(sys.executable).parent / command), *map(str, arguments)]
        if fresh:
            done = subprocess.run(line, env=environment, cwd=self.root, capture_output=True, text=True)
        else:
            done = self._run_forked(line, environment)
        if expect is not None and done.returncode != expect:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
            pytest.fail(f"{command} {' '.join(line[1:])} ended with status {done.returncode}:\n{tail}", pytrace=False)
        return done

    def _run_forked(self, line: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
        files = {name: str(self.root / f"last_{name}.txt") for name in ("stdout", "stderr")}
        request = {"line": line, "environment": environment, "folder": str(self.root), **files}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        answer = self.server.stdout.readline()
        if not answer:
            pytest.fail(f"The command server ended with status {self.server.wait()} before {line}.", pytrace=False)
        texts = {name: Path(file).read_text() for name, file in files.items()}
        return subprocess.CompletedProcess(line, int(answer), **texts)

    def train(self, trainer: str, *options: str, dataset: int = 901, configuration: str = CONFIGURATION, **more):
        """nnUNetv2_train on the CPU, fold 0."""
        line = (dataset, configuration, 0, "-tr", trainer, "-device", "cpu", *options)
        return self.run("nnUNetv2_train", *line, **more)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """Empty nnU-Net folders; trainers of this package and the short ones of the tests."""
    root = tmp_path_factory.mktemp("nnunet")
    folders = {f"nnUNet_{kind}": str(root / kind) for kind in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        os.mkdir(folder)
    settings = {
        "nnUNet_extTrainer": f"{HERE / 'short_trainers'}{os.pathsep}{ext_path()}",
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
    }
    environment = {**os.environ, **folders, **settings}
    server = [sys.executable, str(HERE / "command_server.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(server, env=environment, cwd=root, **pipes) as process:
        yield Workspace(root, environment, process)
        process.stdin.close()


@pytest.fixture(scope="session")
def prepared(workspace: Workspace) -> Workspace:
    """The workspace with the phantom, its corrupted copy preprocessed, and the configuration `tiny`."""
    workspace.run("noise_tools", "phantom", "-o", 900, "-n", 10, "--seed", 0)
    workspace.run(
        *("noise_tools", "corrupt", "-d", 900, "-o", 901, "--noise", "erosion", "dilation", "affine"),
        *("--case-fraction", 0.6, "--label-dice", 0.6, "--trusted", 4, "--seed", 0, "-np", 1),
    )
    plan = ("nnUNetv2_plan_and_preprocess", "-d", 901, "-c", "3d_fullres", "-np", 1, "-npfp", 1)
    # nnU-Net's planner sets as many threads as this variable says, and refuses the 0 of the training.
    workspace.run(*plan, nnUNet_n_proc_DA="1")
    done = workspace.run(
        *("metadcseg", "small-config", "-d", 901, "-c", "3d_fullres", "--name", CONFIGURATION),
        *("--features", 4, "--batch-size", 2, "--patch", 24, 24, 24),
    )
    assert done.stdout.split() == [CONFIGURATION]
    return workspace


@pytest.fixture(scope="session")
def trained(prepared: Workspace) -> Workspace:
    """The workspace with a model of nnUNetTrainerShortMetaDCSeg."""
    prepared.train("nnUNetTrainerShortMetaDCSeg", fresh=True)
    return prepared


@pytest.fixture(scope="session")
def cascade_plans(prepared: Workspace) -> str:
    """Name of plans with small 3d_fullres, 3d_lowres and 3d_cascade_fullres, the last two as nnU-Net's planner writes
    them for large images.
    """
    name, file = "CascadePlans", prepared.folder("preprocessed", NOISY, "nnUNetPlans.json")
    plans = json.loads(file.read_text())
    tiny = plans["configurations"][CONFIGURATION]
    full = plans["configurations"]["3d_fullres"] | {"batch_size": 2, "architecture": tiny["architecture"]}
    half = {key: [edge // 2 for edge in full["patch_size"]] for key in ("patch_size", "median_image_size_in_voxels")}
    low = {"data_identifier": f"{name}_3d_lowres", "spacing": [2.0, 2.0, 2.0], "next_stage": "3d_cascade_fullres"}
    plans["plans_name"] = name
    plans["configurations"] = {
        "3d_fullres": full,
        "3d_lowres": full | half | low,
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    file.with_name(f"{name}.json").write_text(json.dumps(plans))
    prepared.run("nnUNetv2_preprocess", "-d", 901, "-plans_name", name, "-c", "3d_lowres", "-np", 1)
    return name
