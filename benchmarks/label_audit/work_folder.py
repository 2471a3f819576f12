"""What a working folder holds: a finished step is kept, so that it fits one choice of settings and data only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train import Cell

SETTINGS = "settings.json"


class WorkFolderError(ValueError):
    """The working folder does not fit the call. The message is one sentence for the user."""


def keep_settings(work: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of the first run into the folder.

    Raises:
        WorkFolderError: the folder was made with others, which its finished steps would go on reporting.
    """
    file = work / SETTINGS
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    changed = [f"{name} {found.get(name)}, not {value}" for name, value in settings.items() if found.get(name) != value]
    if changed:
        raise WorkFolderError(f"{work} was made with {'; '.join(changed)}: use another --work.")


def check_data(data: Path, cells: list[Cell]) -> None:
    """The clean data set of each cell is there.

    Raises:
        WorkFolderError: one is not.
    """
    for folder in {cell.source.folder: None for cell in cells}:
        if not (data / folder / "dataset.json").is_file():
            raise WorkFolderError(
                f"Found no {folder}/dataset.json in {data}, expected nnU-Net's raw format: name the folder of the "
                "data sets with --data."
            )


def check_numbers(work: Path, cells: list[Cell]) -> None:
    """Every data set, also of an earlier run, has an nnU-Net number of its own.

    Raises:
        WorkFolderError: two have the same, so that nnU-Net could not tell them apart.
    """
    owners = {folder.name[7:10]: folder.name for folder in sorted((work / "nnUNet_raw").glob("Dataset*"))}
    for name in [name for cell in cells for name in (cell.source.raw_name, cell.dataset_name)]:
        owner = owners.setdefault(name[7:10], name)
        if owner != name:
            raise WorkFolderError(
                f"{owner} and {name} would have the same number: use seeds from 0 to 3 and --label-dice in tenths, "
                "or another --work."
            )
