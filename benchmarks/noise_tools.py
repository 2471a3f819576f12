"""How fast noise_tools is, and how much memory it takes.

    python benchmarks/noise_tools.py cases                 cases per second of `corrupt`, 1 and 2 processes
    python benchmarks/noise_tools.py large                 one volume of 512 x 512 x 400 voxels with 20 labels
    python benchmarks/noise_tools.py large --types erosion dilation --no-naive

`large` measures every noise type in a process of its own (one thread), beside one signed distance transform of the
foreground's bounding box and beside a naive SciPy version of the same noise, which works on the whole volume label by
label. Time is processor time, which other programs on the machine disturb less; wall time is printed too. Memory is
the peak of the whole process, interpreter and label map included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# This file is called like the package it measures and would be imported in its place.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

SHAPE = (400, 512, 512)
SPACING = (1.25, 0.78, 0.78)  # mm; an abdominal CT
LABELS = tuple(range(1, 21))
RADIUS = 3.0  # mm, of erosion and dilation
TO_SURFACE = min(SPACING) / 4  # as in noise_tools.geometry: from a voxel of the other side to the surface
SEVERITY = 0.3  # of all other types
REFERENCE = "one distance transform"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cases = commands.add_parser("cases", help="cases per second of `noise_tools corrupt`")
    cases.add_argument("--dataset", type=Path, help="raw data set to corrupt (default: a phantom made here)")
    cases.add_argument("--count", type=int, default=100, help="cases of the phantom (default: %(default)s)")
    cases.add_argument("--noise", nargs="+", default=["erosion", "dilation", "affine"])
    cases.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    large = commands.add_parser("large", help="one large volume: time and memory per type")
    large.add_argument("--types", nargs="+", help="default: all")
    large.add_argument("--no-naive", action="store_true", help="leave out the SciPy versions, which take minutes")
    large.add_argument("--size", type=float, default=1.0, help="shrinks the volume's sides (default: %(default)s)")
    child = commands.add_parser("measure")  # what `large` starts
    child.add_argument("name")
    child.add_argument("volume", type=Path)
    args = parser.parse_args()
    {"cases": run_cases, "large": run_large, "measure": run_measure}[args.command](args)
    if args.command != "measure":
        print(f"\n{os.cpu_count()} processors; mean load of the last 15 minutes {os.getloadavg()[2]:.1f}.")


# --- cases per second -------------------------------------------------------------------------------------------------


def run_cases(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["nnUNet_raw"] = folder
        source = args.dataset.resolve() if args.dataset else _make_phantom(root, args.count)
        _print_cells("noise", "Dice asked", "processes", "cases", "seconds", "cases per second")
        _print_cells(*["---"] * 6)
        for asked in (None, 0.7):
            for processes in args.processes:
                count, seconds = _time_corrupt(source, root / "Dataset999_Out", args.noise, asked, processes)
                cells = [
                    " ".join(args.noise),
                    asked or "-",
                    processes,
                    count,
                    f"{seconds:.1f}",
                    f"{count / seconds:.1f}",
                ]
                _print_cells(*cells)


def _make_phantom(root: Path, count: int) -> Path:
    command = [sys.executable, "-m", "noise_tools.cli", "phantom", "-o", "1", "-n", str(count), "--test", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return next(root.glob("Dataset001_*"))


def _time_corrupt(
    source: Path, target: Path, noise: Sequence[str], label_dice: float | None, processes: int
) -> tuple[int, float]:
    """Number of cases written and seconds, start of the processes included."""
    import shutil

    from noise_tools.corrupt import Request, corrupt
    from noise_tools.raw_dataset import load_dataset
    from noise_tools.recipe import parse_components

    dataset = load_dataset(source)
    request = Request(parse_components(noise), case_fraction=1.0, seed=0, label_dice=label_dice, trusted=1)
    start = time.perf_counter()
    content, _ = corrupt(dataset, target, request, processes)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return len(content["cases"]), seconds


# --- one large volume -------------------------------------------------------------------------------------------------


def make_volume(size: float = 1.0, seed: int = 0) -> np.ndarray:
    """Label map (z, y, x) of 20 overlapping ellipsoids ("organs") in a torso; `size` shrinks every side."""
    shape = tuple(round(n * size) for n in SHAPE)
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.int16)
    torso = np.array(shape) * [0.42, 0.28, 0.38]
    for value in LABELS:
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        center = np.array(shape) / 2 + direction * torso * rng.uniform(0, 0.85) ** (1 / 3)
        radii = rng.uniform(0.05, 0.2, 3) * np.array(shape)
        first = np.maximum(0, center - radii).astype(int)
        last = np.minimum(shape, center + radii + 2).astype(int)
        box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        inside = sum(((g - c) / r) ** 2 for g, c, r in zip(np.ogrid[box], center, radii, strict=True)) <= 1
        part = label[box]
        part[inside & (part == 0)] = value
    return label


def run_large(args: argparse.Namespace) -> None:
    from noise_tools.noise import NAMES

    types = args.types or NAMES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.npy"
        volume = make_volume(args.size)
        np.save(path, volume)
        foreground = np.count_nonzero(volume) / volume.size
        print(
            f"Volume {'x'.join(map(str, volume.shape))}, spacing {SPACING} mm, {len(LABELS)} labels, "
            f"{foreground:.0%} foreground, {volume.nbytes / 2**20:.0f} MiB.\n"
        )
        del volume
        head = (
            "what",
            "CPU s",
            "wall s",
            "x reference",
            "peak GiB",
            "naive: CPU s",
            "peak GiB",
            "changed: ours / naive",
        )
        _print_cells(*head)
        _print_cells(*["---"] * len(head))
        reference = _measure(REFERENCE, path)
        _print_row(REFERENCE, reference, reference["cpu"], None)
        for name in types:
            naive = _measure(f"naive {name}", path) if name in NAIVE and not args.no_naive else None
            _print_row(name, _measure(name, path), reference["cpu"], naive)


def _print_row(name: str, ours: dict[str, Any], unit: float, naive: dict[str, Any] | None) -> None:
    cells = [name, f"{ours['cpu']:.1f}", f"{ours['wall']:.1f}", f"{ours['cpu'] / unit:.2f}", f"{ours['peak']:.2f}"]
    if naive:
        cells += [f"{naive['cpu']:.1f}", f"{naive['peak']:.2f}", _apart(ours, naive)]
    else:
        cells += ["-", "-", "-"]
    _print_cells(*cells)


def _print_cells(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def _apart(ours: dict[str, Any], naive: dict[str, Any]) -> str:
    """How many voxels the two versions changed: a check that they do the same work."""
    return f"{ours['changed']} / {naive['changed']}"


def _measure(name: str, volume: Path) -> dict[str, Any]:
    """Measurements of one type in a fresh process, so that the peak of memory is its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "measure", name, str(volume)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise SystemExit(f"error: measuring {name} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def run_measure(args: argparse.Namespace) -> None:
    from importlib import import_module

    import SimpleITK as sitk

    for name in ("scipy.ndimage", "scipy.spatial", "skimage.draw", "skimage.measure"):
        import_module(name)  # or it would be measured
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    label = np.load(args.volume)
    kind, _, name = args.name.rpartition(" ")
    if args.name == REFERENCE:
        work = _reference(label)
    elif kind == "naive":
        work = _naive(name, label)
    else:
        work = _ours(name, label)
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    changed = int(np.count_nonzero(result != label)) if result is not None else 0
    print(json.dumps({"cpu": cpu, "wall": wall, "peak": peak, "changed": changed}))


def _reference(label: np.ndarray) -> Callable[[], None]:
    import SimpleITK as sitk

    from noise_tools.geometry import bounding_box

    box = bounding_box(label != 0)
    image = sitk.GetImageFromArray((label[box] != 0).astype(np.uint8))
    image.SetSpacing(SPACING[::-1])

    def work() -> None:
        sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True))

    return work


def _noise(name: str) -> Any:
    from noise_tools import noise

    settings = {"radius": (RADIUS, RADIUS)} if name in ("erosion", "dilation") else None
    return noise.load(name)(LABELS, settings)


def _ours(name: str, label: np.ndarray) -> Callable[[], np.ndarray]:
    noise = _noise(name)

    def work() -> np.ndarray:
        params = noise.sample(np.random.default_rng(0), label, SPACING, SEVERITY)
        return noise.apply(label, SPACING, params)

    return work


def _naive(name: str, label: np.ndarray) -> Callable[[], np.ndarray]:
    params = _noise(name).sample(np.random.default_rng(0), label, SPACING, SEVERITY)
    return lambda: NAIVE[name](label, params)


# --- the same noise, written down naively with SciPy ------------------------------------------------------------------


def _naive_erosion(label: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    noisy = label.copy()
    for value in LABELS:
        mask = label == value
        noisy[mask & (distance_transform_edt(mask, sampling=SPACING) - TO_SURFACE <= params["radius"])] = 0
    return noisy


def _naive_dilation(label: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    noisy, nearest = label.copy(), np.full(label.shape, np.inf)
    for value in LABELS:
        distance = distance_transform_edt(label != value, sampling=SPACING) - TO_SURFACE
        wins = (label == 0) & (distance <= params["radius"]) & (distance < nearest)
        noisy[wins] = value
        nearest[wins] = distance[wins]
    return noisy


def _naive_affine(label: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    from scipy.ndimage import affine_transform

    spacing = np.diag(SPACING)
    inverse = np.linalg.inv(spacing) @ np.linalg.inv(np.array(params["matrix"])) @ spacing
    center = np.argwhere(label).mean(axis=0)
    shift = np.array(params["translation"]) / SPACING
    return affine_transform(label, inverse, center - inverse @ (center + shift), order=0)


NAIVE: dict[str, Callable[[np.ndarray, dict[str, Any]], np.ndarray]] = {
    "erosion": _naive_erosion,
    "dilation": _naive_dilation,
    "affine": _naive_affine,
}


if __name__ == "__main__":
    main()
