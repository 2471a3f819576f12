"""`noise_tools phantom`: a synthetic data set in raw format, for demonstrations and tests without downloads.

Each case shows one bent, tapering structure like a hippocampus: label 1 'head' and label 2 'tail' touch at a cut
across its length. Around it lie textured tissue and distractors as bright as the structure. Partial volume (rendered
at twice the resolution), a smooth bias field and Rician noise make borders hard to see, so a network must learn them
from the labels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from noise_tools.errors import NoiseToolsError
from noise_tools.output import PHANTOM_MARK, output_folder, reserved, written_whole
from noise_tools.parallel import run_cases
from noise_tools.plan import generator
from noise_tools.raw_dataset import raw_root

if TYPE_CHECKING:
    import argparse

# Field of view in mm per axis, length of the structure relative to it, thickness in mm.
_FIELD = {3: (32.0, 40.0, 40.0), 2: (96.0, 96.0)}
_THICKNESS = {3: 4.2, 2: 11.0}
_FINE = 2  # rendering grid: finer by this factor, which gives partial volume
_TISSUE, _HEAD, _TAIL, _FLUID = 0.46, 0.68, 0.60, 0.25


@dataclass(frozen=True)
class PhantomJob:
    """What a worker needs: number of axes, voxel size in mm, seed, which cases are for testing, where to write."""

    dim: int
    spacing: tuple[float, ...]
    seed: int
    test: frozenset[str]
    folder: Path


def run(args: argparse.Namespace) -> int:
    """Entry point of the command line."""
    dim = args.dim
    spacing = tuple(args.spacing or (1.0,) * dim)
    check(args.training, args.test, dim, spacing, args.seed)
    training = [f"phantom_{i:03d}" for i in range(args.training)]
    test = [f"phantom_{i:03d}" for i in range(args.training, args.training + args.test)]
    with reserved(raw_root(), args.output):
        folder = output_folder(raw_root(), args.output, args.name or "Phantom", args.overwrite)
        with written_whole(folder) as temporary:
            for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
                (temporary / part).mkdir()
            job = PhantomJob(dim, spacing, args.seed, frozenset(test), temporary)
            run_cases(write_case, job, training + test, args.processes, "Drawing")
            (temporary / "dataset.json").write_text(
                json.dumps(_dataset_json(folder.name[11:], len(training), dim), indent=1) + "\n"
            )
    print(f"Wrote {folder}: {len(training)} training and {len(test)} test cases.")
    return 0


def check(training: int, test: int, dim: int, spacing: tuple[float, ...], seed: int) -> None:
    """Raises NoiseToolsError for numbers that give no data set."""
    if training < 1 or test < 0:
        raise NoiseToolsError(f"-n is {training} and --test {test}; give at least 1 training case and 0 test cases.")
    if seed < 0:
        raise NoiseToolsError(f"--seed is {seed}; give a whole number from 0.")
    if dim == 2 and spacing != (1.0, 1.0):
        raise NoiseToolsError("--spacing is for volumes: PNG images have no spacing; leave it out with --dim 2.")
    if len(spacing) != dim or not all(0.25 <= step <= 4 for step in spacing):
        raise NoiseToolsError(
            f"--spacing is {' '.join(map(str, spacing))}; give {dim} sizes between 0.25 and 4 mm (z y x)."
        )


def write_case(job: PhantomJob, identifier: str) -> None:
    """Draws one case and writes its image and label."""
    image, label = draw(generator(job.seed, "phantom", identifier), job.dim, job.spacing)
    part = "Ts" if identifier in job.test else "Tr"
    ending = ".nii.gz" if job.dim == 3 else ".png"
    _save(image, job.spacing, job.folder / f"images{part}" / f"{identifier}_0000{ending}")
    _save(label, job.spacing, job.folder / f"labels{part}" / f"{identifier}{ending}")


def draw(
    rng: np.random.Generator, dim: int = 3, spacing: tuple[float, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One image and its label map.

    Args:
        dim: 3 gives about 32 x 40 x 40 mm, 2 gives 96 x 96 pixels.
        spacing: voxel size in mm, (z, y, x); 1 mm if not given.

    Returns:
        Image (uint16 in 3D, uint8 in 2D) and label (uint8; 0 background, 1 head, 2 tail) of equal shape.
    """
    spacing = spacing or (1.0,) * dim
    shape = tuple(max(8, round(size / step)) for size, step in zip(_FIELD[dim], spacing, strict=True))
    grid = _grid(shape, spacing)
    head, tail = _structure(rng, grid, dim)
    scene = _surroundings(rng, grid, dim)
    scene = np.where(head, _HEAD, np.where(tail, _TAIL, scene))
    scene = scene * (1 + 0.05 * _texture(rng, scene.shape, 1.5))
    shares = [_coarsen(part.astype(float)) for part in (head, tail)]
    label = np.zeros(shape, dtype=np.uint8)
    inside = shares[0] + shares[1] >= 0.5
    label[inside] = np.where(shares[0] >= shares[1], 1, 2)[inside]
    return _scan(rng, _coarsen(scene), dim), label


def _grid(shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """Positions in mm from the image centre, on the fine grid: (dim, *fine shape)."""
    axes = [(np.arange(n * _FINE) + 0.5) * step / _FINE - n * step / 2 for n, step in zip(shape, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _structure(rng: np.random.Generator, grid: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks of head and tail: a tube of changing radius around a bent curve, cut across."""
    thickness = _THICKNESS[dim]
    length = thickness * rng.uniform(4.4, 6.2)
    bend = rng.uniform(0.15, 0.45) * length
    along, across = _frame(rng, dim)
    offset = rng.normal(size=dim) * 0.5 * thickness
    t = np.linspace(0, 1, 40)
    curve = offset[:, None] + along[:, None] * (t - 0.5) * length + across[:, None] * bend * ((2 * t - 1) ** 2 - 0.4)
    bulge = rng.uniform(1.1, 1.5)
    radius = (
        thickness
        * rng.uniform(0.85, 1.15)
        * (bulge * (1 - t) + 0.65 * t)
        * np.sqrt(np.clip(np.sin(np.pi * t), 0.02, 1))
    )
    depth = np.full(grid.shape[1:], -np.inf)
    where = np.zeros(grid.shape[1:])
    for point, size, position in zip(curve.T, radius, t, strict=True):
        gap = size - np.sqrt(((grid - point.reshape(-1, *[1] * dim)) ** 2).sum(axis=0))
        closer = gap > depth
        depth[closer] = gap[closer]
        where[closer] = position
    wobble = _texture(rng, depth.shape, 0.8 * thickness / (grid[-1].flat[1] - grid[-1].flat[0]))
    inside = depth + 0.16 * thickness * wobble > 0
    cut = rng.uniform(0.38, 0.52)
    return inside & (where < cut), inside & (where >= cut)


def _frame(rng: np.random.Generator, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Direction of the structure and of its bend: roughly along the last axis, turned by up to 35 degrees."""
    angle = np.deg2rad(rng.uniform(-35, 35))
    along = np.zeros(dim)
    along[-1], along[-2] = math.cos(angle), math.sin(angle)
    across = np.zeros(dim)
    across[-1], across[-2] = -math.sin(angle), math.cos(angle)
    if dim == 3:
        tilt = np.deg2rad(rng.uniform(-25, 25))
        across = across * math.cos(tilt) + np.array([math.sin(tilt), 0, 0])
    return along, across


def _surroundings(rng: np.random.Generator, grid: np.ndarray, dim: int) -> np.ndarray:
    """Tissue with a dark fluid space and distractor blobs as bright as the structure."""
    thickness = _THICKNESS[dim]
    half = np.array(_FIELD[dim]) / 2
    scene = _TISSUE * (1 + 0.12 * _texture(rng, grid.shape[1:], 6))
    brightness = [_FLUID] * 2 + list(rng.uniform(_TAIL - 0.03, _HEAD + 0.03, size=5 if dim == 3 else 4))
    for level in brightness:
        center = rng.uniform(-1, 1, dim) * half * 0.9
        axes = thickness * rng.uniform(0.5, 1.3, dim)
        distance = np.sqrt((((grid - center.reshape(-1, *[1] * dim)) / axes.reshape(-1, *[1] * dim)) ** 2).sum(axis=0))
        scene = np.where(distance < 1 + 0.15 * _texture(rng, distance.shape, 4), level, scene)
    return scene


def _texture(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Smooth random field of zero mean and unit standard deviation; sigma in voxels."""
    field = gaussian_filter(rng.normal(size=shape), sigma, mode="nearest")
    return (field - field.mean()) / field.std()


def _coarsen(fine: np.ndarray) -> np.ndarray:
    """Mean over blocks of the fine grid: partial volume."""
    blocks = [size for n in fine.shape for size in (n // _FINE, _FINE)]
    return fine.reshape(blocks).mean(axis=tuple(range(1, 2 * fine.ndim, 2)))


def _scan(rng: np.random.Generator, scene: np.ndarray, dim: int) -> np.ndarray:
    """Bias field, Rician noise and a random overall gain."""
    knots = rng.uniform(0.8, 1.2, size=(3,) * dim)
    bias = zoom(knots, [n / 3 for n in scene.shape], order=1, mode="nearest", grid_mode=True)
    bias = gaussian_filter(bias, [n / 8 for n in scene.shape], mode="nearest")
    signal = gaussian_filter(scene, 0.5) * bias
    sigma = rng.uniform(0.05, 0.08)
    measured = np.hypot(signal + rng.normal(scale=sigma, size=signal.shape), rng.normal(scale=sigma, size=signal.shape))
    if dim == 2:
        return np.clip(measured * rng.uniform(170, 230), 0, 255).astype(np.uint8)
    return np.clip(measured * rng.uniform(400, 1200), 0, 65535).astype(np.uint16)


def _save(array: np.ndarray, spacing: tuple[float, ...], path: Path) -> None:
    if array.ndim == 2:
        from skimage import io

        io.imsave(path, array, check_contrast=False)
        return
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(step) for step in reversed(spacing)])
    sitk.WriteImage(image, str(path), True)


def _dataset_json(name: str, count: int, dim: int) -> dict[str, Any]:
    return {
        "name": name,
        "description": f"{PHANTOM_MARK}: a bent structure with two touching labels",
        "channel_names": {"0": "MRI" if dim == 3 else "grey"},
        "labels": {"background": 0, "head": 1, "tail": 2},
        "numTraining": count,
        "file_ending": ".nii.gz" if dim == 3 else ".png",
    }
