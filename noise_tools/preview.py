"""`noise_tools preview`: one PNG with several noise types side by side on the same slice of one case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    import numpy as np
    from matplotlib.figure import Figure

    from noise_tools.recipe import Component

_COLUMNS = 5  # pictures in a row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command."""
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID|NAME", help="data set in nnUNet_raw")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FILE.png", help="picture to write")
    parser.add_argument("--case", metavar="CASE", help="default: the first case")
    parser.add_argument("--noise", nargs="+", metavar="TYPE", help="noise types, A+B applies both; default: every type")
    parser.add_argument("--param", nargs="+", default=[], metavar="TYPE.NAME=VALUE", help="e.g. erosion.radius=1.5:3")
    parser.add_argument(
        "--severity", type=float, default=0.5, metavar="S", help="strength in [0, 1] (default: %(default)s)"
    )
    parser.add_argument(
        "--label-dice", type=float, metavar="D", help="instead: as strong as needed for this Dice with the clean label"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same picture (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture if it exists")


def run(args: argparse.Namespace) -> None:
    """Make the picture.

    Raises:
        NoiseToolsError: unknown data set, case or noise type, or a value outside its range.
    """
    import os

    from noise_tools.errors import NoiseToolsError
    from noise_tools.noise import NAMES
    from noise_tools.overlay import png_bytes
    from noise_tools.raw_dataset import open_dataset
    from noise_tools.recipe import parse_components

    _check(args)
    components = parse_components(args.noise or NAMES, args.param)
    dataset = open_dataset(args.dataset)
    case = args.case or next(iter(dataset.cases))
    if case not in dataset.cases:
        raise NoiseToolsError(f"{dataset.name} has no case {case}; its cases are like {next(iter(dataset.cases))}.")
    figure = preview(dataset, case, components, args.severity, args.label_dice, args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = args.output.with_name(f".{args.output.name}.unfinished")
    unfinished.write_bytes(png_bytes(figure, 100))
    os.replace(unfinished, args.output)
    print(f"Wrote {args.output}")


def preview(
    dataset: Any,
    case: str,
    components: Sequence[Component],
    severity: float = 0.5,
    label_dice: float | None = None,
    seed: int = 0,
) -> Figure:
    """Matplotlib figure: the clean label, then one picture per component with its Dice.

    Args:
        dataset: a `noise_tools.raw_dataset.RawDataset`.
        case: identifier of the case.
        components: noise to show, see `noise_tools.recipe`.
        severity: strength in [0, 1].
        label_dice: strength found by bisection instead, as `noise_tools corrupt --label-dice` does.
        seed: of all randomness.
    """
    import numpy as np
    from matplotlib.figure import Figure

    from noise_tools.label_folders import read_image
    from noise_tools.overlay import draw_overlay, fullest_plane, legend_handles
    from noise_tools.raw_dataset import read_label

    label, spacing = read_label(dataset, dataset.cases[case])
    image = read_image(dataset.cases[case].images[0], dataset.json.get("overwrite_image_reader_writer"))
    foreground = np.isin(label, dataset.labels.foreground)
    rows = -(-(len(components) + 1) // _COLUMNS)
    columns = min(_COLUMNS, len(components) + 1)
    figure = Figure(figsize=(2.5 * columns, 2.75 * rows + 0.35), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    plane = fullest_plane(foreground, spacing)
    draw_overlay(grid[0], plane, image, np.where(foreground, label, 0))
    grid[0].set_title(f"{case}\n{plane.title or 'clean'}", fontsize=9)
    for axes, component in zip(grid[1:], components, strict=False):
        noisy, dice = _noisy(dataset, case, component, label, spacing, severity, label_dice, seed)
        shown = plane if not component.name.startswith("slice_") else fullest_plane(foreground, spacing, _across(plane))
        draw_overlay(axes, shown, image, _foreground(label, dataset), _foreground(noisy, dataset))
        axes.set_title(f"{component.name}\nDice {dice:.2f}", fontsize=9)
    for axes in grid[len(components) + 1 :]:
        axes.set_axis_off()
    figure.legend(
        handles=legend_handles("clean label", "noisy label"),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    return figure


def _across(plane: Any) -> int | None:
    """Axis to cut across so that whole slices show as lines: a picture of the slice itself would hide their noise."""
    return None if plane.axis is None else (1 if plane.axis == 0 else 0)


def _foreground(label: np.ndarray, dataset: Any) -> np.ndarray:
    import numpy as np

    return np.where(label == dataset.labels.ignore, 0, label) if dataset.labels.ignore is not None else label


def _noisy(
    dataset: Any,
    case: str,
    component: Component,
    label: np.ndarray,
    spacing: Sequence[float],
    severity: float,
    label_dice: float | None,
    seed: int,
) -> tuple[np.ndarray, float]:
    """Noisy label and its mean Dice over the labels, with the random numbers `corrupt` would use."""
    from noise_tools.corrupt import generator
    from noise_tools.severity import find_severity, mean_label_dice

    regions = list(dataset.labels.regions.values())
    noises = [step.build(dataset.labels.foreground) for step in component.steps]

    def make(strength: float) -> np.ndarray:
        current = label
        for position, noise in enumerate(noises):
            rng = generator(seed, "case", case, str(position))
            current = noise.apply(current, spacing, noise.sample(rng, current, spacing, strength))
        return current

    if label_dice is not None:
        severity = find_severity(lambda s: mean_label_dice(label, make(s), regions), label_dice).severity
    noisy = make(severity)
    return noisy, mean_label_dice(label, noisy, regions)


def _check(args: argparse.Namespace) -> None:
    from noise_tools.errors import NoiseToolsError

    if args.output.suffix.lower() != ".png":
        raise NoiseToolsError(f"-o is {args.output}; expected a file name that ends in .png.")
    if args.output.exists() and not args.overwrite:
        raise NoiseToolsError(f"{args.output} exists already; choose another name, or pass --overwrite to replace it.")
    for name in ("severity", "label_dice"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise NoiseToolsError(f"--{name.replace('_', '-')} is {value:g}; give a number in [0, 1].")
    if args.seed < 0:
        raise NoiseToolsError(f"--seed is {args.seed}; give a whole number from 0.")
