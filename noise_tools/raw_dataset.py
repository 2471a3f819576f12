"""Data sets in nnU-Net's raw format: where they are, their cases, reading and writing labels.

Labels are read through nnU-Net's reader/writer registry, so the arrays are those nnU-Net trains on. Writing keeps what
nnU-Net's writers do not: the pixel type and the header of the clean label file.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from noise_tools.dataset_json import DeclaredLabels, declared_labels, read_dataset_json
from noise_tools.errors import NoiseToolsError, reason_of


@dataclass(frozen=True)
class Case:
    """One training case: its images (one per channel) and its label file."""

    identifier: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class RawDataset:
    """A data set folder with its dataset.json and training cases."""

    folder: Path
    json: dict[str, Any]
    cases: dict[str, Case] = field(repr=False)
    labels: DeclaredLabels

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def short_name(self) -> str:
        """Name without 'DatasetXXX_'."""
        return self.folder.name[11:]

    @property
    def files(self) -> list[Path]:
        """Every image, of all channels, and every label of the training cases."""
        return [file for case in self.cases.values() for file in (*case.images, case.label)]

    @property
    def file_ending(self) -> str:
        return self.json["file_ending"]

    @cached_property
    def reader_writer(self) -> Any:
        """nnU-Net's reader/writer for these files. Kept: to choose it, nnU-Net reads the image of the first case."""
        return _reader_writer(self)


def raw_root() -> Path:
    """The folder nnUNet_raw names."""
    root = os.environ.get("nnUNet_raw")
    if not root:
        raise NoiseToolsError(
            "The environment variable nnUNet_raw is not set; export it to the folder of your raw data sets."
        )
    if not Path(root).is_dir():
        raise NoiseToolsError(
            f"nnUNet_raw is {root!r}, which is no folder; export it to the folder of your raw data sets."
        )
    return Path(root)


def open_dataset(name_or_id: str | int) -> RawDataset:
    """The raw data set with this id (4, '004') or name ('Dataset004_Hippocampus') under nnUNet_raw."""
    return load_dataset(_find_folder(str(name_or_id)))


def load_dataset(folder: Path) -> RawDataset:
    """The raw data set in `folder`."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise NoiseToolsError(f"{folder} has no dataset.json; expected a data set in nnU-Net's raw format.")
    content = read_dataset_json(path)
    for key in ("labels", "file_ending", "channel_names"):
        if key not in content:
            raise NoiseToolsError(f"{path} has no key {key!r}; add it as nnU-Net's dataset format asks.")
    cases = (
        _referenced_cases(folder, content) if "dataset" in content else _listed_cases(folder, content["file_ending"])
    )
    if not cases:
        raise NoiseToolsError(f"{folder / 'dataset.json'} lists no cases under 'dataset'; add them or remove that key.")
    return RawDataset(folder, content, cases, declared_labels(content["labels"], path))


def check_files(dataset: RawDataset) -> None:
    """Raises NoiseToolsError if an image, of any channel, or a label of a training case is missing."""
    for case in dataset.cases.values():
        for file in (*case.images, case.label):
            if not file.is_file():
                advice = missing_file_advice(file, "restore it or drop the case")
                raise NoiseToolsError(f"Case {case.identifier}: {file} does not exist; {advice}.")
    _check_channels(dataset)


def _check_channels(dataset: RawDataset) -> None:
    """Raises NoiseToolsError if a case lacks a channel that another has: the next one would be taken for it.

    `channel_names` does not tell which there are: one file of colours holds three.
    """
    channels = {name: _channels(dataset, case) for name, case in dataset.cases.items()}
    owners = {channel: name for name, own in channels.items() for channel in own}
    for name, own in channels.items():
        for channel in sorted(owners.keys() - own):
            listed = f"image {channel + 1} under 'dataset' in dataset.json"
            file = listed if "dataset" in dataset.json else f"imagesTr/{name}_{channel:04d}{dataset.file_ending}"
            raise NoiseToolsError(
                f"Case {name} lacks {file}, a channel that case {owners[channel]} has; give all cases the same "
                "channels, or drop the case."
            )


def _channels(dataset: RawDataset, case: Case) -> set[int]:
    """Numbers of a case's channels: in the file names, or by their order where dataset.json lists files of any name."""
    if "dataset" in dataset.json:
        return set(range(len(case.images)))
    return {int(image.name.removesuffix(dataset.file_ending)[-4:]) for image in case.images}


def read_label(dataset: RawDataset, case: Case) -> tuple[np.ndarray, tuple[float, ...]]:
    """Label map and spacing in mm of one case: (z, y, x), or (y, x) if there is one slice only; int16 or int32.

    Raises:
        NoiseToolsError: unreadable, not of the image's shape or spacing, or with values that dataset.json does not
            declare.
    """
    reader = dataset.reader_writer
    array, spacing = read_segmentation(reader, case.label)
    shape = _image_shape_as_read(reader, case.images[0])
    if shape is not None and tuple(n for n in shape if n > 1) != tuple(n for n in array.shape if n > 1):
        raise NoiseToolsError(
            f"Case {case.identifier}: the label has shape {array.shape} but the image {shape}; give both the same grid."
        )
    _check_spacing(dataset, case)
    found = np.unique(array)
    extra = sorted(set(found.tolist()) - dataset.labels.allowed)
    if extra:
        raise NoiseToolsError(
            f"Case {case.identifier}: {case.label.name} has label values {extra}, but dataset.json declares "
            f"{sorted(dataset.labels.allowed)}; correct the file or declare them."
        )
    return array, spacing


def _check_spacing(dataset: RawDataset, case: Case) -> None:
    """Raises NoiseToolsError if the label's voxels have another size than the image's, by which nnU-Net trains.

    Noise in mm would be too strong or too weak then, without a word.
    """
    image = _spacing_in_file(dataset, case.images[0], f"_0000{dataset.file_ending}")
    label = _spacing_in_file(dataset, case.label, dataset.file_ending)
    if image is None or label is None or len(image) != len(label):
        return
    turned = _turns_axes(dataset.reader_writer)  # then the axes of the two files may have different orders
    if not np.allclose(*(sorted(s) if turned else s for s in (image, label)), rtol=1e-3):
        raise NoiseToolsError(
            f"Case {case.identifier}: the label has spacing {label} but the image {image} (z, y, x; mm), and nnU-Net "
            "trains with the image's; correct the header of the label (of a 3D TIFF the .json beside it)."
        )


def _spacing_in_file(dataset: RawDataset, path: Path, tail: str) -> tuple[float, ...] | None:
    """Size in mm of a file's voxels along its axes of more than one voxel, last axis first; None if it says none."""
    kind = type(dataset.reader_writer).__name__
    if kind == "NaturalImage2DIO":
        return None
    if kind == "Tiff3DIO":
        beside = side_file(path, tail)
        return tuple(json.loads(beside.read_text())["spacing"]) if beside else (1.0, 1.0, 1.0)
    try:
        header = read_header(path)
    except RuntimeError:
        return None  # a format of its own reader
    sizes = zip(header.GetSize()[:3], header.GetSpacing()[:3], strict=True)
    return tuple(round(step, 6) for size, step in sizes if size > 1)[::-1]


def read_segmentation(reader_writer: Any, path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Label map and spacing of a segmentation file, see `label_map`."""
    try:
        array, spacing = load_segmentation(reader_writer, path)
    except Exception as error:
        raise NoiseToolsError(
            f"Cannot read {path} ({reason_of(error)}); check that it is a whole image file that nnU-Net's "
            f"{type(reader_writer).__name__} takes, and restore or convert it."
        ) from error
    return label_map(array, spacing, path)


def load_segmentation(reader_writer: Any, path: Path) -> tuple[np.ndarray, Sequence[float]]:
    """Array and spacing as an nnU-Net reader gives them; raises whatever its library raises."""
    _check_whole(path)
    with _quiet():
        array, properties = reader_writer.read_seg(str(path))
    return array, properties["spacing"]


def label_map(array: np.ndarray, spacing: Sequence[float], path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Integer array (z, y, x) or (y, x), and its spacing, of what an nnU-Net reader gave for the file `path`.

    Raises:
        NoiseToolsError: several values per voxel (colours, time points), or values that are no whole numbers.
    """
    # Of colours in a volume, readers make a picture of one channel for each slice, with too few spacings.
    if array.shape[0] != 1 or len(spacing) != array.ndim - 1:
        raise NoiseToolsError(
            f"{path} holds several values per voxel (colours or time points; read as {array.shape}); expected a label "
            "map of one value per voxel, save it as such."
        )
    array, spacing = array[0], tuple(float(s) for s in spacing)
    if array.shape[0] == 1:
        array, spacing = array[0], spacing[1:]
    whole = np.rint(array)
    if not np.array_equal(whole, array):
        raise NoiseToolsError(f"{path} holds values that are no whole numbers; expected a label map.")
    small = whole.size == 0 or (whole.min() >= -32768 and whole.max() <= 32767)
    return whole.astype(np.int16 if small else np.int32), spacing


def _check_whole(path: Path) -> None:
    """Raises EOFError or OSError for a gzip file that was cut off: ITK reads zeros where its voxels are missing."""
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass


def read_header(path: Path) -> Any:
    """SimpleITK's reader of a file whose header, but not its voxels, was read; RuntimeError if ITK cannot."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _image_shape_as_read(reader_writer: Any, path: Path) -> tuple[int, ...] | None:
    """As `image_shape`, unless the reader turns axes: then what it makes of the image."""
    if not _turns_axes(reader_writer):
        return image_shape(path)
    try:
        with _quiet():
            return reader_writer.read_images((str(path),))[0].shape[1:]
    except Exception as error:
        raise NoiseToolsError(
            f"Cannot read image {path} ({reason_of(error)}); restore or convert it, or drop the case."
        ) from error


def _turns_axes(reader_writer: Any) -> bool:
    """Whether it is one of nnU-Net's readers that bring all files to one orientation."""
    return "Reorient" in type(reader_writer).__name__


def image_shape(path: Path) -> tuple[int, ...] | None:
    """Shape (z, y, x) or (y, x) of an image from its header, or None for a format whose header is not understood."""
    suffix = path.suffix.lower()
    try:
        if suffix in (".png", ".bmp"):
            from PIL import Image

            with Image.open(path) as image:
                return image.size[::-1]
        if suffix in (".tif", ".tiff"):
            import tifffile

            with tifffile.TiffFile(path) as file:
                series = file.series[0]
                return tuple(n for n, axis in zip(series.shape, series.axes, strict=True) if axis != "S")
        return tuple(read_header(path).GetSize()[:3])[::-1]
    except (OSError, RuntimeError) as error:
        if not path.is_file():
            raise NoiseToolsError(f"Image {path} does not exist; restore it or drop the case.") from error
        return None


def write_label_like(source: Path, array: np.ndarray, target: Path, reader_writer: Any) -> None:
    """Writes `array` to `target` with the pixel type, geometry and header of the label file `source`.

    The pixel type is a wider one where that of `source` cannot hold the values.

    Args:
        array: label map as `read_label` gives it.
        reader_writer: nnU-Net's reader/writer for the file; one that is not of the known kinds writes by
            itself, and then chooses the pixel type.
    """
    kind = type(reader_writer).__name__
    if kind in ("SimpleITKIO", "SimpleITKIOWithReorient"):
        _write_simpleitk(source, array, target, _turns_axes(reader_writer))
    elif kind in ("NibabelIO", "NibabelIOWithReorient"):
        _write_nibabel(source, array, target, _turns_axes(reader_writer))
    elif kind == "NaturalImage2DIO":
        from skimage import io as skimage_io

        clean = skimage_io.imread(source)
        dtype = np.dtype(np.uint8) if clean.dtype == bool else clean.dtype  # of one bit: true would be written as 255
        skimage_io.imsave(target, _as_stored(array.reshape(clean.shape), dtype), check_contrast=False)
    elif kind == "Tiff3DIO":
        import tifffile

        clean = tifffile.imread(source)
        tifffile.imwrite(target, _as_stored(array.reshape(clean.shape), clean.dtype), compression="zlib")
    else:
        with _quiet():
            _, properties = reader_writer.read_seg(str(source))
            reader_writer.write_seg(array if array.ndim == 3 else array[None], str(target), properties)


def _as_stored(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array` with the clean file's pixel type, or a wider one where a new label value would be cut off to another."""
    stored = array.astype(dtype)
    if np.array_equal(stored, array):
        return stored
    return array.astype(np.promote_types(dtype, np.min_scalar_type(array.max())))


def side_file(file: Path, tail: str) -> Path | None:
    """The .json with the spacing that nnU-Net keeps beside a 3D TIFF, if there is one.

    Args:
        tail: what it has instead of '.json': the file ending, for an image with the channel number before it.
    """
    path = file.with_name(file.name[: -len(tail)] + ".json")
    return path if tail.lower().endswith((".tif", ".tiff")) and path.is_file() else None


def _write_simpleitk(source: Path, array: np.ndarray, target: Path, turned: bool) -> None:
    import SimpleITK as sitk

    clean = sitk.ReadImage(str(source))
    as_read = sitk.DICOMOrient(clean, "RAS") if turned else clean
    reference = sitk.GetArrayViewFromImage(as_read)
    image = sitk.GetImageFromArray(_as_stored(array.reshape(reference.shape), reference.dtype))
    if turned:
        image.CopyInformation(as_read)
        orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(clean.GetDirection())
        image = sitk.DICOMOrient(image, orientation)
    image.CopyInformation(clean)
    for key in clean.GetMetaDataKeys():
        image.SetMetaData(key, clean.GetMetaData(key))
    sitk.WriteImage(image, str(target), True)


def _write_nibabel(source: Path, array: np.ndarray, target: Path, turned: bool) -> None:
    import nibabel
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

    clean = nibabel.load(source)
    if turned:
        there = io_orientation(clean.affine)
        back = ornt_transform(io_orientation(np.eye(4)), there)
        voxels = apply_orientation(array.reshape(clean.as_reoriented(there).shape[::-1]).transpose(), back)
    else:
        voxels = array.reshape(clean.shape[::-1]).transpose()
    voxels = _as_stored(voxels, clean.get_data_dtype())
    image = type(clean)(voxels, clean.affine, clean.header)
    image.set_data_dtype(voxels.dtype)
    nibabel.save(image, target)


def _reader_writer(dataset: RawDataset) -> Any:
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    example = str(next(iter(dataset.cases.values())).images[0])
    try:
        with _quiet():
            return determine_reader_writer_from_dataset_json(dataset.json, example, verbose=False)()
    except RuntimeError as error:
        raise NoiseToolsError(
            f"nnU-Net has no reader for {example} (ending {dataset.file_ending!r}); check the file and dataset.json."
        ) from error


def _find_folder(name_or_id: str) -> Path:
    root = raw_root()
    if name_or_id.startswith("Dataset"):
        if (root / name_or_id).is_dir():
            return root / name_or_id
        raise NoiseToolsError(f"No data set {name_or_id} in {root}; found {_known(root)}.")
    if not name_or_id.isdecimal():
        raise NoiseToolsError(
            f"Data set {name_or_id!r} is neither an id nor a name; give e.g. 4 or Dataset004_Hippocampus."
        )
    found = folders_with_id(root, int(name_or_id))
    if not found:
        raise NoiseToolsError(f"No data set with id {int(name_or_id)} in {root}; found {_known(root)}.")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise NoiseToolsError(f"Id {int(name_or_id)} has {len(found)} data sets in {root} ({names}); keep one.")
    return found[0]


def folders_with_id(root: Path, dataset_id: int) -> list[Path]:
    """Data set folders under `root` that have this id."""
    return sorted(path for path in root.glob(f"Dataset{dataset_id:03d}_*") if path.is_dir())


def _known(root: Path) -> str:
    names = sorted(path.name for path in root.glob("Dataset*") if path.is_dir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


def _referenced_cases(folder: Path, content: Mapping[str, Any]) -> dict[str, Case]:
    for identifier, entry in content["dataset"].items():
        if not entry.get("images"):
            raise NoiseToolsError(f"{folder / 'dataset.json'} lists no images of case {identifier}; add them.")
    return {
        identifier: Case(
            identifier, tuple(_named(image, folder) for image in entry["images"]), _named(entry["label"], folder)
        )
        for identifier, entry in sorted(content["dataset"].items())
    }


def referenced_files(folder: Path) -> list[Path]:
    """Images and labels that dataset.json in `folder` lists, there or not; none if nobody can read it."""
    try:
        content = read_dataset_json(folder / "dataset.json")
    except (OSError, NoiseToolsError):
        return []
    entries = content.get("dataset", {}).values()
    return [_named(file, folder) for entry in entries for file in (*entry.get("images", []), entry["label"])]


def _named(path: str, folder: Path) -> Path:
    """The file that dataset.json in `folder` calls `path`."""
    return Path(os.path.normpath(folder / os.path.expandvars(path)))


def missing_file_advice(path: Path, otherwise: str) -> str:
    """How to mend a missing file that dataset.json names: set the variable that is left in its path, or `otherwise`."""
    left = re.search(r"\$(\w+|\{\w+\})", str(path))
    return f"set {left[1].strip('{}')}, which is not set in the environment" if left else otherwise


def _listed_cases(folder: Path, file_ending: str) -> dict[str, Case]:
    for part in ("imagesTr", "labelsTr"):
        if not (folder / part).is_dir():
            raise NoiseToolsError(f"{folder} has no folder {part}; expected nnU-Net's raw format.")
    images: dict[str, list[Path]] = {}
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(file_ending)}")
    for path in sorted((folder / "imagesTr").iterdir()):
        match = pattern.fullmatch(path.name)
        if match:
            images.setdefault(match[1], []).append(path)
    if not images:
        raise NoiseToolsError(_no_images(folder, file_ending))
    missing = [name for name in images if not (folder / "labelsTr" / (name + file_ending)).is_file()]
    if missing:
        raise NoiseToolsError(
            f"{len(missing)} of {len(images)} cases in {folder.name} have no file in labelsTr (first: {missing[0]}); "
            "add the labels or remove the images."
        )
    return {
        name: Case(name, tuple(paths), folder / "labelsTr" / (name + file_ending))
        for name, paths in sorted(images.items())
    }


def _no_images(folder: Path, file_ending: str) -> str:
    """Why there are no training cases: no file in imagesTr has a name as nnU-Net wants it."""
    names = [path.name for path in sorted((folder / "imagesTr").iterdir()) if not path.name.startswith(".")]
    expected = f"CASE_0000{file_ending}, by its file_ending in dataset.json"
    if not names:
        return f"{folder} has no training cases: imagesTr is empty; expected images named {expected}."
    # Rather an image than a file that lies there by chance.
    name = next((name for name in names if re.search(r"_\d{4}\.", name) or name.endswith(file_ending)), names[0])
    if name.endswith(file_ending):
        mend = "rename the files, with the number of the channel as four digits before the ending"
    elif name.lower().endswith(file_ending.lower()):
        mend = "rename the files or correct file_ending, nnU-Net tells capitals from small letters"
    else:
        mend = "correct file_ending, or convert the files"
    return f"{folder} has no training cases: imagesTr holds {name}, expected images named {expected}; {mend}."


def relative_to(path: Path, folder: Path, root: Path) -> str:
    """How dataset.json in `folder` names `path`: relative inside `root` (so that root can move), else absolute."""
    path = Path(os.path.abspath(path))
    root = Path(os.path.abspath(root))
    if path.is_relative_to(root):
        return Path(os.path.relpath(path, os.path.abspath(folder))).as_posix()
    return str(path)


@contextlib.contextmanager
def _quiet():
    # nnU-Net's readers print warnings and tracebacks for what they then handle.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
