"""Distances, boxes and sizes of label maps in mm. Arrays are (z, y, x) or (y, x), spacing in the same order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

Box = tuple[slice, ...]

# A voxel surface is longer than the smooth surface it stands for: 3/2 on a sphere, 4/pi on a disc.
_VOXEL_SURFACE_EXCESS = {2: 4 / math.pi, 3: 1.5}
_SURFACE = 0.25  # voxels from the centre of the nearest voxel of the other side to the surface
_SUBVOXEL_SIGMA = 0.7  # finest voxel edges; just enough to tell corners from faces


def bounding_box(mask: np.ndarray) -> Box | None:
    """Smallest box that holds every true voxel of `mask`, or None if there is none."""
    ranges = []
    for axis in range(mask.ndim):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if hits.size == 0:
            return None
        ranges.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(ranges)


def within(box: Box, outer: Box) -> Box:
    """Where `box` lies in the part of an image that is cropped to `outer`, which holds it."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, outer, strict=True))


def grow_box(box: Box, shape: Sequence[int], spacing: Sequence[float], margin: float) -> Box:
    """`box` enlarged by `margin` mm and one voxel on every side, cut at the image border."""
    grown = []
    for edge, size, step in zip(box, shape, spacing, strict=True):
        extra = 1 + math.ceil(margin / step)
        grown.append(slice(max(0, edge.start - extra), min(size, edge.stop + extra)))
    return tuple(grown)


def label_boxes(
    label: np.ndarray, values: Sequence[int], spacing: Sequence[float], margin: float
) -> Iterator[tuple[int, Box, np.ndarray]]:
    """Each of `values` that occurs in `label`, with its box grown by `margin` mm and its mask in that box."""
    for value in values:
        mask = label == value
        box = bounding_box(mask)
        if box is not None:
            box = grow_box(box, label.shape, spacing, margin)
            yield value, box, mask[box]


def signed_distance(mask: np.ndarray, spacing: Sequence[float], side: str = "both") -> np.ndarray:
    """Signed distance of every voxel centre to the surface of `mask`, in mm, positive inside; float32.

    Taken from the distance to the nearest voxel of the other side, less a quarter of a voxel in that direction: half
    a voxel would be right for surfaces along the grid, about none for surfaces across it, and a quarter is within a
    quarter of both. The image border is no surface. A little smoothing (never across the surface) orders the voxels
    of one shell, corners first, so that a threshold moves through them gradually instead of a whole voxel layer at a
    time. An empty mask is -inf everywhere, a full one +inf.

    Args:
        side: 'inside' or 'outside' when only those values are needed, which takes half the time; the other side then
        holds
            a constant of the right sign.

    Distances: Maurer, Qi, Raghavan 2003, as implemented in SimpleITK.
    """
    from scipy.ndimage import gaussian_filter

    if not mask.any():
        return np.full(mask.shape, -np.inf, dtype=np.float32)
    if mask.all():
        return np.full(mask.shape, np.inf, dtype=np.float32)
    first_shell = np.float32((1 - _SURFACE) * min(spacing))
    inside = _distance_to(~mask, spacing) if side != "outside" else first_shell
    outside = _distance_to(mask, spacing) if side != "inside" else first_shell
    distance = np.where(mask, inside, -outside)
    # Equal in mm along all axes: in voxels, slices some mm apart would be mixed, and thin structures lose their depth.
    sigma = [_SUBVOXEL_SIGMA * (min(spacing) / step) for step in spacing]
    smooth = gaussian_filter(distance, sigma, truncate=2.0, mode="nearest")
    distance /= 4
    return np.where(mask, np.maximum(smooth, distance), np.minimum(smooth, distance))


def _distance_to(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance in mm from voxels outside `mask` to its surface."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing([float(s) for s in reversed(spacing)])
    distance = sitk.GetArrayFromImage(
        sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    )
    if len(set(spacing)) == 1:
        distance -= np.float32(_SURFACE * spacing[0])
        return distance
    # The voxel's extent towards the surface, from the direction of the gradient (a unit vector of a distance map).
    extent = np.zeros_like(distance)
    for axis, step in enumerate(spacing):
        if distance.shape[axis] > 1:
            extent += (np.gradient(distance, np.float32(step), axis=axis) * np.float32(step)) ** 2
    np.sqrt(extent, out=extent)
    np.clip(extent, min(spacing), max(spacing), out=extent)
    # Not beyond what the first shell leaves, so that a voxel outside stays outside.
    distance -= np.minimum(np.float32(_SURFACE) * extent, distance / 2)
    return distance


def smooth_field(
    rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float], length: float, part: Box | None = None
) -> np.ndarray:
    """Smooth random field of zero mean and unit variance at every voxel; float32.

    Normal values on a grid of `length` mm (never finer than the voxels), joined by cubic B-splines along one axis
    after the other. Sums are elementwise, not matrix products, whose rounding would depend on the number of threads.

    Args:
        part: box of the field to return, all of it if not given; what is drawn for a voxel does not depend on it.
    """
    length = max(length, min(spacing))
    knots = [math.ceil(size * step / length) + 4 for size, step in zip(shape, spacing, strict=True)]
    field = rng.standard_normal(knots, dtype=np.float32)
    # The grid starts anywhere within a cell, so that knots do not always lie on the same voxels.
    starts = rng.uniform(size=len(knots))
    part = part or tuple(slice(0, size) for size in shape)
    positions = [
        start + np.arange(edge.start, edge.stop) * step / length
        for start, edge, step in zip(starts, part, spacing, strict=True)
    ]
    field = field[tuple(slice(int(along[0]), int(along[-1]) + 4) for along in positions)]
    for axis, along in enumerate(positions):
        field = _spline(field, axis, along - int(along[0]))
    return field


def _spline(values: np.ndarray, axis: int, positions: np.ndarray) -> np.ndarray:
    """Cubic B-spline through random `values` along one axis, at `positions` in knots, scaled to keep unit variance."""
    first = np.floor(positions).astype(int)
    t = positions - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3])
    weights = (weights / np.sqrt((weights**2).sum(axis=0))).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = positions.size
    return sum(values.take(first + i, axis=axis) * weights[i].reshape(shape) for i in range(4))


Claim = tuple[Box, np.ndarray]  # box of the voxels that a label claims, and their mask within it


def claim(mask: np.ndarray) -> Claim:
    """The true voxels of `mask`, of which there are some, with the memory of their box only."""
    box = bounding_box(mask)
    return box, mask[box].copy()


def nearest_claim(claims: dict[int, Claim], label: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Label map in which every voxel belongs to the label that claims it; of several, to the nearest in `label`.

    Args:
        claims: for each label value what it claims, as `claim` makes it.
        label: where the labels were before, all of those that claim, which decides who is nearest.
    """
    result = np.zeros_like(label)
    count = np.zeros(label.shape, dtype=np.uint16)
    for box, mask in claims.values():
        count[box] += mask
    nearest = np.full(label.shape, -np.inf, dtype=np.float32)
    for value, (box, mask) in claims.items():
        contested = mask & (count[box] > 1)
        part = result[box]
        part[mask & ~contested] = value
        if contested.any():
            distance = _distance_before(label == value, box, spacing)
            wins = contested & ((distance > nearest[box]) | (part == 0))
            part[wins] = value
            nearest[box][wins] = distance[wins]
    return result


def _distance_before(before: np.ndarray, box: Box, spacing: Sequence[float]) -> np.ndarray:
    """Signed distance to `before` in `box`, which needs a crop that holds both."""
    own = bounding_box(before)
    both = [slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box, own, strict=True)]
    crop = grow_box(tuple(both), before.shape, spacing, 0.0)
    distance = signed_distance(before[crop], spacing)
    return distance[within(box, crop)]


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected components (corners connect): map numbered from 1 in scan order, and their number."""
    from scipy.ndimage import generate_binary_structure, label

    return label(mask, structure=generate_binary_structure(mask.ndim, mask.ndim))


def slice_axis(spacing: Sequence[float]) -> int:
    """The axis along which slices were annotated: the one with the largest spacing; the first of equal ones."""
    return int(np.argmax(spacing))


def typical_radius(label: np.ndarray, labels: Sequence[int], spacing: Sequence[float]) -> float:
    """Radius in mm of the ball with the volume-to-surface ratio of the coarsest of `labels`; 0 if none is there.

    For convex shapes it is at least the radius of the largest ball inside; unlike a radius from volume alone, it does
    not grow with the number of objects that share one label.
    """
    return max((_radius_of(label == value, spacing) for value in labels), default=0.0)


def _radius_of(mask: np.ndarray, spacing: Sequence[float]) -> float:
    box = bounding_box(mask)
    if box is None:
        return 0.0
    mask = np.pad(mask[box], 1)
    voxel = math.prod(spacing)
    surface = sum(np.count_nonzero(np.diff(mask, axis=axis)) * voxel / spacing[axis] for axis in range(mask.ndim))
    return float(mask.ndim * np.count_nonzero(mask) * voxel * _VOXEL_SURFACE_EXCESS[mask.ndim] / surface)
