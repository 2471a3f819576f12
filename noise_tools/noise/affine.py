"""Affine: the annotation is misplaced, turned, scaled or sheared as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noise_tools.geometry import Box, bounding_box, grow_box
from noise_tools.noise.base import LENGTHS, Noise, Parameter, Params


class Affine(Noise):
    """Moves the whole foreground by translation, rotation, scaling and shear about its centre of mass, in mm.

    Labels keep their neighbourhood because they move together; nearest-neighbour resampling, so no new values appear.
    What leaves the image is cut, what the foreground leaves becomes background.
    """

    name = "affine"
    summary = "shifts, turns, scales and shears the foreground as one"
    source = "MetaDCSeg (arXiv 2511.18894) names affine noise; also part of L2B (arXiv 2202.04291) style corruptions"
    parameters = (
        Parameter(
            "translation", (0.0, 2.0), "mm", "length of the shift, in a random direction", True, True, (), LENGTHS
        ),
        Parameter("rotation", (0.0, 40.0), "degrees", "angle about a random axis", strength=True, bounds=(0, 180)),
        Parameter("scale", (0.0, 0.3), "log ratio", "growth or shrinkage, exp(+-scale) per axis", True, bounds=(0, 3)),
        Parameter("shear", (0.0, 0.3), "tangent", "shear of every axis pair", strength=True, bounds=(0, 2)),
    )

    def sample(self, rng: np.random.Generator, label: np.ndarray, spacing: Sequence[float], severity: float) -> Params:
        ndim = label.ndim
        shift = self._strength("translation", label, spacing, severity) * _direction(rng, ndim)
        angle = np.deg2rad(self._strength("rotation", label, spacing, severity)) * rng.choice([-1.0, 1.0])
        axis = _direction(rng, 3)
        scale = np.exp(self._strength("scale", label, spacing, severity) * rng.uniform(-1, 1, ndim))
        shear = self._strength("shear", label, spacing, severity) * rng.uniform(-1, 1, (ndim, ndim))
        matrix = _rotation(angle, axis, ndim) @ np.diag(scale) @ (np.eye(ndim) + np.triu(shear, 1))
        return self._start(matrix=matrix.tolist(), translation=shift.tolist())

    @classmethod
    def _box(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> Box | None:
        box = bounding_box(np.isin(label, params["labels"]))
        if box is None:
            return None
        # A point r mm from the centre moves by at most ||matrix - 1|| r + ||translation||, and r is less than the
        # diagonal.
        diagonal = np.linalg.norm([(edge.stop - edge.start) * step for edge, step in zip(box, spacing, strict=True)])
        stretch = np.linalg.norm(np.array(params["matrix"]) - np.eye(label.ndim), 2) * diagonal
        return grow_box(box, label.shape, spacing, float(stretch + np.linalg.norm(params["translation"])))

    @classmethod
    def _apply(cls, label: np.ndarray, spacing: Sequence[float], params: Params) -> np.ndarray:
        import SimpleITK as sitk

        foreground = np.where(np.isin(label, params["labels"]), label, 0)
        points = np.argwhere(foreground)
        center = points.mean(axis=0) * np.asarray(spacing)
        image = sitk.GetImageFromArray(foreground)
        image.SetSpacing([float(s) for s in reversed(spacing)])
        # The resampler asks where each output point came from: the inverse map, with axes in (x, y, z) order.
        inverse = np.linalg.inv(np.array(params["matrix"]))[::-1, ::-1]
        shift = np.array(params["translation"])[::-1]
        transform = sitk.AffineTransform(label.ndim)
        transform.SetMatrix(inverse.ravel().tolist())
        transform.SetCenter(center[::-1].tolist())
        transform.SetTranslation((-inverse @ shift).tolist())
        moved = sitk.Resample(image, image, transform, sitk.sitkNearestNeighbor, 0)
        return sitk.GetArrayFromImage(moved)


def _direction(rng: np.random.Generator, ndim: int) -> np.ndarray:
    vector = rng.normal(size=ndim)
    return vector / np.linalg.norm(vector)


def _rotation(angle: float, axis: np.ndarray, ndim: int) -> np.ndarray:
    if ndim == 2:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(angle * axis).as_matrix()
