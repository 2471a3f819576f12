"""Harder data sets: degraded images, thin rims, a rare class, thick slices, six classes, and synthetic ones.

``python hard_data.py --data FOLDER --output FOLDER`` reads nuclei and hippocampus in nnU-Net's raw format from --data
and writes ten raw data sets for ``hard.yaml``: both with noise on their images and their labels as they are; the
nuclei as they are, labelled as inside and rim, as regions (nucleus, and its inside), and as small or large, image by
image; every fourth slice of the hippocampus; the hippocampus in six parts instead of two; and the synthetic lesions,
vessels and organs of ``synthetic_data.py``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import binary_erosion
from scipy.ndimage import label as connected
from synthetic_data import blotches, whole_numbers, write_lesions, write_organs, write_vessels

HERE = Path(__file__).parent
NUCLEI, RIMS, RIM_WIDTH = "Dataset020_Nuclei", "Dataset023_NucleiRim", 3
KINDS, LARGE_AREA = "Dataset024_NucleiKinds", 250
REGIONS = "Dataset025_NucleiRegions"
HIPPOCAMPUS, THICK, SLICE_STEP = "Dataset004_Hippocampus", "Dataset006_HippocampusThick", 4
PARTS, THIRDS = "Dataset007_HippocampusParts", ("front", "middle", "back")
# source, result, noise by the image's SD (white, smooth), width of the smooth one (voxels), whole numbers
DEGRADED = (
    (NUCLEI, "Dataset021_NucleiHard", (1.0, 0.8), 3, True),
    (HIPPOCAMPUS, "Dataset005_HippocampusHard", (1.5, 1.0), 2, False),
)
SYNTHETIC = {
    "Dataset022_Lesions": write_lesions,
    "Dataset026_Vessels": write_vessels,
    "Dataset027_Organs": write_organs,
}


def degraded(image: np.ndarray, rng: np.random.Generator, strength: tuple[float, float], width: float) -> np.ndarray:
    """The image with white and smooth noise, each of `strength` times its SD."""
    image = image.astype(np.float32)
    smooth = blotches(rng, image.shape, width)
    return image + image.std() * (strength[0] * rng.standard_normal(image.shape) + strength[1] * smooth)


def write(array: np.ndarray, path: Path, like: sitk.Image) -> None:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(like)
    sitk.WriteImage(image, str(path))


def write_degraded(source: Path, target: Path, strength: tuple[float, float], width: float, whole: bool) -> None:
    """A raw data set with degraded images; labels and `dataset.json` are those of the source."""
    shutil.copytree(source / "labelsTr", target / "labelsTr")
    shutil.copy(source / "dataset.json", target)
    (target / "imagesTr").mkdir()
    for number, path in enumerate(sorted((source / "imagesTr").iterdir())):
        image = sitk.ReadImage(str(path))
        noisy = degraded(sitk.GetArrayFromImage(image), np.random.default_rng(number), strength, width)
        write(whole_numbers(noisy) if whole else noisy, target / "imagesTr" / path.name, image)


def with_rim(label: np.ndarray) -> np.ndarray:
    """A label of structures, not zero, as 1 inside and 2 in a rim of RIM_WIDTH pixels: (H, W) uint8."""
    structure = label > 0
    inside = binary_erosion(structure, iterations=RIM_WIDTH, border_value=1)
    return np.where(inside, 1, 2 * structure).astype(np.uint8)


def by_kind(label: np.ndarray) -> np.ndarray:
    """Structures, not zero, as 1, or as 2 in an image whose median one has LARGE_AREA pixels or more: (H, W) uint8."""
    structure = label > 0
    areas = np.bincount(connected(structure)[0].ravel())[1:]
    kind = 2 if len(areas) and np.median(areas) >= LARGE_AREA else 1
    return (kind * structure).astype(np.uint8)


def numbered(names: Sequence[str]) -> dict[str, int]:
    """Classes of these names, from 1 on, as `dataset.json` lists them."""
    return {name: number for number, name in enumerate(names, start=1)}


def write_relabelled(
    source: Path,
    target: Path,
    relabel: Callable[[np.ndarray], np.ndarray],
    labels: Mapping[str, int | Sequence[int]],
    **description,
) -> None:
    """A raw data set with other labels on the same images.

    Args:
        labels: classes or regions for `dataset.json`. description: further entries of it.
    """
    shutil.copytree(source / "imagesTr", target / "imagesTr")
    (target / "labelsTr").mkdir()
    for path in sorted((source / "labelsTr").iterdir()):
        image = sitk.ReadImage(str(path))
        write(relabel(sitk.GetArrayFromImage(image)), target / "labelsTr" / path.name, image)
    description = json.loads((source / "dataset.json").read_text()) | description
    description["labels"] = {"background": 0} | dict(labels)
    (target / "dataset.json").write_text(json.dumps(description, indent=2))


def write_thick_slices(source: Path, target: Path) -> None:
    """Every SLICE_STEP-th slice along z, with the distance between slices as spacing."""
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
        for path in sorted((source / folder).iterdir()):
            sitk.WriteImage(sitk.ReadImage(str(path))[:, :, ::SLICE_STEP], str(target / folder / path.name))
    shutil.copy(source / "dataset.json", target)


def in_parts(label: np.ndarray) -> np.ndarray:
    """A label with the classes 1 and 2, each cut along y into thirds of its length: (Z, Y, X) uint8, classes 1 to 6."""
    parts = np.zeros(label.shape, np.uint8)
    for first, value in ((1, 1), (1 + len(THIRDS), 2)):
        where = np.nonzero(label == value)
        if not len(where[1]):
            continue
        start, stop = where[1].min(), where[1].max() + 1
        parts[where] = first + (where[1] - start) * len(THIRDS) // (stop - start)
    return parts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE / "../../../shared/data", help="folder of raw data sets")
    parser.add_argument("--output", type=Path, default=HERE / "work_hard/data", help="folder for the new ones")
    args = parser.parse_args(argv)
    missing = [source for source, *_ in DEGRADED if not (args.data / source).is_dir()]
    names = [*SYNTHETIC, RIMS, KINDS, REGIONS, THICK, PARTS, *(target for _, target, *_ in DEGRADED)]
    present = [name for name in names if (args.output / name).exists()]
    if missing:
        print(
            f"error: {args.data} lacks {', '.join(missing)}; pass the folder that holds them as --data.",
            file=sys.stderr,
        )
        return 2
    if present:
        print(
            f"error: {args.output} already holds {', '.join(present)}; remove it or pass another --output.",
            file=sys.stderr,
        )
        return 2
    for source, target, *settings in DEGRADED:
        write_degraded(args.data / source, args.output / target, *settings)
    write_relabelled(args.data / NUCLEI, args.output / RIMS, with_rim, numbered(["inside", "rim"]))
    regions = {"nucleus": [1, 2], "inside": 1}
    write_relabelled(args.data / NUCLEI, args.output / REGIONS, with_rim, regions, regions_class_order=[2, 1])
    write_relabelled(args.data / NUCLEI, args.output / KINDS, by_kind, numbered(["small nucleus", "large nucleus"]))
    write_thick_slices(args.data / HIPPOCAMPUS, args.output / THICK)
    parts = [f"{part} {third}" for part in ("anterior", "posterior") for third in THIRDS]
    write_relabelled(args.data / HIPPOCAMPUS, args.output / PARTS, in_parts, numbered(parts))
    for name, write_cases in SYNTHETIC.items():
        write_cases(args.output / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
