"""demo/report.png: image, clean label, given label, learned weights and prediction of corrupted training cases."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from noise_tools.overlay import draw_overlay, fullest_plane, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLEAN, NOISY = "Dataset900_Phantom", "Dataset901_PhantomNoisy"
COLUMNS = ("image", "clean label", "given label", "learned weight of the given label", "prediction")


@dataclass(frozen=True)
class Shown:
    """One row of the picture; arrays (z, y, x) in the geometry of the raw image, spacing in mm."""

    title: str
    spacing: tuple[float, ...]
    image: np.ndarray
    clean: np.ndarray
    given: np.ndarray
    alpha: np.ndarray
    prediction: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the demo")
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained MetaDCSeg model")
    args = parser.parse_args()
    figure = draw(read_cases(args.folder, args.model))
    (args.folder / "report.png").write_bytes(png_bytes(figure, dpi=110))


def read_cases(folder: Path, model: Path) -> list[Shown]:
    """The cases whose images lie in FOLDER/shown/images."""
    from nnunetv2_metadcseg.label_audit_predict import TrainedModel

    raw = folder / "nnUNet_raw"
    manifest = json.loads((raw / NOISY / "noise_manifest.json").read_text())["cases"]
    trained = TrainedModel(model, folder / "nnUNet_preprocessed" / NOISY, [0], mirroring=False, maps="learned")
    shown = []
    for path in sorted((folder / "shown" / "images").iterdir()):
        case = path.name.removesuffix("_0000.nii.gz")
        image = sitk.ReadImage(str(path))
        label = f"{case}.nii.gz"
        shown.append(
            Shown(
                title=f"{case}\n{manifest[case]['noise']}, label Dice {manifest[case]['label_dice']['achieved']:.2f}",
                spacing=image.GetSpacing()[::-1],
                image=sitk.GetArrayFromImage(image),
                clean=read_array(raw / CLEAN / "labelsTr" / label),
                given=read_array(raw / NOISY / "labelsTr" / label),
                alpha=1 - trained.predict(case).learned,
                prediction=read_array(folder / "shown" / "predictions" / label),
            )
        )
    return shown


def read_array(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def draw(cases: list[Shown]) -> Figure:
    """One row per case, through the slice where clean and given label differ most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(COLUMNS), 2.5 * len(cases) + 0.6), layout="constrained")
    grid = figure.subplots(len(cases), len(COLUMNS), squeeze=False)
    for row, case in zip(grid, cases, strict=True):
        weights = draw_row(row, case)
    for axes, title in zip(grid[0], COLUMNS, strict=True):
        axes.set_title(title, fontsize=10)
    bar = figure.colorbar(weights, ax=grid[:, 3], location="bottom", shrink=0.9, pad=0.02, aspect=30)
    bar.set_label("alpha: 1 = believe the label, 0 = believe the teacher", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def draw_row(row: np.ndarray, case: Shown):
    """Fills the five panels of one case; returns the panel of weights, for the colour bar."""
    plane = fullest_plane(case.clean != case.given, case.spacing)
    window = tuple(slice(0, length) for length in plane.cut(case.image).shape)
    draw_image(row[0], plane.cut(case.image), plane.aspect)
    row[0].set_ylabel(case.title, fontsize=9)
    for axes, label in ((row[1], case.clean), (row[2], case.given), (row[4], case.prediction)):
        draw_overlay(axes, plane, case.image, label, window=window)
    weights = row[3].imshow(plane.cut(case.alpha), cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    row[3].set_aspect(plane.aspect)
    row[3].set_xticks([])
    row[3].set_yticks([])
    return weights


def draw_image(axes: Axes, image: np.ndarray, aspect: float) -> None:
    low, high = np.percentile(image, [0.5, 99.5])
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect=aspect)
    axes.set_xticks([])
    axes.set_yticks([])


if __name__ == "__main__":
    main()
