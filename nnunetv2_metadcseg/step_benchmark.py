"""`metadcseg benchmark`: seconds and memory of one training step, against stock nnU-Net on the same plans and batches.

All arms start from the same briefly trained weights, take turns on the same pre-drawn batches, and report medians. Peak
memory is measured in a process per arm (step_benchmark_memory.py).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# In the order of the table; `metadcseg_head_every_4` and the like (any number) may be asked for as well.
ARMS = ("stock", "stock_channels_last", "mixed", "l2b_unrolled", "metadcseg_head", "metadcseg_network")
PHANTOM_CONFIGURATION = "3d_fullres"  # measured is its small version
EXAMPLES = """\
examples:
  metadcseg benchmark                                                the embedded phantom, a small 3D configuration
  metadcseg benchmark -d 504 -c 3d_fullres 2d --device cuda --json cost.json --output cost.png
  metadcseg benchmark --arms stock metadcseg_network metadcseg_network_every_4
"""


@dataclass(frozen=True)
class Target:
    """What is measured: preprocessed folder of a data set, its plans file, configuration and fold; device, threads."""

    folder: str
    plans_file: str
    configuration: str
    fold: int = 0
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        steps: timed steps per arm, at most; only whole cycles are timed (`cycle_length`).
        warm_up: training steps before. clock: "wall" or "cpu".
        memory: measure peak memory. brief: where a step takes many seconds: one untimed step per arm instead of one
            per batch, no parts, and memory over two steps.
    """

    steps: int = 40
    warm_up: int = 40
    clock: str = "wall"
    memory: bool = True
    brief: bool = False


@dataclass(frozen=True)
class ArmCost:
    """Cost of an arm: seconds per step and, where measured, its parts (seconds by name) and peak memory in MiB."""

    arm: str
    step_seconds: float
    parts: dict[str, float]
    peak_mb: float | None = None


@dataclass(frozen=True)
class Result:
    """All arms of one configuration.

    Attributes:
        data_seconds: drawing and augmenting one batch in the training process, by loader (stock, MetaDCSeg).
        disagreeing: share of given-label voxels where label and teacher disagree; the meta part's cost grows with it.
        patch: patch size and, before it, batch size.
        steps: steps per arm that were timed.
    """

    target: Target
    costs: list[ArmCost]
    data_seconds: dict[str, float]
    disagreeing: float
    patch: tuple[int, ...]
    steps: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `metadcseg benchmark`."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("-d", dest="dataset", help="preprocessed data set, id or name (default: a phantom made here)")
    parser.add_argument(
        "-c",
        dest="configurations",
        nargs="+",
        default=[PHANTOM_CONFIGURATION],
        help=f"configurations (default: {PHANTOM_CONFIGURATION})",
    )
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("-f", dest="fold", type=int, default=0, help="fold (default: 0)")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--steps", type=int, default=40, help="timed steps per arm, at most (default: 40)")
    parser.add_argument("--warm-up", type=int, default=40, help="training steps before timing (default: 40)")
    parser.add_argument("-device", "--device", default="cpu", choices=("cpu", "cuda", "mps"), help="(default: cpu)")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU (default: all cores)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, all threads")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory (a process per arm)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="draw a bar chart")


def run(args: argparse.Namespace) -> int:
    """Measures, prints a table per configuration and writes what was asked for."""
    check(args)
    if args.device != "cpu":
        check_device(args.device)
    effort = Effort(args.steps, args.warm_up, args.clock, not args.no_memory)
    with (
        tempfile.TemporaryDirectory(prefix="metadcseg_benchmark_") as scratch,
        prepared(args, Path(scratch)) as targets,
    ):
        from nnunetv2_metadcseg.step_benchmark_measure import measure
        from nnunetv2_metadcseg.step_benchmark_report import table, write_chart, write_json

        results = []
        for target in targets:
            results.append(measure(target, args.arms, effort, Path(scratch)))
            print(table(results[-1], effort), flush=True)
            if args.json:  # after every configuration, so that what is measured stays where a later one fails
                write_json(results, args.json)
    if args.output:
        write_chart(results, args.output)
    return 0


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for options that give no measurement, before anything slow starts."""
    check_steps(args.arms, args.steps)
    if len(set(args.arms)) < len(args.arms):
        raise ValueError(f"--arms names an arm twice ({' '.join(args.arms)}); name each arm once.")
    if args.warm_up < 0:
        raise ValueError(f"Got --warm-up {args.warm_up}, expected at least 0.")
    if args.dataset is None and set(args.configurations) != {PHANTOM_CONFIGURATION}:
        raise ValueError(
            f"Got -c {' '.join(args.configurations)} without a data set, expected {PHANTOM_CONFIGURATION}, the only "
            "configuration of the phantom; leave out -c, or name a data set with -d."
        )
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"Got --threads {args.threads}, expected at least 1.")
    if args.output and args.output.suffix.lower() != ".png":
        raise ValueError(f"Got --output {args.output}, expected the name of a PNG file; end it in .png.")
    for path in (args.json, args.output):
        if path and not path.absolute().parent.is_dir():
            raise ValueError(f"The folder of {path} does not exist; make it first: mkdir -p {path.parent}")
        if path and path.is_dir():
            raise ValueError(f"{path} is a folder, expected the name of a file to write; add one to it.")


def check_configurations(plans_file: Path, configurations: Sequence[str]) -> None:
    """Raises ValueError or FileNotFoundError for what cannot be measured, before another one has taken its time."""
    from nnunetv2_metadcseg.small_config import read_plans, resolve

    plans = read_plans(plans_file)
    for name in configurations:
        planned = resolve(plans, name)
        if planned.get("previous_stage"):
            raise ValueError(
                f"The configuration {name!r} is the second stage of a cascade and needs predictions of "
                f"{planned['previous_stage']!r}, which the benchmark does not have; leave it out of -c."
            )
        if planned.get("batch_size", 2) < 2:  # the only patch would be a trusted one: the method has nothing to do
            raise ValueError(
                f"The configuration {name!r} has batches of {planned['batch_size']}, expected at least 2 (a "
                "given-label and a trusted patch); measure one with larger batches."
            )
        data = plans_file.parent / planned.get("data_identifier", name)
        if not data.is_dir():
            raise FileNotFoundError(
                f"The configuration {name!r} is not preprocessed, expected its data in {data}; "
                "run nnUNetv2_preprocess for it, or leave it out of -c."
            )


def check_device(device: str) -> None:
    """Raises ValueError where torch sees no such device."""
    import torch

    if not {"cuda": torch.cuda, "mps": torch.mps}[device].is_available():
        raise ValueError(f"torch {torch.__version__} sees no {device} device; leave out --device to measure the CPU.")


def meta_interval(arm: str) -> int:
    """Steps per meta step of an arm's name: 4 for `metadcseg_head_every_4`, else 1.

    Raises:
        ValueError: no such arm.
    """
    name, _, number = arm.partition("_every_")
    if name in ARMS and (not number or (name.startswith("metadcseg_") and number.isdecimal() and int(number) > 0)):
        if number or name == arm:
            return int(number or 1)
    raise ValueError(
        f"There is no arm {arm!r}; there are {', '.join(ARMS)}, and metadcseg_head_every_K, metadcseg_network_every_K "
        "for a meta step every K steps."
    )


def cycle_length(arms: Sequence[str]) -> int:
    """Steps after which the costs repeat: the meta network may do more on some steps than on others.

    With as many batches, and one mean over all of them, the rare expensive steps count at their true rate. At least
    four, since the work also depends on how many voxels of a batch disagree.
    """
    return math.lcm(4, *(meta_interval(arm) for arm in arms))


def check_steps(arms: Sequence[str], steps: int) -> None:
    """Raises ValueError for an unknown arm, or for fewer steps than the arms' costs take to repeat."""
    least = cycle_length(arms)
    if steps < least:
        raise ValueError(
            f"Got --steps {steps}, expected at least {least}, after which the costs of these arms repeat; "
            f"give --steps {least} or more."
        )


@contextlib.contextmanager
def prepared(args: argparse.Namespace, scratch: Path) -> Iterator[list[Target]]:
    """The targets, with nnU-Net's variables set for them as long as the context lasts."""
    from nnunetv2_metadcseg.small_config import find_plans_file
    from nnunetv2_metadcseg.step_benchmark_phantom import make_phantom

    variables = {"nnUNet_results": str(scratch / "results"), "nnUNet_n_proc_DA": "0"}
    (scratch / "results").mkdir()
    if args.dataset is None:
        print("Making the phantom (about a minute) ...", file=sys.stderr, flush=True)
        plans_file, small = make_phantom(scratch)
        variables |= {"nnUNet_preprocessed": str(plans_file.parent.parent), "nnUNet_raw": str(scratch / "raw")}
        configurations = [small]
    else:
        plans_file, configurations = find_plans_file(args.dataset, args.plans), args.configurations
        check_configurations(plans_file, configurations)
    first = Target(
        str(plans_file.parent),
        str(plans_file),
        configurations[0],
        args.fold,
        args.device,
        args.threads or os.cpu_count() or 1,
    )
    with environment(variables):
        yield [replace(first, configuration=c) for c in configurations]


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets variables and puts the old values back afterwards."""
    old = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
