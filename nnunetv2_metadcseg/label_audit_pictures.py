"""Label audit, pictures: slices of a case with given and proposed contours and the suspicion map, as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

GIVEN_COLOUR, PROPOSED_COLOUR = "#ffd23f", "#35d0ff"
SHOW_FROM = 0.2  # suspicion below this is left transparent
MARGIN = 12  # voxels around what is shown


def slice_axis(shape: Sequence[int], spacing: Sequence[float]) -> int:
    """Axis to cut along: the only one of length 1, else the one with the widest spacing (the first of equal ones)."""
    return int(np.argmax([np.inf if n == 1 else s for s, n in zip(spacing, shape, strict=True)]))


def worst_planes(suspicion: np.ndarray, axis: int, count: int = 3) -> list[int]:
    """Up to `count` planes with the most suspicion, in order; the next best are at least a tenth of the case away."""
    weight = suspicion.sum(tuple(i for i in range(suspicion.ndim) if i != axis), dtype=np.float64)
    apart = max(1, len(weight) // 10)
    chosen: list[int] = []
    for plane in np.argsort(-weight, kind="stable"):
        if len(chosen) == count or (chosen and weight[plane] == 0):
            break
        if all(abs(plane - other) >= apart for other in chosen):
            chosen.append(int(plane))
    return sorted(chosen)


def view(masks: Sequence[np.ndarray], shape: Sequence[int]) -> tuple[slice, ...]:
    """The box (2D) around all masks with a margin; everything if they are empty."""
    union = np.logical_or.reduce(masks)
    if not union.any():
        return tuple(slice(0, n) for n in shape)
    found = np.nonzero(union)
    return tuple(
        slice(max(0, int(i.min()) - MARGIN), min(n, int(i.max()) + MARGIN + 1))
        for i, n in zip(found, shape, strict=True)
    )


def draw_case(
    image: np.ndarray,
    given: np.ndarray,
    proposed: np.ndarray,
    suspicion: np.ndarray,
    spacing: Sequence[float],
    count: int = 3,
) -> bytes:
    """A PNG: contours above, the suspicion map below, one column per plane; a single plane has them side by side.

    Args:
        image, given, proposed: (*S), three axes. suspicion: (*S) in [0, 1]. spacing: per axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axis = slice_axis(image.shape, spacing)
    planes = worst_planes(suspicion, axis, count)
    others = [s for i, s in enumerate(spacing) if i != axis]
    union = [np.moveaxis(m, axis, 0)[planes].any(0) for m in (given > 0, proposed > 0, suspicion >= 0.5)]
    box = view(union, union[0].shape)
    low, high = np.percentile(image, (1, 99))
    height, width = ((b.stop - b.start) * s for b, s in zip(box, others, strict=True))
    single = len(planes) == 1
    wide = 5.0 if single else 3.0  # inches of a panel
    tall = min(1.2 * wide, max(0.5 * wide, wide * height / max(width, 1e-6)))
    size = (2 * wide, tall) if single else (wide * len(planes), 2 * tall)
    figure = Figure(figsize=size, layout="compressed", facecolor="black")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, squeeze=False).T if single else figure.subplots(2, len(planes), squeeze=False)
    for column, plane in enumerate(planes):
        cut = [np.take(a, plane, axis)[box] for a in (image, given, proposed, suspicion)]
        for row in (0, 1):
            _panel(panels[row, column], *cut, window=(low, high), aspect=others[0] / others[1], overlay=row == 1)
        panels[0, column].set_title(f"plane {plane}" if image.shape[axis] > 1 else "", fontsize=8, color="white")
    stream = io.BytesIO()
    figure.savefig(stream, dpi=90, format="png")
    return stream.getvalue()


def _panel(panel, image, given, proposed, suspicion, window, aspect, overlay) -> None:
    panel.imshow(image, cmap="gray", vmin=window[0], vmax=max(window[1], window[0] + 1e-6), aspect=aspect)
    if overlay:
        shown = np.ma.masked_less(suspicion, SHOW_FROM)
        panel.imshow(shown, cmap="inferno", vmin=0, vmax=1, alpha=0.75, aspect=aspect, interpolation="nearest")
    for mask, colour, style in ((given, GIVEN_COLOUR, "solid"), (proposed, PROPOSED_COLOUR, "dashed")):
        if min(mask.shape) < 2:
            continue
        for value in np.unique(mask):
            inside = (mask == value).astype(float)
            if value > 0 and inside.min() < 1:
                panel.contour(inside, [0.5], colors=[colour], linewidths=1.1, linestyles=style)
    panel.axis("off")


def data_url(png: bytes) -> str:
    """For an <img> inside the page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
