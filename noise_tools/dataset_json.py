"""What dataset.json says, checked: file ending, labels and regions, and the list of cases if there is one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noise_tools.errors import NoiseToolsError


@dataclass(frozen=True)
class DeclaredLabels:
    """What dataset.json says about labels.

    Attributes:
        foreground: all foreground values, ascending, without the ignore label.
        regions: name -> values of each foreground label or region, as nnU-Net evaluates them.
        ignore: value of the ignore label, or None.
    """

    foreground: tuple[int, ...]
    regions: dict[str, tuple[int, ...]]
    ignore: int | None

    @property
    def nested(self) -> bool:
        """Whether there are regions of several values: parts of a structure are labels of their own."""
        return any(len(values) > 1 for values in self.regions.values())

    @property
    def allowed(self) -> frozenset[int]:
        """Every value a label file may hold."""
        return frozenset({0, *self.foreground} | ({self.ignore} if self.ignore is not None else set()))


def read_dataset_json(path: Path) -> dict[str, Any]:
    """The content of a dataset.json; `file_ending` and `dataset` are as nnU-Net asks if they are there."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise NoiseToolsError(f"{path} is not valid JSON ({error}); correct it.") from error
    if not isinstance(content, dict):
        raise NoiseToolsError(f"{path} holds {_kind(content)}; expected an object as nnU-Net's dataset format asks.")
    if "file_ending" in content:
        _check_ending(content["file_ending"], path)
    if "dataset" in content:
        _check_cases(content["dataset"], path)
    return content


def _check_ending(ending: Any, path: Path) -> None:
    if isinstance(ending, str) and ending.startswith(".") and len(ending) > 1:
        return
    mended = f".{ending}" if isinstance(ending, str) and ending.strip(".") else ".nii.gz"
    raise NoiseToolsError(
        f"{path} has {ending!r} as file_ending; expected an ending with its leading dot, such as {mended!r}."
    )


def _check_cases(listed: Any, path: Path) -> None:
    """Raises NoiseToolsError for a list of cases that does not name a label, and images if any, for each of them."""
    if not isinstance(listed, Mapping):
        raise NoiseToolsError(f"{path} has {_kind(listed)} as 'dataset'; expected the files of each case by its name.")
    for name, entry in listed.items():
        images = entry.get("images", []) if isinstance(entry, Mapping) else None
        if not isinstance(images, list) or not all(isinstance(file, str) for file in (*images, entry.get("label"))):
            raise NoiseToolsError(
                f"{path}: the entry of case {name} under 'dataset' is {entry!r}; "
                'expected {"images": [FILE, ...], "label": FILE}.'
            )
        if name != Path(name).name:
            raise NoiseToolsError(f"{path} has a case {name!r}; give cases names that can be file names.")


def declared_labels(labels: Any, path: Path) -> DeclaredLabels:
    """Reads the `labels` entry of dataset.json (plain values, or lists of values for region-based training)."""
    if not isinstance(labels, Mapping):
        raise NoiseToolsError(
            f"{path} has {_kind(labels)} as 'labels'; expected names with their values, such as "
            '{"background": 0, "organ": 1}.'
        )
    if labels and all(_is_number(name) for name in labels) and not any(_is_number(name) for name in labels.values()):
        value, name = next(iter(labels.items()))
        raise NoiseToolsError(
            f"{path} has labels in the order of nnU-Net v1, {value!r}: {name!r}; turn them round: {name!r}: {value}."
        )
    regions: dict[str, tuple[int, ...]] = {}
    ignore = None
    for name, value in labels.items():
        values = _values(name, value, path)
        if name == "ignore":
            ignore = values[0]
        elif name != "background" and values != (0,):
            regions[name] = tuple(v for v in values if v != 0)
    foreground = tuple(sorted({v for values in regions.values() for v in values}))
    if not foreground:
        raise NoiseToolsError(f"{path} declares no foreground label; add one under 'labels'.")
    return DeclaredLabels(foreground, regions, ignore)


def _values(name: str, value: Any, path: Path) -> tuple[int, ...]:
    """The values of one label or region."""
    listed = value if isinstance(value, list | tuple) and value else [value]
    if not all(_is_number(v) for v in listed):
        raise NoiseToolsError(
            f"{path} gives label {name!r} the value {value!r}; expected a whole number from 0, or a list of them."
        )
    return tuple(int(v) for v in listed)


def _is_number(value: Any) -> bool:
    """Whether nnU-Net makes a label value of it, which it does of text such as '1' too."""
    try:
        return not isinstance(value, bool) and int(value) == float(value) >= 0
    except (TypeError, ValueError, OverflowError):
        return False


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), repr(value))
