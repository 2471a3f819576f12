"""Cost of a training step on several configurations: `metadcseg benchmark` on data that this script prepares.

    python benchmarks/step_cost.py --work FOLDER --data ../shared/data
    python benchmarks/step_cost.py --work FOLDER --data ../shared/data --only hippocampus_small --threads 1 2
    python benchmarks/step_cost.py --work FOLDER --only large --device cuda
    python benchmarks/step_cost.py --work FOLDER --only phantom_small --growth 500
    python benchmarks/step_cost.py --work FOLDER --data ../shared/data --page docs/cost.md

`make cost` is the last of these. `--growth N` instead trains N steps of one arm in a process of its own and tells
memory and step time at both ends.

Prepared data and finished configurations (FOLDER/measured/NAME_DEVICE_THREADS.json) are kept and used again, so that an
interrupted run goes on where it was. Results of all configurations together: FOLDER/step_cost_DEVICE_THREADS.json, .png
and .md. `--page FILE` also puts the tables between the two `step_cost` comments of a Markdown page and the chart into
img/step_cost.png beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunetv2_metadcseg.small_config import add_small_configuration
from nnunetv2_metadcseg.step_benchmark import ARMS, ArmCost, Effort, Result, Target, check_steps, environment
from nnunetv2_metadcseg.step_benchmark_phantom import run_module

SOME_ARMS = ("stock", "stock_channels_last", "mixed", "metadcseg_head", "metadcseg_network")
TARGET_ARMS = ("stock", "stock_channels_last", "metadcseg_head")  # what the targets of docs/cost.md compare


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        source: folder in --data, or "phantom"; "phantom_fine" has voxels of 0.25 mm and so 128 x 160 x 160 of them.
        number: id of the corrupted data set. planned: nnU-Net's configuration.
        small: settings of `metadcseg small-config`, or None for the planned configuration itself.
        steps, warm_up: fewer where a step takes many seconds; so do brief (see `Effort`) and the arms.
    """

    source: str
    number: int
    planned: str
    small: dict | None
    steps: int = 40
    warm_up: int = 40
    brief: bool = False
    arms: tuple[str, ...] = ARMS


LARGE_PATCH = {"name": "large", "features": 16, "patch": (128, 128, 128)}
CASES = {
    "phantom_small": Case("phantom", 901, "3d_fullres", {"batch_size": 4}),
    "hippocampus_small": Case("Dataset004_Hippocampus", 904, "3d_fullres", {"batch_size": 4}),
    "hippocampus_full": Case("Dataset004_Hippocampus", 904, "3d_fullres", None, 4, 8, True, SOME_ARMS),
    "nuclei_small": Case("Dataset020_Nuclei", 920, "2d", {"batch_size": 4}),
    "nuclei_2d": Case("Dataset020_Nuclei", 920, "2d", None, 4, 8, True, SOME_ARMS),
    "large": Case("phantom_fine", 902, "3d_fullres", LARGE_PATCH, 4, 2, True, TARGET_ARMS),
}
DEFAULT = ["hippocampus_small", "hippocampus_full", "nuclei_2d", "large"]
FINE_SPACING = ("0.25", "0.25", "0.25")
BEGIN, END = "<!-- step_cost: made by benchmarks/step_cost.py -->", "<!-- end of step_cost -->"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for prepared data and results")
    parser.add_argument("--data", type=Path, help="folder with Dataset004_Hippocampus and Dataset020_Nuclei")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=DEFAULT, help=f"(default: {DEFAULT})")
    parser.add_argument("--arms", nargs="+", help="as of `metadcseg benchmark` (default: all, fewer where slow)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count() or 1])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--steps", type=int, help="timed steps per arm, at most (default: 40 or 4)")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure finished configurations anew")
    parser.add_argument("--prepare", action="store_true", help="prepare the data sets only")
    parser.add_argument("--page", type=Path, help="Markdown page whose tables and chart to replace")
    parser.add_argument("--growth", type=int, metavar="N", help="N steps of metadcseg_head: does anything grow?")
    args = parser.parse_args(argv)
    try:
        for case in (CASES[name] for name in args.only):
            check_steps(args.arms or case.arms, case.steps if args.steps is None else args.steps)
        if min(args.threads) < 1:
            raise ValueError(f"Got --threads {min(args.threads)}, expected at least 1.")
        if args.page:
            replaced(args.page.read_text(), "")
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    args.work.mkdir(parents=True, exist_ok=True)
    work = args.work.resolve()
    variables = {f"nnUNet_{kind}": str(work / kind) for kind in ("raw", "preprocessed", "results")}
    for folder in variables.values():
        os.makedirs(folder, exist_ok=True)
    with environment(variables):
        prepared = {name: prepare(CASES[name], work, args.data, variables) for name in args.only}
    if args.prepare:
        return
    with environment({**variables, "nnUNet_n_proc_DA": "0"}), tempfile.TemporaryDirectory() as scratch:
        for threads in args.threads:
            targets = {
                name: Target(str(plans.parent), str(plans), configuration, 0, args.device, threads)
                for name, (plans, configuration) in prepared.items()
            }
            if args.growth:
                for name, target in targets.items():
                    print(f"{name}: {growth(target, args.growth, Path(scratch))}", flush=True)
            else:
                measure_all(targets, args, work, Path(scratch))


def measure_all(targets: dict[str, Target], args: argparse.Namespace, work: Path, scratch: Path) -> None:
    from nnunetv2_metadcseg.step_benchmark_report import table, write_chart, write_json

    results, tables = [], []
    stem = work / f"step_cost_{args.device}_{next(iter(targets.values())).threads}"
    (work / "measured").mkdir(exist_ok=True)
    for name, target in targets.items():
        result, effort = measured(name, target, args, work, scratch)
        results.append(result)
        tables.append(f"{name}: {table(result, effort)}\n")
        print(tables[-1], flush=True)
        # After every configuration, so that an interrupted run loses one only.
        write_json(results, stem.with_suffix(".json"))
        stem.with_suffix(".md").write_text("\n".join(tables))
    write_chart(results, stem.with_suffix(".png"))
    if args.page:
        page = replaced(args.page.read_text(), "\n".join(tables))
        (args.page.parent / "img").mkdir(exist_ok=True)
        shutil.copyfile(stem.with_suffix(".png"), args.page.parent / "img" / "step_cost.png")
        write_whole(args.page, page)


def measured(name: str, target: Target, args: argparse.Namespace, work: Path, scratch: Path) -> tuple[Result, Effort]:
    """The result of a configuration, from its file where it was measured before."""
    case, file = CASES[name], work / "measured" / f"{name}_{target.device}_{target.threads}.json"
    if file.is_file() and not args.again:
        print(f"{name}: from {file}; --again measures anew", file=sys.stderr, flush=True)
        return from_json(json.loads(file.read_text()))
    from nnunetv2_metadcseg.step_benchmark_measure import measure

    effort = Effort(args.steps or case.steps, case.warm_up, args.clock, not args.no_memory, case.brief)
    result = measure(target, args.arms or case.arms, effort, scratch)
    write_whole(file, json.dumps({"result": asdict(result), "effort": asdict(effort)}, indent=1) + "\n")
    return result, effort


def from_json(content: dict) -> tuple[Result, Effort]:
    result = content["result"]
    return Result(
        Target(**result["target"]),
        [ArmCost(**cost) for cost in result["costs"]],
        result["data_seconds"],
        result["disagreeing"],
        tuple(result["patch"]),
        result.get("steps", content["effort"]["steps"]),  # which files of older versions lack
    ), Effort(**content["effort"])


def write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def replaced(page: str, tables: str) -> str:
    """The page with other tables between its two comments.

    Raises:
        ValueError: the page lacks them.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"The page given with --page lacks the lines {BEGIN!r} and {END!r}; put them around its tables."
        )
    return f"{before}{begin}\n{tables}{end}{after}"


def growth(target: Target, steps: int, scratch: Path) -> str:
    """Memory and step time in the first and the last fifth of a long run of metadcseg_head."""
    import torch

    from nnunetv2_metadcseg.step_benchmark_arms import build
    from nnunetv2_metadcseg.step_benchmark_measure import draw_batches, trained_weights
    from nnunetv2_metadcseg.step_benchmark_memory import long_run

    torch.set_num_threads(target.threads)
    batches = draw_batches(build("metadcseg_head", target), 4)
    shared = scratch / "growth.pt"
    torch.save({"batches": batches, "weights": trained_weights(target, batches, 20)}, shared)
    cycles = max(5, round(steps / len(batches)))
    run = long_run("metadcseg_head", target, shared, cycles)
    fifth = cycles // 5
    size, seconds = run["resident_mb"], run["cycle_seconds"]
    first, last = (
        statistics.median(seconds[part]) / len(batches) for part in (slice(1, fifth + 1), slice(-fifth, None))
    )
    return (
        f"{cycles * len(batches)} steps, memory {size[fifth - 1]:.0f} MiB after a fifth, {size[-1]:.0f} at the end, "
        f"peak {run['peak_mb']:.0f} MiB; {first:.4f} s per step in the first fifth, {last:.4f} s in the last"
    )


# ---- data ------------------------------------------------------------------------------------------------------------


def prepare(case: Case, work: Path, data: Path | None, variables: dict[str, str]) -> tuple[Path, str]:
    """Plans file and configuration of a case; whatever is there already is used again.

    A marker of ours tells what is finished: nnU-Net makes its folder before it preprocesses the first case.
    """
    marker = f".{case.planned}_preprocessed"
    if not list((work / "preprocessed").glob(f"Dataset{case.number}_*/{marker}")):
        print(f"Preparing {case.source} ...", file=sys.stderr, flush=True)
        source = raw_dataset(case, work, data, variables)
        run_module(
            *(variables, "noise_tools.cli", "corrupt", "-d", source, "-o", str(case.number), "--overwrite"),
            *("--noise", "erosion", "dilation", "affine", "--case-fraction", "0.6", "--label-dice", "0.6"),
        )
        planner = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints"
        run_module(variables, planner, "-d", str(case.number), "-c", case.planned, "-np", "1", "-npfp", "1")
    plans = next((work / "preprocessed").glob(f"Dataset{case.number}_*/nnUNetPlans.json"))
    (plans.parent / marker).touch()
    if case.small is None:
        return plans, case.planned
    return plans, add_small_configuration(plans, case.planned, **case.small)


def raw_dataset(case: Case, work: Path, data: Path | None, variables: dict[str, str]) -> str:
    """Id of the clean raw data set: a link to one in --data, or a phantom."""
    if case.source.startswith("phantom"):
        number, spacing = ("900", ()) if case.source == "phantom" else ("903", ("--spacing", *FINE_SPACING))
        if not list((work / "raw").glob(f"Dataset{number}_*")):
            line = ("phantom", "-o", number, "-n", "12", "--test", "0", "--seed", "0", *spacing)
            run_module(variables, "noise_tools.cli", *line)
        return number
    if data is None or not (data / case.source / "dataset.json").is_file():
        raise ValueError(f"Found no {case.source} in --data {data}, expected nnU-Net's raw format; name its folder.")
    link = work / "raw" / case.source
    if not link.exists():
        link.symlink_to((data / case.source).resolve(), target_is_directory=True)
    return case.source


if __name__ == "__main__":
    sys.exit(main())
