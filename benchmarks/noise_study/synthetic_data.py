"""Synthetic data sets of the study on hard data: faint lesions, thin vessels in colour pictures, organs of all sizes.

``write_lesions``, ``write_vessels`` and ``write_organs`` each write a raw data set; every case has a seed of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt, gaussian_filter

Case = tuple[np.ndarray, np.ndarray]
CASES, SIZE = 150, 160
ORGAN_CASES, ORGAN_SHAPE, ORGANS = 120, (36, 56, 56), ("liver", "kidney", "gallbladder", "vessel")
# Largest half axes, voxels; brightness, in which noise of SD 0.5 (white) and 0.35 (smooth) hides them.
ORGAN_AXES = ((12, 17, 19), (8, 6, 6), (4, 6, 4))
ORGAN_BRIGHTNESS = (0.6, 1.0, -0.7, 1.3)


def blotches(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> np.ndarray:
    """Smooth noise of SD one; width: of the Gaussian, voxels."""
    noise = gaussian_filter(rng.standard_normal(shape), width)
    return noise / noise.std()


def whole_numbers(image: np.ndarray) -> np.ndarray:
    """Stretched to 0..255, uint8."""
    return ((image - image.min()) / (image.max() - image.min()) * 255).astype(np.uint8)


def blob(rng: np.random.Generator) -> np.ndarray:
    """A wavy ellipse anywhere in the image, half axes of 2.4 to 14 pixels: (SIZE, SIZE) bool."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    y, x = rng.uniform(15, SIZE - 15, 2)
    long = rng.uniform(4, 14)
    short, turn = long * rng.uniform(0.6, 1), rng.uniform(0, np.pi)
    edge = 1 + 0.2 * np.sin(3 * np.arctan2(rows - y, columns - x) + rng.uniform(0, 6))
    along = (rows - y) * np.cos(turn) + (columns - x) * np.sin(turn)
    across = -(rows - y) * np.sin(turn) + (columns - x) * np.cos(turn)
    return (along / long) ** 2 + (across / short) ** 2 < edge**2


def lesion_case(rng: np.random.Generator) -> Case:
    """An image, uint8, and its label, uint8: up to four bright lesions and three dark blobs that are none."""
    image = blotches(rng, (SIZE, SIZE), 8)
    image = image + 0.7 * rng.standard_normal((SIZE, SIZE))
    label = np.zeros((SIZE, SIZE), bool)
    for _ in range(0 if rng.random() < 0.2 else rng.integers(1, 5)):
        lesion = blob(rng)
        label |= lesion
        image = image + 1.4 * gaussian_filter(lesion.astype(float), 1)
    for _ in range(rng.integers(0, 4)):
        image = image - 1.4 * gaussian_filter((blob(rng) & ~label).astype(float), 1)
    return whole_numbers(image), label.astype(np.uint8)


def paths(rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Points (y, x, radius) of a tree of vessels that starts at an edge; branches are thinner, to 0.8 pixels."""
    points, open_ends = [], [(rng.uniform(0, SIZE), 0.0, rng.normal(0, 0.4), rng.uniform(2, 3))]
    while open_ends:
        y, x, turn, radius = open_ends.pop()
        for _ in range(rng.integers(30, 90)):
            points.append((y, x, radius))
            turn += rng.normal(0, 0.12)
            y, x = y + np.sin(turn), x + np.cos(turn)
        if radius > 0.9 and 0 <= y < SIZE and 0 <= x < SIZE:
            fork = rng.uniform(0.3, 0.8)
            open_ends += [(y, x, turn + fork, 0.75 * radius), (y, x, turn - fork, 0.75 * radius)]
    return points


def vessel_case(rng: np.random.Generator) -> Case:
    """A colour picture, (SIZE, SIZE, 3) uint8, and its label, uint8: trees of dark vessels on uneven ground."""
    radius = np.zeros((SIZE, SIZE))
    for _ in range(rng.integers(2, 4)):
        for y, x, r in paths(rng):
            if 0 <= int(y) < SIZE and 0 <= int(x) < SIZE:
                radius[int(y), int(x)] = max(radius[int(y), int(x)], r)
    distance, nearest = distance_transform_edt(radius == 0, return_indices=True)
    vessels = distance <= radius[tuple(nearest)] - 0.5
    ground = 1.2 * blotches(rng, (SIZE, SIZE), 12) - gaussian_filter(vessels.astype(float), 0.7) * rng.uniform(1.2, 2)
    colours = [share * ground + 0.6 * rng.standard_normal((SIZE, SIZE)) for share in (0.5, 1.0, 0.3)]
    return whole_numbers(np.stack(colours, axis=-1)), vessels.astype(np.uint8)


def ellipsoid(rng: np.random.Generator, center: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """With half axes of 0.75 to 1 of `axes`, wavy: ORGAN_SHAPE bool."""
    grid = np.moveaxis(np.indices(ORGAN_SHAPE), 0, -1) - center
    reach = ((grid / (np.array(axes) * rng.uniform(0.75, 1, 3))) ** 2).sum(-1)
    return reach + 0.25 * blotches(rng, ORGAN_SHAPE, 4) < 1


def organ_label(rng: np.random.Generator) -> np.ndarray:
    """Liver, two kidneys, a gallbladder at the liver (a fifth have none) and a curved vessel: ORGAN_SHAPE uint8."""
    label = np.zeros(ORGAN_SHAPE, np.uint8)
    z, y, x = np.array(ORGAN_SHAPE) / 2 + rng.uniform(-3, 3, 3)
    label[ellipsoid(rng, np.array([z, y - 6, x - 8]), ORGAN_AXES[0])] = 1
    for side in (-1, 1):
        label[ellipsoid(rng, np.array([z, y + 17, x + 14 * side]) + rng.uniform(-2, 2, 3), ORGAN_AXES[1])] = 2
    if rng.random() > 0.2:
        label[ellipsoid(rng, np.array([z, y + 4, x + 6]) + rng.uniform(-3, 3, 3), ORGAN_AXES[2])] = 3
    depth, rows, columns = np.indices(ORGAN_SHAPE)
    bend = 3 * np.sin(depth / 8 + rng.uniform(0, 6))
    label[(rows - y - 17) ** 2 + (columns - x - bend) ** 2 < rng.uniform(2.2, 3.2) ** 2] = 4
    return label


def organ_case(rng: np.random.Generator) -> Case:
    """An image, float32, and its label, uint8, both ORGAN_SHAPE: organs of like brightness in blotchy tissue."""
    label = organ_label(rng)
    brightness = np.array([0.0, *ORGAN_BRIGHTNESS]) + np.array([0, *rng.normal(0, 0.1, len(ORGANS))])
    image = gaussian_filter(brightness[label], 0.8) + 0.35 * blotches(rng, ORGAN_SHAPE, 4)
    return (image + 0.5 * rng.standard_normal(ORGAN_SHAPE)).astype(np.float32), label


def write_cases(
    target: Path, draw: Callable[[np.random.Generator], Case], cases: int, first_seed: int, ending: str, **description
) -> None:
    """A raw data set `target` of the drawn cases; description: further entries of `dataset.json`."""
    name = target.name.split("_")[1]
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
    for number in range(cases):
        image, label = draw(np.random.default_rng(first_seed + number))
        case, picture = f"{name.lower()}_{number:03d}", sitk.GetImageFromArray(image, isVector=image.ndim > label.ndim)
        sitk.WriteImage(picture, str(target / "imagesTr" / f"{case}_0000{ending}"))
        sitk.WriteImage(sitk.GetImageFromArray(label), str(target / "labelsTr" / f"{case}{ending}"))
    description = {"name": name, **description, "numTraining": cases, "file_ending": ending}
    (target / "dataset.json").write_text(json.dumps(description, indent=2))


def write_lesions(target: Path) -> None:
    """Faint lesions and distractors; a fifth of the cases have no lesion."""
    labels = {"background": 0, "lesion": 1}
    write_cases(target, lesion_case, CASES, 1000, ".png", channel_names={"0": "synthetic"}, labels=labels)


def write_vessels(target: Path) -> None:
    """Thin vessels in colour pictures."""
    channels, labels = {"0": "R", "1": "G", "2": "B"}, {"background": 0, "vessel": 1}
    write_cases(target, vessel_case, CASES, 2000, ".png", channel_names=channels, labels=labels)


def write_organs(target: Path) -> None:
    """Four organs of very different sizes that touch; a fifth of the cases lack the smallest."""
    labels = {"background": 0} | {name: value for value, name in enumerate(ORGANS, start=1)}
    write_cases(target, organ_case, ORGAN_CASES, 3000, ".nii.gz", channel_names={"0": "synthetic"}, labels=labels)
