"""Run what is missing of the study, one run after another; each result is saved when it comes.

    python benchmarks/noise_study/run_queue.py --threads 1

Start it twice for two runs in parallel: a run that another queue works on is passed over. Stop it at any time and start
it again. Every run is a process of its own, so that one that fails does not end the queue. Nor does a cell that cannot
be prepared.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path

import run_arm
from filelock import FileLock, Timeout
from settings import DEFAULT_CONFIG, Run, SettingsError, Study, load_study, set_nnunet_paths

HERE = Path(__file__).resolve().parent


def prepare(study: Study, run: Run, processes: int) -> bool:
    """Prepare the run's cell, unless it is ready; says what is wrong where that fails."""
    from prepare_cell import prepare_noisy

    set_nnunet_paths(study)
    try:
        prepare_noisy(study, study.cell(run.cell), run.fold, processes)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return False
    except Exception:  # whatever nnU-Net's planner meets: other cells go on
        print(f"error: cell {run.cell}, fold {run.fold} cannot be prepared:", file=sys.stderr, flush=True)
        traceback.print_exc()
        return False
    return True


def run_arguments(study: Study, run: Run, args: argparse.Namespace) -> list[str]:
    """Arguments of run_arm.py for one run."""
    out = ["--config", args.config, "--work", str(study.work), "--results", str(study.results)]
    out += ["--cell", run.cell, "--arm", run.arm, "--seed", str(run.seed), "--fold", str(run.fold)]
    out += ["--threads", str(args.threads), "--device", args.device]
    return out + (["--keep"] if args.keep else [])


def _child(arguments: list[str]) -> None:
    sys.exit(run_arm.main(arguments))


def run_in_child(arguments: list[str]) -> int:
    """Call run_arm.py's main in a process of its own; returns its exit status.

    Where the system can fork, the process starts with torch and nnU-Net imported already (warm_imports.py).
    """
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    if can_fork:
        context.set_forkserver_preload(["warm_imports"])
    process = context.Process(target=_child, args=(arguments,))
    process.start()
    process.join()
    return process.exitcode


def prepare_process(threads: int) -> None:
    """What processes started from here inherit: the number of threads, and where the study's modules are."""
    run_arm.limit_threads(threads)
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def work_on(study: Study, run: Run, args: argparse.Namespace) -> str:
    """Do one run of a prepared cell: ``exists``, ``busy`` (another queue has it), ``done`` or ``failed``."""
    if run_arm.already_done(study, run):
        return "exists"
    folder = study.run_folder(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(folder) + ".lock", timeout=0):
            return "done" if run_in_child(run_arguments(study, run, args)) == 0 else "failed"
    except Timeout:
        return "busy"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(DEFAULT_CONFIG), help="configuration file (default: config.yaml here)")
    parser.add_argument("--work", help="working folder for bulky data (default: from the configuration file)")
    parser.add_argument("--cell", nargs="+", help="only these cells")
    parser.add_argument("--arm", nargs="+", help="only these arms")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per run (default: 1)")
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("-np", "--processes", type=int, default=2, help="worker processes of preparation (default: 2)")
    parser.add_argument("--keep", action="store_true", help="keep checkpoints and predictions")
    parser.add_argument("--stop-after", type=float, metavar="MINUTES", help="start no run after this time")
    parser.add_argument("--list", action="store_true", help="list the runs and do nothing")
    args = parser.parse_args(arguments)
    start = time.monotonic()
    failed = 0
    unusable: set[tuple[str, int]] = set()  # cells and folds that could not be prepared: tried once
    try:
        prepare_process(args.threads)
        study = load_study(args.config, args.work)
        for run in study.runs(args.cell, args.arm):
            if args.list:
                print(run.path)
                continue
            if args.stop_after is not None and time.monotonic() - start > 60 * args.stop_after:
                print("time is up; start the queue again to go on", flush=True)
                break
            data = run.cell, run.fold
            if data not in unusable and not prepare(study, run, args.processes):
                unusable.add(data)
            outcome = "failed" if data in unusable else work_on(study, run, args)
            failed += outcome == "failed"
            if outcome != "done":
                print(f"{run.path}: {outcome}", flush=True)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
