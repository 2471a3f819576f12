"""One command, one run: train one arm on one cell, score it on clean test cases, add its rows to the results.

    python benchmarks/noise_study/run_arm.py --cell hippo_unbiased_60 --arm noisy --seed 0 --threads 1

A run that is in the results already is skipped unless --force is given. Runs that would be the same training in two
cells (the clean arm, trusted cases only) are done once and copied.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import result_store
from filelock import FileLock, Timeout
from settings import (
    DEFAULT_CONFIG,
    Run,
    SettingsError,
    Study,
    check_fold,
    clean_folder_name,
    load_study,
    noisy_folder_name,
    set_nnunet_paths,
    settings_hash,
    signature,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def code_version() -> str:
    """Short git hash of this repository, with ``+`` if the packages differ from it; ``unknown`` without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "nnunetv2_metadcseg", "benchmarks/noise_study/*.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def limit_threads(threads: int) -> None:
    """Set before NumPy and torch are imported: the thread pools read these once.

    Raises:
        SettingsError: no thread at all.
    """
    if threads < 1:
        raise SettingsError(f"--threads is {threads}; give a whole number from 1.")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    add_trainer_folder()


def add_trainer_folder() -> None:
    """nnUNet_extTrainer may name the user's own trainers, or nothing: the arms' are searched first all the same."""
    own = str(REPOSITORY / "nnunetv2_metadcseg" / "nnunet_ext")
    folders = [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if folder.strip()]
    os.environ["nnUNet_extTrainer"] = os.pathsep.join([own, *(folder for folder in folders if folder != own)])


def choose_device(name: str, threads: int) -> str:
    """Resolve ``auto`` and say how many processes augment: none on CPU, where they would fight with the training."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ["nnUNet_n_proc_DA"] = "0" if name == "cpu" else str(threads - 1)
    torch.set_num_threads(threads)
    return name


def prepared_folders(study: Study, run: Run) -> tuple[Path, Path, dict[str, Any]]:
    """Preprocessed folders (the arm's own and the clean one) and the cell's record.

    Raises:
        SettingsError: the cell lacks the fold, the data are not there, or they were prepared with other settings than
            the configuration file has.
    """
    from prepare_cell import PREPARED, clean_record, is_prepared, noisy_record

    cell = study.cell(run.cell)
    check_fold(f"Cell {cell.name!r}", run.fold, cell.folds)
    dataset = study.dataset_of(cell)
    base = study.work / "nnUNet_preprocessed"
    clean, noisy = base / clean_folder_name(dataset, run.fold), base / noisy_folder_name(cell, run.fold)
    wanted = {clean: clean_record(dataset, run.fold), noisy: noisy_record(study, cell, run.fold)}
    for folder, settings in wanted.items():
        if not is_prepared(folder, settings):
            raise SettingsError(f"{folder} is not prepared; run prepare_cell.py --cell {run.cell} first.")
    record = json.loads((clean / PREPARED).read_text(encoding="utf-8"))
    record |= json.loads((noisy / PREPARED).read_text(encoding="utf-8"))
    return (clean if study.arm(run.arm).sees == "clean" else noisy), clean, record


def already_done(study: Study, run: Run) -> bool:
    """Whether the results hold this run with the same settings."""
    _, _, record = prepared_folders(study, run)
    wanted = signature(study, run, record["trusted_cases"])
    rows = result_store.read_rows(study.results, run.cell)
    own = [row for row in rows if result_store.same_run(row, run.cell, run.arm, run.fold, run.seed)]
    return any(row["signature"] == wanted for row in own)


def copy_same_training(study: Study, run: Run, wanted: str) -> bool:
    """Take the rows of an equal training in another cell, if there is one."""
    rows = result_store.find_signature(study.results, wanted)
    if not rows:
        return False
    own = {"cell": run.cell, "arm": run.arm, "fold": run.fold, "seed": run.seed, "settings": settings_hash(study, run)}
    result_store.store_run(study.results, [row | own | {"copied_from": row["cell"]} for row in rows])
    return True


def renew_copies(study: Study, run: Run, rows: list[dict[str, Any]]) -> None:
    """Give the cells that have copies of this training, done again with --force, the rows of the new one."""
    for copy in result_store.copied_runs(study.results, rows[0]["signature"]):
        result_store.store_run(study.results, [row | copy | {"copied_from": run.cell} for row in rows])


def training_lock(study: Study, wanted: str) -> contextlib.AbstractContextManager:
    """Of two processes with the same training, for two cells, one waits for the other and then copies its rows."""
    folder = study.work / "locks" / study.trial
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(folder / f"{wanted}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print("another process does the same training; waiting for it", flush=True)
        return lock.acquire()


def write_case_scores(file: Path, scores: list[dict[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(scores[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: result_store.format_value(value) for key, value in row.items()} for row in scores)


def check_weights(trainer: Any, predictor: Any, clean_folder: Path) -> dict[str, float]:
    """AUROC of the learned weights; a side result, so that a failure is logged and does not cost the run."""
    import traceback

    from weight_check import weight_auroc

    try:
        return weight_auroc(trainer, predictor, clean_folder)
    except Exception:
        print("The learned weights could not be checked:")
        traceback.print_exc(file=sys.stdout)
        return {}


def execute(study: Study, run: Run, *, threads: int, device_name: str, keep: bool) -> list[dict[str, Any]]:
    """Train and score; returns the run's rows. Logs and per-case scores stay in the run's folder."""
    start = time.perf_counter()
    folder, clean_folder, record = prepared_folders(study, run)
    cell = study.cell(run.cell)
    arm = study.arm(run.arm)
    run_folder = study.run_folder(run)
    shutil.rmtree(run_folder, ignore_errors=True)
    run_folder.mkdir(parents=True)
    set_nnunet_paths(study, results=run_folder)
    with (run_folder / "log.txt").open("w") as log, contextlib.redirect_stdout(log):
        import torch
        from prepare_cell import source_cases
        from scoring import build_predictor, mean_scores, score_cases
        from training import build_trainer, describe_config, plan_run, train

        device = torch.device(choose_device(device_name, threads))
        trainer = build_trainer(arm, plan_run(study, run, folder, clean_folder), device)
        seconds = train(trainer)
        cases = source_cases(study.dataset_of(cell).source)
        test = {case: cases[case] for case in record["test"]}
        predictor = build_predictor(trainer, study.mirroring)
        scores = score_cases(trainer, predictor, test, run_folder / "predictions" if keep else None)
        found = check_weights(trainer, predictor, clean_folder) if arm.sees == "noisy" else {}
    write_case_scores(run_folder / "cases.csv", scores)
    common = {
        "cell": run.cell,
        "arm": run.arm,
        "fold": run.fold,
        "seed": run.seed,
        "steps": cell.steps,
        "seconds_per_step": seconds / cell.steps,
        "seconds_total": time.perf_counter() - start,
        "trainer": type(trainer).__name__,
        "config": json.dumps(arm.config, sort_keys=True) if arm.config else "",
        "code": code_version(),
        "signature": signature(study, run, record["trusted_cases"]),
        "settings": settings_hash(study, run),
        **found,
    }
    rows = [common | row for row in mean_scores(scores)]
    full = common | {"config": describe_config(trainer), "threads": threads, "scores": mean_scores(scores)}
    (run_folder / "run.json").write_text(json.dumps(full, indent=2, default=str) + "\n", encoding="utf-8")
    if not keep:
        for file in run_folder.rglob("*.pth"):
            file.unlink()
    return rows


def perform(study: Study, run: Run, *, force: bool, threads: int, device_name: str = "cpu", keep: bool = False) -> str:
    """Do one run if it is missing; returns what happened: ``exists``, ``copied`` or ``trained``."""
    if not force and already_done(study, run):
        return "exists"
    _, _, record = prepared_folders(study, run)
    wanted = signature(study, run, record["trusted_cases"])
    with training_lock(study, wanted):
        if not force and already_done(study, run):  # while this process waited
            return "exists"
        if not force and copy_same_training(study, run, wanted):
            return "copied"
        rows = execute(study, run, threads=threads, device_name=device_name, keep=keep)
        result_store.store_run(study.results, rows)
        renew_copies(study, run, rows)
    return "trained"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(DEFAULT_CONFIG), help="configuration file (default: config.yaml here)")
    parser.add_argument("--work", help="working folder for bulky data (default: from the configuration file)")
    parser.add_argument("--cell", required=True)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--steps", type=int, help="train another number of steps, a trial (needs --results)")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="replace configuration values")
    parser.add_argument("--results", help="folder of the CSV files (default: from the configuration file)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the run (default: 1)")
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--keep", action="store_true", help="keep the final checkpoint and the predictions")
    parser.add_argument("--force", action="store_true", help="train although the results hold this run")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    try:
        limit_threads(args.threads)
        study = adjust_study(load_study(args.config, args.work), args)
        run = Run(args.cell, args.fold, args.arm, args.seed)
        study.arm(run.arm)
        started = time.perf_counter()
        outcome = perform(study, run, force=args.force, threads=args.threads, device_name=args.device, keep=args.keep)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{run.path}: {outcome} in {time.perf_counter() - started:.0f} s: {summary(study, run)}", flush=True)
    return 0


def trial_name(study: Study, args: argparse.Namespace) -> str:
    """A name that tells trials apart: those with other results folders, and those of another length."""
    parts = []
    results = Path(args.results or study.results).resolve()
    if results != study.results:
        parts.append(f"{results.name}_{hashlib.sha256(str(results).encode()).hexdigest()[:6]}")
    if args.steps and args.steps != study.cell(args.cell).steps:
        parts.append(f"{args.steps}_steps")
    return "_".join(parts)


def parse_setting(item: str) -> tuple[str, Any]:
    """Field and value of one ``FIELD=VALUE``, the value read as YAML.

    Raises:
        SettingsError: it is not written like that.
    """
    import yaml

    name, equals, value = item.partition("=")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = None
    if not name or not equals or parsed is None and value != "null":
        raise SettingsError(f"--set got {item!r}; write FIELD=VALUE, such as dcd_strength=0.5.")
    return name, parsed


def adjust_study(study: Study, args: argparse.Namespace) -> Study:
    """Apply --steps, --set and --results."""
    from dataclasses import replace

    if args.steps is not None and args.steps < 1:
        raise SettingsError(f"--steps is {args.steps}; give a whole number from 1.")
    study = replace(study, trial=trial_name(study, args))
    if args.results:
        study = replace(study, results=Path(args.results).resolve())
    if args.steps:
        own = study.cell(args.cell)
        cell = replace(own, steps=args.steps)
        if args.steps % cell.steps_per_epoch:
            raise SettingsError(f"--steps must be a multiple of {cell.steps_per_epoch}, got {args.steps}.")
        if cell.steps != own.steps and not args.results:
            raise SettingsError(
                f"--steps is {args.steps}, but {args.cell} has {own.steps} and the trial's rows would replace the "
                "study's own; name another folder for them with --results."
            )
        study = replace(study, cells=study.cells | {cell.name: cell})
    if args.set:
        values = dict(parse_setting(item) for item in args.set)
        base, args.arm = args.arm, args.arm + "[" + ",".join(args.set) + "]"
        study = replace(study, variants=study.variants | {args.arm: {"arm": base, "config": values}})
    return study


def summary(study: Study, run: Run) -> str:
    """Dice per class of the stored run."""
    rows = result_store.read_rows(study.results, run.cell)
    own = [row for row in rows if result_store.same_run(row, run.cell, run.arm, run.fold, run.seed)]
    return ", ".join(f"{row['class']} Dice {float(row['dice'] or 'nan'):.4f}" for row in own)


if __name__ == "__main__":
    sys.exit(main())
