"""User's own trust in the given labels: an optional map per case, carried through spatial augmentation.

Files `labelsTrust/<case>_trust<file ending>` in the raw data set, in the geometry of the label, from 0 (do not believe
the label here) to 1; 8-bit images (PNG, TIF) from 0 to 255. Cases without a file are trusted as the method finds.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = "labelsTrust"
# Segmentation channels are resampled value by value, so the map is carried in few levels; 0 stands for "no map here"
# (outside the image after augmentation), 1 to LEVELS + 1 for trust 0 to 1.
LEVELS = 10
# Maps that were resampled or averaged leave 0 to 1 by rounding, which is less than one part in 255.
ROUNDING = 1e-3
# What nnU-Net's preprocessing writes for a case; not the .npy files, which training unpacks from .npz files.
CASE_FILES = (".pkl", ".b2nd", "_seg.b2nd", ".npz")


def find_trust_maps(raw_dataset_folder: str | Path, file_ending: str, cases: list[str]) -> dict[str, Path]:
    """The trust maps of a raw data set by case; empty where there are none.

    Raises:
        ValueError: a file in labelsTrust that belongs to no case, or is named otherwise.
    """
    folder = Path(raw_dataset_folder) / FOLDER
    suffix = f"_trust{file_ending}"
    # Hidden files are a system's own; in .json files nnU-Net keeps the spacing of TIFF images; the others are notes.
    paths = [path for path in sorted(folder.iterdir()) if path.name[0] != "."] if folder.is_dir() else []
    others = [path.name for path in paths if not path.name.endswith((suffix, ".json", ".txt", ".md"))]
    if others:
        raise ValueError(
            f"{folder} holds {others[0]}, expected files named <case>{suffix} only; rename or remove it"
            + (f" (and {len(others) - 1} more)." if len(others) > 1 else ".")
        )
    files = {path.name.removesuffix(suffix): path for path in paths if path.name.endswith(suffix)}
    unknown = sorted(set(files) - set(cases))
    if unknown:
        raise ValueError(
            f"{folder} holds trust maps of unknown cases ({', '.join(unknown[:3])}); name them <case>{suffix} after "
            "cases of labelsTr, or remove them."
        )
    return files


def to_unit(values: np.ndarray, path: Path) -> np.ndarray:
    """Values of a trust map as floats in [0, 1]; whole numbers beyond 1 count from 0 to 255.

    The numbers decide and not their type: nnU-Net's readers return floats for 8-bit images, too.

    Raises:
        ValueError: values outside the range by more than rounding.
    """
    whole = values.max() > 1 and (values == np.floor(values)).all()
    scaled = values.astype(np.float32) / (255 if whole else 1)
    if not np.isfinite(scaled).all() or scaled.min() < -ROUNDING or scaled.max() > 1 + ROUNDING:
        # As str: all digits that tell the number from its neighbours, and no more.
        raise ValueError(
            f"{path} holds values from {values.min()!s} to {values.max()!s}, expected 0 to 1, or whole numbers from 0 "
            "to 255; rescale the map."
        )
    return scaled.clip(0, 1)


def preprocess(
    values: np.ndarray, path: Path, properties: Mapping, shape: tuple[int, ...], plans, configuration
) -> np.ndarray:
    """Bring a map into the preprocessed geometry, as nnU-Net does with the label.

    Args:
        values: (channels, *S) as read. properties: of the preprocessed case. shape: (*S) of its preprocessed label.
        plans, configuration: nnU-Net's PlansManager and ConfigurationManager.

    Returns:
        (1, *shape) uint8 levels.

    Raises:
        ValueError: the map has another shape than the label, or several channels.
    """
    if len(values) != 1:
        raise ValueError(
            f"{path} holds {len(values)} channels (a picture in colour?), expected one; save it in shades of grey."
        )
    trust = to_unit(values, path).transpose(0, *(axis + 1 for axis in plans.transpose_forward))
    expected = tuple(int(n) for n in properties["shape_before_cropping"])
    if trust.shape[1:] != expected:
        raise ValueError(
            f"{path} has shape {trust.shape[1:]}, but the label of its case has {expected}; write the map in the "
            "geometry of the label."
        )
    box = tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])
    trust = np.ascontiguousarray(trust[(slice(None), *box)])
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    # A 2D configuration keeps the spacing between slices.
    target = spacing[: len(spacing) - len(configuration.spacing)] + list(configuration.spacing)
    trust = configuration.resampling_fn_probabilities(trust, shape, spacing, target)
    return np.round(np.clip(np.asarray(trust), 0, 1) * LEVELS).astype(np.uint8) + 1


def to_trust(levels: Tensor) -> Tensor:
    """Levels, a tensor of any shape, to trust in [0, 1]; one where there is no map."""
    return torch.where(levels > 0, (levels.float() - 1) / LEVELS, 1.0)


class PreprocessedTrustMaps:
    """Trust maps in the preprocessed geometry, prepared before training and then read from disk.

    Those that an earlier start, or another fold, has prepared are used again as long as neither the map nor the
    preprocessed case has changed.

    Args:
        maps: source file per case. folder: where the prepared maps go. dataset: nnU-Net's preprocessed data set.
        plans, configuration: nnU-Net's managers. log: takes a line that says how many are prepared.
    """

    def __init__(
        self,
        maps: Mapping[str, Path],
        folder: str | Path,
        dataset,
        plans,
        configuration,
        log: Callable[[str], object],
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.maps, self.dataset, self.plans, self.configuration = maps, dataset, plans, configuration
        cases = sorted(set(maps) & set(dataset.identifiers))
        pending = [case for case in cases if not self._is_ready(case)]
        log(f"{len(pending)} trust maps of this fold are prepared now, {len(cases) - len(pending)} were already.")
        for case in pending:
            self._prepare(case)

    def _is_ready(self, case: str) -> bool:
        """Whether the map was prepared from what its files hold now, and can be read."""
        file, shape = self._file(case), self.dataset.load_case(case)[1].shape[1:]
        made_from = [Path(self.dataset.source_folder) / f"{case}{end}" for end in CASE_FILES]
        changed = [path.stat().st_mtime_ns for path in made_from if path.is_file()]
        source = self.maps[case].stat()
        # A file that is moved here keeps its older date of change, but not that of its entry (ctime).
        changed += [source.st_mtime_ns, source.st_ctime_ns]
        try:
            return file.stat().st_mtime_ns > max(changed) and np.load(file, mmap_mode="r").shape == (1, *shape)
        except (OSError, ValueError, EOFError):  # missing or damaged
            return False

    def _prepare(self, case: str) -> None:
        """Write the map whole or not at all: DDP ranks and other folds may write and read the same at this time."""
        started = time.time_ns()
        _, seg, _, properties = self.dataset.load_case(case)
        source = self.maps[case]
        values, _ = self.plans.image_reader_writer_class().read_seg(str(source))
        levels = preprocess(values, source, properties, tuple(seg.shape[1:]), self.plans, self.configuration)
        # A process number would not do: on another computer, or in another container, it may be the same.
        partial = self.folder / f"{case}.{uuid.uuid4().hex}.partial.npy"
        np.save(partial, levels)
        os.utime(partial, ns=(started, started))  # a map that was changed meanwhile is newer
        os.replace(partial, self._file(case))

    def _file(self, case: str) -> Path:
        return self.folder / f"{case}.npy"

    def __call__(self, case: str, shape: tuple[int, ...]) -> np.ndarray:
        """Levels (1, *shape) of a case; zeros, which take no memory, where the user gave no map."""
        if case in self.maps:
            return np.load(self._file(case), mmap_mode="r")
        return np.broadcast_to(np.uint8(0), (1, *shape))
