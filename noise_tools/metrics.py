"""How far two label maps lie apart: overlap, distances between surfaces in mm, volumes, connected components.

Everything works on NumPy label maps of any dimension (2D and 3D) and a voxel spacing in axis order.

Definitions
-----------
Surface: the voxels of a structure that touch its outside by a face; what lies beyond the image is outside. Distances
are taken between voxel centres, exactly, with `scipy.spatial.KDTree`. `hd95` is the larger of the two directed 95th
percentiles, `assd` the mean over all distances of both directions, `surface_dice` the share of the voxels of both
surfaces that lie within the tolerance of the other one (Metrics Reloaded, Maier-Hein et al., Nature Methods 2024; MONAI
computes the same and serves as the second opinion in the tests).

Empty structures
----------------
| reference | prediction | dice, iou, surface_dice | hd95, assd | volume_change |
|---|---|---|---|---|
| empty | empty | NaN: there is nothing to compare (as in nnU-Net's own evaluation) | NaN | NaN |
| some | empty | 0 | NaN: no distance exists | -1 |
| empty | some | 0 | NaN | NaN |

So a mean over cases must skip NaN; a row whose Dice is 0 and whose distance is NaN is a missed or an invented
structure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from noise_tools.geometry import bounding_box

LabelValue = int | tuple[int, ...]
"""One label, or the labels that form a region together (nnU-Net's region-based training)."""

METRICS = (
    "dice",
    "iou",
    "hd95",
    "assd",
    "surface_dice",
    "reference_volume",
    "prediction_volume",
    "volume_change",
    "components_gained",
    "components_lost",
)
"""Names of the values that `label_metrics` gives for each label."""


def label_metrics(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    labels: Mapping[str, LabelValue | Sequence[int]] | Iterable[LabelValue],
    *,
    ignore_label: int | None = None,
    tolerance: float = 1.0,
    distances: bool = True,
) -> dict[LabelValue | str, dict[str, float]]:
    """Compare two label maps, label by label.

    Args:
        reference: label map, any number of dimensions.
        prediction: label map of the same shape.
        spacing: size of a voxel along each array axis, in mm (for pictures: in pixels).
        labels: the labels to compare, as a sequence (`[1, 2, (1, 2)]`, a tuple being a region) or by name as in
            `dataset.json` (`{"background": 0, "tumour": 1, "whole": [1, 2]}`; "background" and "ignore" are skipped).
        ignore_label: voxels with this value in either map are left out of both; by default "ignore" of named labels.
        tolerance: how far apart two surfaces may lie and still agree, in mm (for `surface_dice`).
        distances: set to False to skip the costly values: hd95, assd and surface_dice are then NaN.

    Returns:
        For each label (its name where names were given) a dict with the keys of `METRICS`. Volumes in mm^3
        (in pixels^2 for pictures of spacing 1), `volume_change` relative to the reference. See the module's docstring
        for empty structures.

    Raises:
        ValueError: shapes differ, the spacing does not fit, or no label was given.
    """
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    _check(reference, prediction, spacing)
    if tolerance < 0:
        raise ValueError(f"the tolerance of surface_dice must be 0 mm or more, got {tolerance}")
    named = named_labels(labels)
    if not named:
        raise ValueError("no label to compare: give at least one label that is neither background nor ignore")
    if ignore_label is None and isinstance(labels, Mapping):
        ignore_label = labels.get("ignore")
    kept = None
    if ignore_label is not None:
        kept = (reference != ignore_label) & (prediction != ignore_label)
    result = {}
    for name, value in named.items():
        pair = MaskPair(_mask(reference, value, kept), _mask(prediction, value, kept), spacing)
        result[name] = pair.metrics(tolerance, distances=distances)
    return result


def named_labels(labels: Mapping[str, object] | Iterable[object]) -> dict[object, LabelValue]:
    """Bring labels into one form: {name or label: label value or tuple of values}, without background and ignore."""
    if isinstance(labels, Mapping):
        items = [(name, value) for name, value in labels.items() if name not in ("background", "ignore")]
    else:
        items = [(_plain(value), value) for value in labels]
    return {name: _plain(value) for name, value in items}


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Dice of two masks of the same shape: 2 |A and B| / (|A| + |B|). NaN if both are empty."""
    reference, prediction = _masks(reference, prediction)
    total = int(reference.sum()) + int(prediction.sum())
    return 2 * int((reference & prediction).sum()) / total if total else float("nan")


def iou(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Intersection over union of two masks of the same shape. NaN if both are empty."""
    reference, prediction = _masks(reference, prediction)
    union = int((reference | prediction).sum())
    return int((reference & prediction).sum()) / union if union else float("nan")


def hd95(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> float:
    """Larger of the two directed 95th percentiles of the distances between the masks' surfaces, in mm. NaN if empty."""
    return _pair(reference, prediction, spacing).hd95()


def assd(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> float:
    """Average symmetric surface distance (mean surface distance) of two masks, in mm. NaN if either is empty."""
    return _pair(reference, prediction, spacing).assd()


def surface_dice(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance: float = 1.0
) -> float:
    """Share of both surfaces within `tolerance` mm of the other one. 0 if one mask is empty, NaN if both are."""
    return _pair(reference, prediction, spacing).surface_dice(tolerance)


@dataclass
class MaskPair:
    """Two masks of one structure, cut to the box around both of them, which loses nothing and saves time."""

    reference: np.ndarray
    prediction: np.ndarray
    spacing: Sequence[float]

    def __post_init__(self) -> None:
        box = bounding_box(self.reference | self.prediction) or (slice(0, 0),) * self.reference.ndim
        self.reference, self.prediction = self.reference[box], self.prediction[box]
        self.sizes = int(self.reference.sum()), int(self.prediction.sum())

    def metrics(self, tolerance: float = 1.0, *, distances: bool = True) -> dict[str, float]:
        """Every value of `METRICS` for this structure."""
        voxel = float(np.prod(self.spacing))
        in_reference, in_prediction = self.sizes
        gained, lost = self.components_changed()
        nan = float("nan")
        return {
            "dice": dice(self.reference, self.prediction),
            "iou": iou(self.reference, self.prediction),
            "hd95": self.hd95() if distances else nan,
            "assd": self.assd() if distances else nan,
            "surface_dice": self.surface_dice(tolerance) if distances else nan,
            "reference_volume": in_reference * voxel,
            "prediction_volume": in_prediction * voxel,
            "volume_change": (in_prediction - in_reference) / in_reference if in_reference else nan,
            "components_gained": gained,
            "components_lost": lost,
        }

    @cached_property
    def surface_distances(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Distances in mm from the reference's surface to the prediction's and back; None if a mask is empty."""
        from scipy.spatial import KDTree

        if not all(self.sizes):
            return None
        points = [_surface_points(mask, self.spacing) for mask in (self.reference, self.prediction)]
        trees = [KDTree(p, leafsize=32) for p in points]
        return trees[1].query(points[0])[0], trees[0].query(points[1])[0]

    def hd95(self) -> float:
        if self.surface_distances is None:
            return float("nan")
        return float(max(np.percentile(d, 95) for d in self.surface_distances))

    def assd(self) -> float:
        if self.surface_distances is None:
            return float("nan")
        return float(np.concatenate(self.surface_distances).mean())

    def surface_dice(self, tolerance: float) -> float:
        if self.surface_distances is None:
            return 0.0 if any(self.sizes) else float("nan")
        both = np.concatenate(self.surface_distances)
        return float((both <= tolerance).mean())

    def components_changed(self) -> tuple[int, int]:
        """Connected parts (neighbours by face, edge or corner) of one mask that touch nothing of the other one.

        Returns:
            (gained, lost): parts only the prediction has, parts only the reference has.
        """
        return _parts_apart(self.prediction, self.reference), _parts_apart(self.reference, self.prediction)


def _parts_apart(mask: np.ndarray, other: np.ndarray) -> int:
    """Number of connected components of `mask` without any voxel of `other`."""
    from scipy.ndimage import generate_binary_structure, label

    parts, count = label(mask, structure=generate_binary_structure(mask.ndim, mask.ndim))
    met = np.unique(parts[other])
    return count - int((met > 0).sum())


def _surface_points(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Centres of the mask's surface voxels in mm: array of shape (number of voxels, dimensions)."""
    from scipy.ndimage import binary_erosion

    return np.argwhere(mask & ~binary_erosion(mask)) * np.asarray(spacing, dtype=float)


def _mask(labels: np.ndarray, value: LabelValue, kept: np.ndarray | None) -> np.ndarray:
    mask = np.isin(labels, value) if isinstance(value, tuple) else labels == value
    return mask if kept is None else mask & kept


def _plain(value: object) -> LabelValue:
    """Label values as hashable Python numbers: 1 -> 1, [1, 2] -> (1, 2)."""
    if isinstance(value, Sequence | np.ndarray):
        return tuple(int(v) for v in value)
    return int(value)


def _pair(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> MaskPair:
    reference, prediction = _masks(reference, prediction)
    _check(reference, prediction, spacing)
    return MaskPair(reference, prediction, spacing)


def _masks(reference: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference, prediction = np.asarray(reference, dtype=bool), np.asarray(prediction, dtype=bool)
    _check(reference, prediction, (1.0,) * reference.ndim)
    return reference, prediction


def _check(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> None:
    if reference.shape != prediction.shape:
        raise ValueError(
            f"the reference has shape {reference.shape} and the prediction {prediction.shape}: "
            "bring both onto one voxel grid first"
        )
    if len(spacing) != reference.ndim or not all(s > 0 for s in spacing):
        raise ValueError(
            f"spacing {tuple(spacing)} does not fit a label map of {reference.ndim} axes: "
            "give one positive number per array axis"
        )
