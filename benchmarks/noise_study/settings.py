"""The study's configuration file: data sets, cells, arms, seeds.

A *cell* is one noise setting on one data set. A *run* is one training: (cell, fold, arm, seed). Everything is read from
one YAML file, so that a user studies his own data by pointing ``source`` at his own nnU-Net raw data set.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from arms import ARMS, Arm, get_arm

HERE = Path(__file__).resolve().parent
DEFAULT_CONFIG = HERE / "config.yaml"
PLANS_NAME = "studyPlans"
WORK_VARIABLE = "NOISE_STUDY_WORK"
OPTIMIZERS = ("sgd", "adam")  # nnU-Net's own, and training.use_adam
MEMORY_FORMATS = ("channels_last", "contiguous_format")  # torch's names; the second is nnU-Net's own


class SettingsError(ValueError):
    """The configuration file, or what it points at, cannot be used. The message is one sentence for the user."""


@dataclass(frozen=True)
class Dataset:
    """A clean data set in nnU-Net raw format and the small network that is trained on it.

    ``planner`` is the class that plans it, None for nnU-Net's default (a plain U-Net).
    """

    name: str
    source: Path
    clean_id: int
    base_configuration: str
    features: tuple[int, ...]
    batch_size: int
    patch_size: tuple[int, ...] | None
    test_cases: int
    val_cases: int = 4
    split_seed: int = 0
    convolutions_per_stage: int = 2
    planner: str | None = None

    @property
    def configuration(self) -> str:
        """Name of the small configuration in the study's plans file."""
        return self.base_configuration.split("_")[0] + "_study"


@dataclass(frozen=True)
class Cell:
    """One noise setting. ``id`` is nnU-Net's data set number of fold 0; fold f uses ``id + f``."""

    name: str
    dataset: str
    id: int
    noise: tuple[str, ...]
    case_fraction: float
    label_dice: float | None
    trusted: int
    noise_seed: int
    corrupt_arguments: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    steps: int
    steps_per_epoch: int

    @property
    def epochs(self) -> int:
        return self.steps // self.steps_per_epoch


@dataclass(frozen=True)
class Run:
    """One training."""

    cell: str
    fold: int
    arm: str
    seed: int

    @property
    def path(self) -> str:
        return f"{self.cell}/fold_{self.fold}/{self.arm}/seed_{self.seed}"


@dataclass(frozen=True)
class Study:
    """The whole configuration. ``trial`` names a trial, whose runs keep out of the folders of the study's own."""

    datasets: dict[str, Dataset]
    cells: dict[str, Cell]
    variants: dict[str, dict[str, Any]]
    work: Path
    mirroring: bool = False
    memory_format: str = "channels_last"
    optimizer: str = "sgd"
    results: Path = field(default=HERE / "results")
    trial: str = ""

    def dataset_of(self, cell: Cell) -> Dataset:
        return self.datasets[cell.dataset]

    def arm(self, name: str) -> Arm:
        """The arm of that name: a built-in one, or a variant from the ``variants`` section."""
        return _find_arm(name, self.variants)

    def run_folder(self, run: Run) -> Path:
        """Where logs, scores and checkpoint of a run lie; emptied when the run begins."""
        parent = self.work / "trials" / self.trial if self.trial else self.work / "runs"
        return parent / run.path

    def cell(self, name: str) -> Cell:
        if name not in self.cells:
            raise SettingsError(f"There is no cell {name!r}; the configuration file has: {', '.join(self.cells)}.")
        return self.cells[name]

    def folds_of(self, dataset: Dataset) -> list[int]:
        """The folds that any cell has on this data set; fold 0 where no cell uses it."""
        folds = {fold for cell in self.cells.values() if cell.dataset == dataset.name for fold in cell.folds}
        return sorted(folds) or [0]

    def runs(self, cells: list[str] | None = None, arms: list[str] | None = None) -> list[Run]:
        """All runs, seed by seed, so that an interrupted study has every arm of the first seeds."""
        selected = [self.cell(name) for name in cells] if cells else list(self.cells.values())
        known = list(dict.fromkeys(arm for cell in selected for arm in cell.arms))
        for arm in arms or []:
            if arm not in known:
                raise SettingsError(f"No chosen cell has the arm {arm!r}; they have {', '.join(known)}.")
        out = []
        for cell in selected:
            for seed in cell.seeds:
                for fold in cell.folds:
                    out += [Run(cell.name, fold, arm, seed) for arm in cell.arms if arms is None or arm in arms]
        return out


_DATASET_KEYS = {
    "source",
    "clean_id",
    "base_configuration",
    "features",
    "batch_size",
    "patch_size",
    "test_cases",
    "val_cases",
    "split_seed",
    "convolutions_per_stage",
    "planner",
}
_CELL_DEFAULTS: dict[str, Any] = {
    "noise": [],
    "case_fraction": 0.6,
    "label_dice": None,
    "trusted": 5,
    "noise_seed": 0,
    "corrupt_arguments": [],
    "arms": ["clean", "noisy", "trusted_only", "mixed", "metadcseg"],
    "seeds": [0, 1, 2],
    "folds": [0],
    "steps": 1000,
    "steps_per_epoch": 25,
}
_TOP_KEYS = {"datasets", "cells", "defaults", "variants", "work", "mirroring", "memory_format", "optimizer", "results"}


def _find_arm(name: str, variants: dict[str, dict[str, Any]]) -> Arm:
    try:
        return get_arm(name, variants)
    except KeyError as error:
        raise SettingsError(error.args[0]) from None


def _mapping(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{where} is {value!r}; write it as 'key: value' pairs.")
    return value


def _folder(where: str, base: Path, value: Any) -> Path:
    """Absolute; variables and ``~`` are replaced, and what is relative is relative to ``base``."""
    if value in (None, ""):
        raise SettingsError(f"{where} is empty; name a folder.")
    return (base / Path(os.path.expandvars(str(value))).expanduser()).resolve()


def _items(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise SettingsError(f"{where} is {value!r}, which is no list; write it in brackets: [{value}].")
    return value


def _integer(where: str, value: Any, least: int | None = None) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise SettingsError(f"{where} is {value!r}, which is no whole number; write it in digits only.")
    if least is not None and value < least:
        raise SettingsError(f"{where} is {value}; it must be {least} or more.")
    return int(value)


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingsError(f"{where} is {value!r}, which is no number; write it like 0.6.")
    return float(value)


def _share(where: str, value: Any) -> float:
    if not 0 <= _number(where, value) <= 1:
        raise SettingsError(f"{where} must be in [0, 1], got {value}.")
    return float(value)


def _boolean(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"{where} is {value!r}; write true or false, without quotation marks.")
    return value


def _choice(where: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise SettingsError(f"{where} {value!r} is unknown; choose one of {', '.join(known)}.")
    return value


def _integers(where: str, value: Any, least: int | None = None) -> tuple[int, ...]:
    return tuple(_integer(where, item, least) for item in _items(where, value))


def _from_zero(where: str, value: Any) -> tuple[int, ...]:
    return _integers(where, value, 0)


def _from_one(where: str, value: Any) -> tuple[int, ...]:
    return _integers(where, value, 1)


def _texts(where: str, value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in _items(where, value))


def _reject_unknown(where: str, given: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise SettingsError(f"{where} has unknown keys {unknown}; known are {sorted(known)}.")


def _require(where: str, given: dict[str, Any], keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if key not in given]
    if missing:
        raise SettingsError(f"{where} lacks {missing}; add them to the configuration file.")


def _parse_dataset(name: str, raw: dict[str, Any], base: Path) -> Dataset:
    where = f"Data set {name!r}"
    _mapping(where, raw)
    _reject_unknown(where, raw, _DATASET_KEYS)
    _require(where, raw, ("source", "clean_id", "base_configuration", "features", "batch_size", "test_cases"))
    patch = raw.get("patch_size")
    features = _from_one(f"{where}: features", raw["features"])
    if len(features) < 3:
        # nnU-Net gives the last deep supervision output weight 0 and divides by the sum, which is 0/0 with one output
        raise SettingsError(f"{where}: features has {len(features)} numbers; nnU-Net's loss needs 3 stages or more.")

    def whole(key: str, default: int | None = None, least: int | None = 1) -> int:
        return _integer(f"{where}: {key}", raw.get(key, default), least)

    return Dataset(
        name=name,
        source=_folder(f"{where}: source", base, raw["source"]),
        clean_id=whole("clean_id"),
        base_configuration=str(raw["base_configuration"]),
        features=features,
        batch_size=whole("batch_size"),
        patch_size=None if patch is None else _from_one(f"{where}: patch_size", patch),
        test_cases=whole("test_cases"),
        val_cases=whole("val_cases", 4),
        split_seed=whole("split_seed", 0, least=0),
        convolutions_per_stage=whole("convolutions_per_stage", 2),
        planner=raw.get("planner"),
    )


def _parse_cell(raw: dict[str, Any], defaults: dict[str, Any]) -> Cell:
    where = f"Cell {_mapping('A cell', raw).get('name', raw)!r}"
    _require(where, raw, ("name", "dataset", "id"))
    _reject_unknown(where, raw, set(_CELL_DEFAULTS) | {"name", "dataset", "id"})
    merged = {**_CELL_DEFAULTS, **defaults, **raw}

    def read(parse: Callable[[str, Any], Any], key: str) -> Any:
        return parse(f"{where}: {key}", merged[key])

    cell = Cell(
        name=str(merged["name"]),
        dataset=str(merged["dataset"]),
        id=read(_integer, "id"),
        noise=read(_texts, "noise"),
        case_fraction=read(_share, "case_fraction"),
        label_dice=None if merged["label_dice"] is None else read(_share, "label_dice"),
        trusted=read(partial(_integer, least=1), "trusted"),  # noise_tools refuses none, after all planning
        noise_seed=read(_integer, "noise_seed"),
        corrupt_arguments=read(_texts, "corrupt_arguments"),
        arms=read(_texts, "arms"),
        seeds=read(_from_zero, "seeds"),
        folds=read(_from_zero, "folds"),
        steps=read(_integer, "steps"),
        steps_per_epoch=read(_integer, "steps_per_epoch"),
    )
    if not cell.noise:
        raise SettingsError(f"{where}: noise is empty; name a noise type, and case_fraction: 0 for clean labels.")
    if cell.steps_per_epoch < 1 or cell.steps % cell.steps_per_epoch or cell.epochs < 1:
        raise SettingsError(
            f"{where}: steps ({cell.steps}) must be a multiple of steps_per_epoch ({cell.steps_per_epoch})."
        )
    return cell


def _parse_variants(raw: Any) -> dict[str, dict[str, Any]]:
    """The section ``variants``: a mis-written one would be the plain method under another name."""
    variants = _mapping("The section 'variants'", raw or {})
    _check_names([*variants])
    for name, variant in variants.items():
        where = f"The variant {name!r}"
        if name in ARMS:
            raise SettingsError(f"{where} has the name of a built-in arm; give it another.")
        _reject_unknown(where, _mapping(where, variant), {"arm", "config"})
        _mapping(f"{where}: config", variant.get("config", {}))
        if not isinstance(variant.get("arm", ""), str):
            raise SettingsError(f"{where}: arm is {variant['arm']!r}; give the name of one arm.")
    for name in variants:
        _find_arm(name, variants)
    return variants


def _check_names(names: list[str]) -> None:
    for name in names:
        if not isinstance(name, str):  # as YAML reads 7 and yes, where they are keys
            raise SettingsError(f"The name {name!r} is no text; put it in quotation marks.")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise SettingsError(f"The name {name!r} is used in file names; use letters, digits, '_' and '-' only.")


def _check_ids(datasets: dict[str, Dataset], cells: dict[str, Cell]) -> None:
    """Every prepared data set needs a number of its own."""
    owners: dict[int, str] = {}
    wanted = [(cell.id + fold, f"cell {cell.name!r}") for cell in cells.values() for fold in cell.folds]
    for dataset in datasets.values():
        folds = {fold for cell in cells.values() if cell.dataset == dataset.name for fold in cell.folds}
        wanted += [(dataset.clean_id + fold, f"data set {dataset.name!r}") for fold in folds]
    for number, owner in wanted:
        if not 1 <= number <= 999:
            raise SettingsError(f"The number {number} of {owner} is no nnU-Net data set number; choose 1 to 999.")
        if owners.setdefault(number, owner) != owner:
            raise SettingsError(f"The number {number} is used by {owners[number]} and by {owner}; change one of them.")


def load_study(path: str | Path = DEFAULT_CONFIG, work: str | Path | None = None) -> Study:
    """Read and check a configuration file.

    ``source``, ``work`` and ``results`` may be relative to the file's folder, and hold variables and ``~``. The working
    folder, which holds all bulky data, is in this order: the argument ``work``, the environment variable
    NOISE_STUDY_WORK (both of them relative to where the command runs), the file's key ``work``.

    Raises:
        SettingsError: the file is missing or something in it is wrong.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise SettingsError(f"There is no configuration file {path}; pass one with --config.")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} is no YAML: {' '.join(str(error).split())}.") from None
    raw = _mapping(f"The configuration file {path.name}", raw)
    _reject_unknown(f"The configuration file {path.name}", raw, _TOP_KEYS)
    _require(f"The configuration file {path.name}", raw, ("datasets", "cells"))
    defaults = _mapping("The section 'defaults'", raw.get("defaults") or {})
    _reject_unknown("The section 'defaults'", defaults, set(_CELL_DEFAULTS))
    sections = _mapping("The section 'datasets'", raw["datasets"])
    _check_names([*sections])
    datasets = {name: _parse_dataset(name, entry, path.parent) for name, entry in sections.items()}
    cells: dict[str, Cell] = {}
    for entry in _items("The section 'cells'", raw["cells"]):
        cell = _parse_cell(entry, defaults)
        if cell.name in cells:
            raise SettingsError(f"Two cells are called {cell.name!r}; give each its own name.")
        if cell.dataset not in datasets:
            raise SettingsError(f"Cell {cell.name!r} uses the unknown data set {cell.dataset!r}; known: {[*datasets]}.")
        cells[cell.name] = cell
    variants = _parse_variants(raw.get("variants"))
    _check_names([*cells])
    _check_ids(datasets, cells)
    for cell in cells.values():
        for arm in cell.arms:
            try:
                _find_arm(arm, variants)
            except SettingsError as error:
                raise SettingsError(f"Cell {cell.name!r}: {error}") from None
    given = work or os.environ.get(WORK_VARIABLE)
    return Study(
        datasets=datasets,
        cells=cells,
        variants=variants,
        work=_folder("work", Path.cwd() if given else path.parent, given or raw.get("work") or "work"),
        mirroring=_boolean("mirroring", raw.get("mirroring", False)),
        memory_format=_choice("The memory_format", raw.get("memory_format", "channels_last"), MEMORY_FORMATS),
        optimizer=_choice("The optimizer", raw.get("optimizer", "sgd"), OPTIMIZERS),
        results=_folder("results", path.parent, raw.get("results", "results")),
    )


def check_fold(owner: str, fold: int, folds: Collection[int]) -> None:
    """A fold that the file does not list could use the data set number of another cell (``id + fold``).

    Raises:
        SettingsError: ``fold`` is not among ``folds``, those of ``owner``.
    """
    if fold not in folds:
        listed = ", ".join(map(str, folds))
        raise SettingsError(f"{owner} has no fold {fold}, only {listed}; choose one of them, or add it to 'folds'.")


def set_nnunet_paths(study: Study, results: Path | None = None) -> None:
    """Point nnU-Net's environment variables into the working folder. Call before importing nnunetv2."""
    os.environ["nnUNet_raw"] = str(study.work / "nnUNet_raw")
    os.environ["nnUNet_preprocessed"] = str(study.work / "nnUNet_preprocessed")
    os.environ["nnUNet_results"] = str(results or study.work / "nnUNet_results")


def clean_folder_name(dataset: Dataset, fold: int) -> str:
    """Name of the prepared data set with the clean training labels."""
    return f"Dataset{dataset.clean_id + fold:03d}_{dataset.name}_clean"


def noisy_folder_name(cell: Cell, fold: int) -> str:
    """Name of the prepared data set with the corrupted training labels."""
    return f"Dataset{cell.id + fold:03d}_{cell.name}"


def _noise(cell: Cell) -> tuple[Any, ...]:
    return cell.noise, cell.case_fraction, cell.label_dice, cell.noise_seed, cell.corrupt_arguments


def signature(study: Study, run: Run, trusted: list[str]) -> str:
    """Twelve hexadecimal digits that name a training: equal for two runs that would do the same thing.

    The clean arm does not see the noise and the trusted-only arm sees nothing but the trusted cases, so cells share
    these runs.
    """
    cell = study.cell(run.cell)
    dataset = study.dataset_of(cell)
    arm = study.arm(run.arm)
    network = asdict(dataset) | {"source": dataset.source.name}
    if dataset.planner is None:
        del network["planner"]  # runs from before there was a choice keep their signature
    parts: dict[str, Any] = {
        "arm": asdict(arm) | {"name": None},
        "dataset": network,
        "fold": run.fold,
        "seed": run.seed,
        "steps": cell.steps,
        "steps_per_epoch": cell.steps_per_epoch,
        "mirroring": study.mirroring,
        "optimizer": study.optimizer,
    }
    if arm.sees != "clean":
        parts["trusted"] = sorted(trusted)
    if arm.sees == "noisy":
        parts["noise"] = _noise(cell)
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_hash(study: Study, run: Run) -> str:
    """Like ``signature``, but from the configuration file alone, which does not know the names of the trusted cases.

    What they are drawn by stands for them. Rows of results hold it, so that rows of other settings are recognised
    without the prepared data.
    """
    cell = study.cell(run.cell)
    return signature(study, run, [json.dumps([cell.trusted, *_noise(cell)])])
