"""Runs console scripts in forks of one process that has imported nnU-Net already; an import takes seconds.

Reads requests from stdin, one JSON object per line: `line` (script and its arguments), `environment`, `folder`, and the
files for `stdout` and `stderr`. Answers each with its exit status on a line of stdout. A script runs in a process of
its own, through the entry point that its package declares, as the file in the bin folder would run it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

# What nnU-Net's scripts import, so that the forks need not. Nothing here may start a thread: threads do not survive.
PRELOADED = (
    "nnunetv2.run.run_training",
    "nnunetv2.training.nnUNetTrainer.primus.primus_trainers",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.evaluation.find_best_configuration",
    "nnunetv2.model_sharing.entry_points",
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "torch._dynamo",
    "matplotlib.pyplot",
)


def serve() -> None:
    """Answers requests until stdin ends; in a fork, runs the request's script and exits with its status."""
    for module in PRELOADED:
        importlib.import_module(module)
    for request in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            sys.exit(run_script(**json.loads(request)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run_script(line: list[str], environment: dict[str, str], folder: str, stdout: str, stderr: str):
    """Runs a console script in this process; returns what its entry point returns."""
    from importlib.metadata import entry_points

    for descriptor, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = line
    (script,) = entry_points(group="console_scripts", name=os.path.basename(line[0]))
    return script.load()()


if __name__ == "__main__":
    serve()
