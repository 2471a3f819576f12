"""Pictures of two label maps over one image slice, exact to the voxel. Uses Matplotlib without its global state."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from noise_tools.geometry import bounding_box

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIRST_COLOR, SECOND_COLOR = "#12c2d6", "#ff7a00"
"""Clean (or first rater) and noisy (or second rater): told apart on grey images and by colour-blind readers."""

_MARGIN = 0.35  # share of the structure's extent shown around it
_MIN_MARGIN = 5  # voxels


class Plane:
    """One slice through arrays of one case: (z, y, x) cut across `axis` at `index`, or (y, x) as it is."""

    def __init__(self, spacing: Sequence[float], axis: int | None = None, index: int = 0) -> None:
        self.axis, self.index = axis, index
        in_plane = [s for a, s in enumerate(spacing) if a != axis]
        self.aspect = in_plane[0] / in_plane[1]

    @property
    def title(self) -> str:
        return "" if self.axis is None else f"{'zyx'[self.axis]} = {self.index}"

    def cut(self, array: np.ndarray) -> np.ndarray:
        return array if self.axis is None else array.take(self.index, axis=self.axis)


def fullest_plane(weight: np.ndarray, spacing: Sequence[float], axis: int | None = None) -> Plane:
    """The slice with the largest sum of `weight` (voxels that differ, say); across the coarsest axis by default."""
    if weight.ndim == 2:
        return Plane(spacing)
    axis = int(np.argmax(spacing)) if axis is None else axis
    others = tuple(a for a in range(3) if a != axis)
    sums = weight.sum(axis=others, dtype=np.int64)
    best = np.flatnonzero(sums == sums.max())
    return Plane(spacing, axis, int(best[len(best) // 2]))


def draw_overlay(
    axes: Axes,
    plane: Plane,
    image: np.ndarray | None,
    first: np.ndarray,
    second: np.ndarray | None = None,
    window: tuple[slice, ...] | None = None,
) -> None:
    """Draw one slice: the image in grey, the borders of every label, voxels that differ tinted; cut to the structures.

    Args:
        axes: where to draw.
        plane: which slice.
        image: image of the case, or None for a plain background.
        first: clean label map, of the image's shape.
        second: noisy label map; None draws the first one alone.
        window: part of the slice to show, see `window_around`; by default around both label maps.
    """
    first_slice = plane.cut(first)
    second_slice = first_slice if second is None else plane.cut(second)
    box = window or window_around((first_slice != 0) | (second_slice != 0))
    first_slice, second_slice = first_slice[box], second_slice[box]
    if image is None:
        background, limits = np.full(first_slice.shape, 0.25), (0.0, 1.0)
    else:
        background = plane.cut(image)[box]
        limits = _grey_window(background)
    axes.imshow(background, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest", aspect=plane.aspect)
    if second is not None:
        _tint(axes, first_slice != second_slice, plane.aspect)
    width = 2.2 * min(1.0, (60 / max(first_slice.shape)) ** 0.4)
    _draw_borders(axes, first_slice, FIRST_COLOR, width)
    if second is not None:
        _draw_borders(axes, second_slice, SECOND_COLOR, max(width / 2, 0.9))
    if plane.axis in (1, 2):  # the first axis, z, points up
        axes.invert_yaxis()
    axes.set_axis_off()


def window_around(mask: np.ndarray) -> tuple[slice, ...]:
    """The part of a slice to show: the structures and some surroundings, at least half as high as wide."""
    box = bounding_box(mask)
    if box is None:
        return tuple(slice(0, n) for n in mask.shape)
    longest = max(edge.stop - edge.start for edge in box)
    window = []
    for edge, size in zip(box, mask.shape, strict=True):
        length = max(edge.stop - edge.start, longest // 2)
        half = length / 2 + max(_MIN_MARGIN, _MARGIN * length)
        center = (edge.start + edge.stop) / 2
        window.append(slice(max(0, int(center - half)), min(size, int(np.ceil(center + half)))))
    return tuple(window)


def legend_handles(first: str, second: str) -> list:
    """Handles for a legend of the two outlines."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=FIRST_COLOR, lw=2.6, label=first),
        Line2D([], [], color=SECOND_COLOR, lw=1.6, label=second),
    ]


def png_bytes(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as PNG of 256 colours, which is less than half the size; the same picture gives the same bytes."""
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.08)
    with Image.open(drawn) as image:
        reduced = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    reduced.save(small, format="png", optimize=True)
    return small.getvalue()


def png_base64(figure: Figure, dpi: int = 100) -> str:
    """The figure as a `data:` address for an HTML page without files beside it."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(figure, dpi)).decode("ascii")


def border_segments(labels: np.ndarray) -> np.ndarray:
    """Edges between voxels of different label in a slice, as segments [(x0, y0), (x1, y1)] in voxel units."""
    padded = np.pad(labels, 1)
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    vertical = np.stack([[columns - 0.5, rows - 0.5], [columns - 0.5, rows + 0.5]])
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    horizontal = np.stack([[columns - 0.5, rows - 0.5], [columns + 0.5, rows - 0.5]])
    return np.concatenate([vertical, horizontal], axis=2).transpose(2, 0, 1)


def _draw_borders(axes: Axes, labels: np.ndarray, color: str, width: float) -> None:
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(border_segments(labels), colors=color, linewidths=width, capstyle="round"))


def _tint(axes: Axes, mask: np.ndarray, aspect: float) -> None:
    from matplotlib.colors import to_rgba

    tint = np.zeros((*mask.shape, 4))
    tint[mask] = to_rgba(SECOND_COLOR, 0.22)
    axes.imshow(tint, interpolation="nearest", aspect=aspect)


def _grey_window(image: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(image, [0.5, 99.5])
    return float(low), float(high if high > low else low + 1)
