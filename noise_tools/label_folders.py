"""Opens any folder of label files: bare, an nnU-Net raw data set, or a folder of nnU-Net predictions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from noise_tools.dataset_json import declared_labels, read_dataset_json
from noise_tools.errors import NoiseToolsError, reason_of
from noise_tools.metrics import LabelValue
from noise_tools.raw_dataset import label_map, load_segmentation, missing_file_advice, open_dataset

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif", ".tiff")
"""What nnU-Net's own readers know; looked for where no dataset.json names the ending."""


@dataclass(frozen=True)
class LabelFolder:
    """Where the label (and, if known, the image) of every case lies.

    Attributes:
        path: the folder of label files.
        name: short name for tables and pictures.
        cases: label file of each case identifier, in the order of the identifiers.
        images: first image channel of each case, for those where one was found.
        labels: foreground labels by name as in dataset.json; None if no dataset.json was found.
        ignore: value of the ignore label, if there is one.
        reader: name of nnU-Net's reader class if dataset.json asks for one.
    """

    path: Path
    name: str
    cases: dict[str, Path]
    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, LabelValue] | None = None
    ignore: int | None = None
    reader: str | None = None

    def read_label(self, case: str) -> tuple[np.ndarray, tuple[float, ...]]:
        """Label map (z, y, x) or (y, x) of a case and its spacing in mm (pixels for pictures) in axis order."""
        return read_label(self.cases[case], self.reader)

    def read_image(self, case: str) -> np.ndarray | None:
        """First image channel (z, y, x) or (y, x) of a case, colour averaged; None if no image is known."""
        if case not in self.images:
            return None
        return read_image(self.images[case], self.reader)


def open_label_folder(where: str | Path, images: str | Path | None = None) -> LabelFolder:
    """Find the labels in `where`: a label folder, a raw data set's folder, or a data set's number or name.

    Args:
        where: folder, or data set identifier to look up in `nnUNet_raw`.
        images: folder of images named CASE_0000.ENDING or CASE.ENDING; by default those of the data set.

    Raises:
        NoiseToolsError: nothing there, or files that cannot be told apart.
    """
    folder = _locate(where)
    # A dataset.json in the parent counts only for that data set's own label folder.
    root = folder.parent if folder.name in ("labelsTr", "labelsTs") else folder
    content = read_dataset_json(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    if (folder / "labelsTr").is_dir():
        folder = folder / "labelsTr"
    listed = content.get("dataset", {}) if _is_training_set(folder, root, content) else {}
    if listed:
        cases = {case: root / os.path.expandvars(entry["label"]) for case, entry in listed.items()}
    else:
        cases = _label_files(folder, content.get("file_ending"))
    declared = declared_labels(content["labels"], root / "dataset.json") if "labels" in content else None
    return LabelFolder(
        path=folder,
        name=root.name,
        cases=dict(sorted(cases.items())),
        images=_given_images(Path(images), cases) if images else _own_images(root, folder, listed, cases),
        labels=declared and {name: v[0] if len(v) == 1 else v for name, v in declared.regions.items()},
        ignore=declared and declared.ignore,
        reader=content.get("overwrite_image_reader_writer"),
    )


def read_label(path: Path, reader: str | None = None) -> tuple[np.ndarray, tuple[float, ...]]:
    """Integer label map (z, y, x) or (y, x) of a file and its spacing, through nnU-Net's reader for it."""
    array, spacing = _with_any_reader(path, reader, load_segmentation)
    return label_map(array, spacing, path)


def read_image(path: Path, reader: str | None = None) -> np.ndarray:
    """Image (z, y, x) or (y, x) of a file through nnU-Net's reader for it; colours are averaged."""
    array = _with_any_reader(path, reader, lambda cls, file: cls.read_images((str(file),))[0]).mean(axis=0)
    return array[0] if array.shape[0] == 1 else array


def _with_any_reader(path: Path, reader: str | None, read: Callable[[Any, Path], Any]) -> Any:
    """`read` with the first of nnU-Net's readers that can: .tif files, for example, have two kinds."""
    if not path.is_file():
        advice = missing_file_advice(path, "restore the file or the list")
        raise NoiseToolsError(f"{path} does not exist, though dataset.json names it; {advice}.")
    first_error: Exception | None = None
    readers = _readers(path, reader)
    for cls in readers:
        try:
            return read(cls(), path)
        except Exception as error:  # a reader raises whatever its library raises
            first_error = first_error or error
    reason = reason_of(first_error) if first_error else "no reader fits"
    raise NoiseToolsError(
        f"Cannot read {path} ({reason}); expected a whole image file that nnU-Net's "
        f"{' or '.join(cls.__name__ for cls in readers) or 'readers'} takes, restore or convert it."
    )


def _readers(path: Path, reader: str | None) -> list[type]:
    """nnU-Net's reader classes for this file, the one asked for alone if there is one."""
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name

    if reader not in (None, "None"):
        try:
            return [recursive_find_reader_writer_by_name(reader)]
        except RuntimeError:
            pass  # nnU-Net itself falls back to the file ending
    name = path.name.lower()
    return [cls for cls in LIST_OF_IO_CLASSES if any(name.endswith(e) for e in cls.supported_file_endings)]


def _locate(where: str | Path) -> Path:
    path = Path(where)
    if path.is_dir():
        return path.resolve()
    if str(where).isdecimal() or re.fullmatch(r"Dataset\d{3}_\w+", str(where)):
        return open_dataset(str(where)).folder.resolve()
    raise NoiseToolsError(
        f"{where} {'is a file' if path.is_file() else 'does not exist'}; expected a folder of label files, "
        "a raw data set of nnU-Net, or the number of a data set in nnUNet_raw."
    )


def _label_files(folder: Path, ending: str | None) -> dict[str, Path]:
    cases: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        found = _ending(path, (ending,) if ending else ENDINGS)
        if found is None or path.name.startswith("."):
            continue
        case = path.name[: -len(found)]
        if case in cases:
            raise NoiseToolsError(f"{folder} has two label files of case {case}; keep one of them.")
        cases[case] = path
    if not cases:
        raise NoiseToolsError(f"No label file in {folder}; expected files that end in {ending or ', '.join(ENDINGS)}.")
    return cases


def _is_training_set(folder: Path, root: Path, content: dict[str, Any]) -> bool:
    """Whether the list of cases in dataset.json is about this folder: nnU-Net also puts a copy beside predictions."""
    if folder.name == "labelsTr":
        return True
    endings = (content["file_ending"],) if "file_ending" in content else ENDINGS
    return folder == root and not any(_ending(path, endings) for path in folder.iterdir())


def _own_images(root: Path, folder: Path, listed: dict, cases: dict[str, Path]) -> dict[str, Path]:
    """Images as dataset.json lists them, else those in imagesTr beside labelsTr."""
    if listed:
        return {c: root / os.path.expandvars(e["images"][0]) for c, e in listed.items() if e.get("images")}
    beside = folder.with_name(folder.name.replace("labels", "images"))
    return _match_images(beside, cases) if beside != folder and beside.is_dir() else {}


def _given_images(source: Path, cases: dict[str, Path]) -> dict[str, Path]:
    if not source.is_dir():
        raise NoiseToolsError(f"--images {source} is no folder; expected one with files named CASE_0000.ENDING.")
    found = _match_images(source, cases)
    if not found:
        example = next(iter(cases))
        raise NoiseToolsError(
            f"--images {source} has no image of any case; expected names such as {example}_0000.nii.gz."
        )
    return found


def _match_images(source: Path, cases: dict[str, Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(source.iterdir()):
        ending = _ending(path, ENDINGS)
        if ending:
            files.setdefault(path.name[: -len(ending)], path)
    found = {case: files.get(f"{case}_0000", files.get(case)) for case in cases}
    return {case: path for case, path in found.items() if path is not None}


def _ending(path: Path, endings: tuple[str, ...]) -> str | None:
    return next((e for e in endings if path.name.lower().endswith(e.lower())), None)
