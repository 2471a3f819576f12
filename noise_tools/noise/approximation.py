"""Approximation: the annotator drew a coarse polygon, a box or an ellipse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from noise_tools.geometry import claim, components, grow_box, nearest_claim, signed_distance, slice_axis, within
from noise_tools.noise.base import LENGTHS, Noise, Parameter, Params


class Approximation(Noise):
    """Replaces structures by simpler shapes; of overlapping shapes the nearest label wins.

    `polygon`: in each slice, the contour of every label is thinned out until no point left out lies farther than
    `tolerance` mm from the polygon (Douglas-Peucker); slices run along the axis with the largest spacing. `box` and
    `ellipse`: every connected component is blended, by `amount`, into its bounding box or the ellipse (ellipsoid) in
    that box.
    """

    name = "approximation"
    summary = "coarse polygons per slice, or boxes or ellipses"
    source = "COCO-N approximation noise (Kimhi, Grad et al., arXiv 2406.10891); ellipses as in L2B (arXiv 2202.04291)"
    parameters = (
        Parameter("shape", "polygon", "", "what is drawn instead", choices=("polygon", "box", "ellipse")),
        Parameter("tolerance", (0.0, 2.0), "mm", "polygon: allowed distance", True, True, (), LENGTHS),
        Parameter("amount", (0.0, 1.0), "share", "box, ellipse: 0 is the structure, 1 the shape", True, bounds=(0, 1)),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        shape = self._choice("shape")
        strength = "tolerance" if shape == "polygon" else "amount"
        return self._start(shape=shape, **{strength: self._strength(strength, label, spacing, severity)})

    @classmethod
    def _margin(cls, spacing: Sequence[float], params: Params) -> float:
        return params.get("tolerance", 0.0)

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        polygon = params["shape"] == "polygon"
        if params["tolerance" if polygon else "amount"] <= 0:
            return label
        claims = {}
        for value in params["labels"]:
            mask = label == value
            if mask.any():
                drawn = _polygons(mask, spacing, params["tolerance"]) if polygon else _shapes(mask, spacing, params)
                if drawn.any():
                    claims[value] = claim(drawn)
        return nearest_claim(claims, label, spacing)


def _polygons(mask: np.ndarray, spacing: Sequence[float], tolerance: float) -> np.ndarray:
    """Every slice of `mask` drawn with simplified contours; holes stay holes."""
    if mask.ndim == 2:
        return _simplified(mask, spacing, tolerance)
    axis = slice_axis(spacing)
    plane = [step for i, step in enumerate(spacing) if i != axis]
    result = np.zeros_like(mask)
    for source, target in zip(np.moveaxis(mask, axis, 0), np.moveaxis(result, axis, 0), strict=True):
        if source.any():
            target[...] = _simplified(source, plane, tolerance)
    return result


def _simplified(mask: np.ndarray, spacing: Sequence[float], tolerance: float) -> np.ndarray:
    from skimage.draw import polygon2mask
    from skimage.measure import approximate_polygon, find_contours

    result = np.zeros_like(mask)
    for contour in find_contours(np.pad(mask, 1).astype(float), 0.5):
        thinned = approximate_polygon((contour - 1) * spacing, tolerance) / spacing
        if len(thinned) > 3:  # first and last point are equal
            result ^= polygon2mask(mask.shape, thinned)
    return result


def _shapes(mask: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
    result = np.zeros_like(mask)
    for box, part in _parts(mask):
        shape = np.ones(part.shape, dtype=bool) if params["shape"] == "box" else _ellipse(part.shape)
        outer = grow_box(box, mask.shape, spacing, 0.0)
        place = within(box, outer)
        canvas = [np.zeros([edge.stop - edge.start for edge in outer], dtype=bool) for _ in range(2)]
        canvas[0][place], canvas[1][place] = part, shape
        structure, simple = (np.clip(signed_distance(c, spacing), -1e6, 1e6) for c in canvas)
        result[outer] |= (1 - params["amount"]) * structure + params["amount"] * simple > 0
    return result


def _parts(mask: np.ndarray) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Bounding box and mask within it of every connected component."""
    from scipy.ndimage import find_objects

    numbered, _ = components(mask)
    for number, box in enumerate(find_objects(numbered), start=1):
        yield box, numbered[box] == number


def _ellipse(shape: Sequence[int]) -> np.ndarray:
    """Ellipse (ellipsoid) that fits an array of this shape."""
    axes = np.ogrid[tuple(slice(0, size) for size in shape)]
    return sum((2 * (axis + 0.5) / size - 1) ** 2 for axis, size in zip(axes, shape, strict=True)) <= 1
