"""`noise_tools preview`: one PNG with several noise types side by side on the same slice of one case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    import numpy as np
    from matplotlib.figure import Figure

    from noise_tools.overlay import Plane
    from noise_tools.recipe import Component

_COLUMNS = 5  # pictures in a row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command."""
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID|NAME", help="data set in nnUNet_raw")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FILE.png", help="picture to write")
    parser.add_argument("--case", metavar="CASE", help="default: the first case")
    parser.add_argument("--noise", nargs="+", metavar="TYPE", help="noise types, A+B applies both; default: every type")
    parser.add_argument("--param", nargs="+", default=[], metavar="TYPE.NAME=VALUE", help="e.g. erosion.radius=1.5:3")
    strength = parser.add_mutually_exclusive_group()
    strength.add_argument(
        "--label-dice",
        type=float,
        default=0.7,
        metavar="D",
        help="as strong as needed for this Dice with the clean label, as near as a type comes (default: %(default)s)",
    )
    strength.add_argument("--severity", type=float, metavar="S", help="instead: this strength in [0, 1] for every type")
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
    from noise_tools.recipe import for_nested_labels, parse_components

    _check(args)
    dataset = open_dataset(args.dataset)
    names = args.noise or [name for name in NAMES if _fits(name, dataset)]
    components = parse_components(names, args.param)
    if dataset.labels.nested:
        components = for_nested_labels(components)
    case = args.case or next(iter(dataset.cases))
    if case not in dataset.cases:
        raise NoiseToolsError(f"{dataset.name} has no case {case}; its cases are like {next(iter(dataset.cases))}.")
    figure = preview(dataset, case, components, args.label_dice, args.severity, args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = args.output.with_name(f".{args.output.name}.unfinished")
    unfinished.write_bytes(png_bytes(figure, 100))
    os.replace(unfinished, args.output)
    print(f"Wrote {args.output}")


def preview(
    dataset: Any,
    case: str,
    components: Sequence[Component],
    label_dice: float = 0.7,
    severity: float | None = None,
    seed: int = 0,
) -> Figure:
    """Matplotlib figure: the clean label, then one picture per component with its Dice.

    Args:
        dataset: a `noise_tools.raw_dataset.RawDataset`.
        case: identifier of the case.
        components: noise to show, see `noise_tools.recipe`.
        label_dice: mean Dice over the labels that the noisy label should have, found by bisection on the strength.
        severity: strength in [0, 1] to use instead.
        seed: of all randomness.

    Raises:
        NoiseToolsError: a case without foreground, or noise that does not fit the data set.
    """
    from noise_tools.errors import NoiseToolsError
    from noise_tools.label_folders import read_image
    from noise_tools.overlay import draw_overlay, fullest_plane, window_around
    from noise_tools.raw_dataset import read_label
    from noise_tools.recipe import check

    check(components, dataset.labels.foreground)
    label, spacing = read_label(dataset, dataset.cases[case])
    image = read_image(dataset.cases[case].images[0], dataset.json.get("overwrite_image_reader_writer"))
    clean = _without_ignored(label, dataset)
    if not clean.any():
        raise NoiseToolsError(f"Case {case} has no foreground to corrupt; choose another with --case.")
    plane = fullest_plane(clean != 0, spacing)
    window = window_around(plane.cut(clean) != 0)
    figure, axes = _canvas(len(components) + 1, _height(plane, window))
    draw_overlay(axes[0], plane, image, clean, window=window)
    axes[0].set_title(f"{case}\n{plane.title or 'clean'}", fontsize=9)
    for ax, component in zip(axes[1:], components, strict=False):
        noisy, dice = _noisy(dataset, case, component, label, spacing, label_dice, severity, seed)
        noisy = _without_ignored(noisy, dataset)
        shown, window = _view(component.name, clean, noisy, spacing)
        draw_overlay(ax, shown, image, clean, noisy, window)
        elsewhere = f", {shown.title}" if shown.title != plane.title else ""
        ax.set_title(f"{component.name}\nDice {dice:.2f}{elsewhere}", fontsize=9)
    return figure


def _view(name: str, clean: np.ndarray, noisy: np.ndarray, spacing: Sequence[float]) -> tuple[Plane, tuple[slice, ...]]:
    """Slice and part of it in which to show a noise: those of the clean label, unless nothing of the noise is there."""
    import numpy as np

    from noise_tools.overlay import fullest_plane, window_around

    plane = fullest_plane(clean != 0, spacing)
    if name.startswith("slice_") and plane.axis is not None:
        # Within its own plane, noise of whole slices would not show.
        plane = fullest_plane(clean != 0, spacing, axis=1 if plane.axis == 0 else 0)
    window = window_around(plane.cut(clean) != 0)
    if np.array_equal(plane.cut(noisy)[window], plane.cut(clean)[window]):
        plane = fullest_plane(noisy != clean, spacing, plane.axis)
        window = window_around((plane.cut(noisy) != 0) | (plane.cut(clean) != 0))
    return plane, window


def _fits(name: str, dataset: Any) -> bool:
    """Whether a noise type can work on this data set: swapping labels, say, takes two of them."""
    from noise_tools import noise
    from noise_tools.errors import NoiseToolsError

    try:
        noise.load(name)(dataset.labels.foreground)
    except NoiseToolsError:
        return False
    return True


def _height(plane: Plane, window: tuple[slice, ...]) -> float:
    """Height of a picture relative to its width, within bounds."""
    rows, columns = (edge.stop - edge.start for edge in window)
    return min(1.3, max(0.4, rows * plane.aspect / columns))


def _canvas(count: int, height: float) -> tuple[Figure, np.ndarray]:
    """Figure with a legend and at least `count` empty axes, of this height relative to their width."""
    from matplotlib.figure import Figure

    from noise_tools.overlay import legend_handles

    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.4 * columns, (2.4 * height + 0.5) * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_axis_off()
    handles = legend_handles("clean label", "noisy label")
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure, axes


def _without_ignored(label: np.ndarray, dataset: Any) -> np.ndarray:
    import numpy as np

    return label if dataset.labels.ignore is None else np.where(label == dataset.labels.ignore, 0, label)


def _noisy(
    dataset: Any,
    case: str,
    component: Component,
    label: np.ndarray,
    spacing: Sequence[float],
    label_dice: float,
    severity: float | None,
    seed: int,
) -> tuple[np.ndarray, float]:
    """Noisy label and its mean Dice over the labels, with the random numbers `corrupt` would use."""
    import numpy as np

    from noise_tools.plan import generator
    from noise_tools.severity import Trial, find_severity, mean_label_dice

    regions = list(dataset.labels.regions.values())
    noises = [step.build(dataset.labels.foreground) for step in component.steps]

    def make(strength: float) -> np.ndarray:
        current = label
        for position, noise in enumerate(noises):
            rng = generator(seed, "case", case, str(position))
            current = noise.apply(current, spacing, noise.sample(rng, current, spacing, strength))
        return current

    def attempt(strength: float) -> Trial:
        noisy = make(strength)
        changed = not np.array_equal(noisy, label)
        kept = bool(np.isin(noisy, dataset.labels.foreground).any())  # without --allow-empty `corrupt` takes no other
        return Trial(mean_label_dice(label, noisy, regions), kept and (changed or label_dice == 1), kept)

    noisy = make(find_severity(attempt, label_dice).severity if severity is None else severity)
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
