"""Prepare one cell: clean and corrupted training data, planned and preprocessed for the study's small network.

    python benchmarks/noise_study/prepare_cell.py --cell hippo_unbiased_60

Test cases are drawn by seed and left out before anything else happens: they are in no training or validation list and
are never corrupted. Clean and noisy arms share plans, so that only the labels differ.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from settings import (
    DEFAULT_CONFIG,
    PLANS_NAME,
    Cell,
    Dataset,
    SettingsError,
    Study,
    check_fold,
    clean_folder_name,
    load_study,
    noisy_folder_name,
    set_nnunet_paths,
)

PREPARED = "study_prepared.json"  # written last: a folder without it is not complete
NOT_ALWAYS_RECORDED = ("base_configuration", "source_folder")  # folders of older versions lack them and stay valid


def split_cases(identifiers: list[str], dataset: Dataset, fold: int) -> dict[str, list[str]]:
    """Test, training and validation cases of one fold.

    The test cases of different folds do not overlap. Validation cases are training cases too: nnU-Net wants some, but
    nothing in the study depends on them (fixed number of steps, final weights).

    Raises:
        SettingsError: too few cases.
    """
    order = np.random.default_rng(dataset.split_seed).permutation(sorted(identifiers)).tolist()
    start, stop = fold * dataset.test_cases, (fold + 1) * dataset.test_cases
    if stop > len(order):
        raise SettingsError(
            f"Fold {fold} of data set {dataset.name!r} needs {dataset.test_cases} test cases of its own, but there are "
            f"only {len(order)} cases; use fewer folds or test cases."
        )
    if len(order) - dataset.test_cases <= dataset.val_cases:
        raise SettingsError(
            f"Data set {dataset.name!r} has {len(order)} cases, of which {dataset.test_cases} are test cases: too few "
            f"to train with val_cases: {dataset.val_cases}; use fewer validation or test cases."
        )
    test = sorted(order[start:stop])
    train = sorted(set(order) - set(test))
    return {"test": test, "train": train, "val": train[: dataset.val_cases]}


def small_configuration(base: dict[str, Any], base_name: str, dataset: Dataset) -> dict[str, Any]:
    """nnU-Net's planned configuration cut down to ``dataset.features``; inherits everything else.

    Raises:
        SettingsError: the configuration has no network of its own, or the patch cannot be halved as often as the
            network wants.
    """
    if "architecture" not in base:
        raise SettingsError(
            f"nnU-Net's configuration {base_name!r} takes its network from another one; choose 2d, 3d_lowres or "
            "3d_fullres as base_configuration."
        )
    architecture = deepcopy(base["architecture"])
    kwargs = architecture["arch_kwargs"]
    stages = len(dataset.features)
    if stages > kwargs["n_stages"]:
        raise SettingsError(f"nnU-Net plans {kwargs['n_stages']} stages, features has {stages} numbers; give fewer.")
    kwargs["n_stages"] = stages
    kwargs["features_per_stage"] = list(dataset.features)
    kwargs["kernel_sizes"], kwargs["strides"] = kwargs["kernel_sizes"][:stages], kwargs["strides"][:stages]
    if "n_blocks_per_stage" in kwargs:  # a residual encoder: a block is two convolutions; its decoder is thin already
        blocks = kwargs["n_blocks_per_stage"][:stages]
        kwargs["n_blocks_per_stage"] = [min(planned, dataset.convolutions_per_stage) for planned in blocks]
        kwargs["n_conv_per_stage_decoder"] = kwargs["n_conv_per_stage_decoder"][: stages - 1]
    else:
        kwargs["n_conv_per_stage"] = [dataset.convolutions_per_stage] * stages
        kwargs["n_conv_per_stage_decoder"] = [dataset.convolutions_per_stage] * (stages - 1)
    patch = list(dataset.patch_size or base["patch_size"])
    factors = np.prod(np.array(kwargs["strides"]), axis=0)
    if len(patch) != len(factors) or any(p % f for p, f in zip(patch, factors, strict=True)):
        raise SettingsError(f"The patch size {patch} must be divisible by {factors.tolist()}; change patch_size.")
    return {
        "inherits_from": base_name,
        "batch_size": dataset.batch_size,
        "patch_size": patch,
        "architecture": architecture,
    }


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def source_cases(source: Path) -> dict[str, dict[str, Any]]:
    """Images and label of every case of a raw data set, as nnU-Net itself lists them (absolute paths)."""
    if not (source / "dataset.json").is_file():
        raise SettingsError(f"{source} is no nnU-Net raw data set (no dataset.json); correct 'source'.")
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    return get_filenames_of_train_images_and_targets(str(source))


def _folders(study: Study, name: str) -> tuple[Path, Path]:
    return study.work / "nnUNet_raw" / name, study.work / "nnUNet_preprocessed" / name


def _check_number(study: Study, name: str) -> None:
    """nnU-Net finds data sets by their number and stops where two have the same one.

    Raises:
        SettingsError: the number of ``name`` is that of a data set of another name in the working folder.
    """
    number = name.split("_")[0]
    for folder in _folders(study, name):
        for other in sorted(folder.parent.glob(f"{number}_*")):
            if other.name != name:
                raise SettingsError(
                    f"{other} has the number of {name}; use another working folder or another id, or delete that "
                    "folder and its namesakes in nnUNet_raw and nnUNet_preprocessed."
                )


def _lock(study: Study, name: str) -> FileLock:
    """Two processes never prepare the same data set at once."""
    study.work.mkdir(parents=True, exist_ok=True)
    return FileLock(str(study.work / f".{name}.lock"))


@contextlib.contextmanager
def _without_da_setting():
    """nnUNet_n_proc_DA=0, right for training, crashes nnU-Net's planner."""
    value = os.environ.pop("nnUNet_n_proc_DA", None)
    try:
        yield
    finally:
        if value is not None:
            os.environ["nnUNet_n_proc_DA"] = value


def _finish(preprocessed: Path, split: dict[str, list[str]], record: dict[str, Any]) -> None:
    _write_json(preprocessed / "splits_final.json", [{"train": split["train"], "val": split["val"]}])
    _write_json(preprocessed / PREPARED, record)


def clean_record(dataset: Dataset, fold: int) -> dict[str, Any]:
    """What decides whether prepared clean data still fit the configuration file."""
    return {
        "source": dataset.source.name,
        "source_folder": str(dataset.source),
        "base_configuration": dataset.base_configuration,
        "features": list(dataset.features),
        "batch_size": dataset.batch_size,
        "patch_size": dataset.patch_size and list(dataset.patch_size),
        "test_cases": dataset.test_cases,
        "val_cases": dataset.val_cases,
        "split_seed": dataset.split_seed,
        "convolutions_per_stage": dataset.convolutions_per_stage,
        "planner": dataset.planner,
        "fold": fold,
    }


def noisy_record(study: Study, cell: Cell, fold: int) -> dict[str, Any]:
    """The same for the corrupted data: those of the clean ones, and the noise."""
    return clean_record(study.dataset_of(cell), fold) | {
        "noise": list(cell.noise),
        "case_fraction": cell.case_fraction,
        "label_dice": cell.label_dice,
        "trusted": cell.trusted,
        "noise_seed": cell.noise_seed,
        "corrupt_arguments": list(cell.corrupt_arguments),
    }


def is_prepared(preprocessed: Path, wanted: dict[str, Any]) -> bool:
    """Whether the folder is complete.

    Args:
        wanted: from ``clean_record`` or ``noisy_record``.

    Raises:
        SettingsError: it was prepared with other settings.
    """
    marker = preprocessed / PREPARED
    if not marker.is_file():
        return False
    found = _read_json(marker)
    unknown = {key for key in NOT_ALWAYS_RECORDED if key not in found}
    changed = {key for key, value in wanted.items() if key not in unknown and found.get(key) != value}
    if changed:
        raise SettingsError(
            f"{preprocessed} was prepared with other settings ({', '.join(sorted(changed))} differ); use another "
            "working folder or another id, or delete that folder and its namesake in nnUNet_raw."
        )
    return True


def prepare_clean(study: Study, dataset: Dataset, fold: int, processes: int = 2) -> Path:
    """Plan and preprocess the training cases with their clean labels; returns the preprocessed folder."""
    name = clean_folder_name(dataset, fold)
    preprocessed = _folders(study, name)[1]
    with _lock(study, name):
        if not is_prepared(preprocessed, clean_record(dataset, fold)):
            _make_clean(study, dataset, fold, processes)
    return preprocessed


def find_planner(dataset: Dataset) -> type:
    """The class ``dataset.planner`` of nnU-Net, or its default.

    Raises:
        SettingsError: nnU-Net has no such class.
    """
    import nnunetv2.experiment_planning as planning
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    name = dataset.planner or "ExperimentPlanner"
    found = recursive_find_python_class(planning.__path__[0], name, planning.__name__)
    if found is None:
        raise SettingsError(f"nnU-Net has no planner {name!r}; choose one, such as nnUNetPlannerResEncM.")
    return found


def _make_clean(study: Study, dataset: Dataset, fold: int, processes: int) -> None:
    raw, preprocessed = _folders(study, clean_folder_name(dataset, fold))
    _check_number(study, raw.name)
    cases = source_cases(dataset.source)
    split = split_cases(list(cases), dataset, fold)
    for folder in (raw, preprocessed):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    description = _read_json(dataset.source / "dataset.json")
    description["dataset"] = {case: cases[case] for case in split["train"]}
    description["numTraining"] = len(split["train"])
    _write_json(raw / "dataset.json", description)

    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    number = dataset.clean_id + fold
    with _without_da_setting():
        extract_fingerprint_dataset(number, num_processes=processes, verbose=False)
        plan_experiment_dataset(number, find_planner(dataset), overwrite_plans_name=PLANS_NAME)
        plans_file = preprocessed / f"{PLANS_NAME}.json"
        plans = _read_json(plans_file)
        base = dataset.base_configuration
        if base not in plans["configurations"]:
            raise SettingsError(
                f"nnU-Net plans {list(plans['configurations'])}, not {base!r}: change base_configuration."
            )
        small = small_configuration(plans["configurations"][base], base, dataset)
        plans["configurations"][dataset.configuration] = small
        _write_json(plans_file, plans)
        preprocess_dataset(number, PLANS_NAME, (dataset.configuration,), [processes])
    _finish(preprocessed, split, clean_record(dataset, fold) | {"test": split["test"]})


def corrupt_command(cell: Cell, clean_number: int, number: int, processes: int) -> list[str]:
    """The ``noise_tools corrupt`` call that makes the cell's labels."""
    command = [sys.executable, "-m", "noise_tools.cli", "corrupt", "-d", str(clean_number), "-o", str(number)]
    command += ["--name", cell.name, "--noise", *cell.noise, "--case-fraction", str(cell.case_fraction)]
    if cell.label_dice is not None:
        command += ["--label-dice", str(cell.label_dice)]
    command += ["--seed", str(cell.noise_seed), "-np", str(processes), *cell.corrupt_arguments]
    return command if "--trusted-cases" in cell.corrupt_arguments else [*command, "--trusted", str(cell.trusted)]


def prepare_noisy(study: Study, cell: Cell, fold: int, processes: int = 2) -> Path:
    """Corrupt the clean training labels and preprocess them with the clean data set's plans."""
    dataset = study.dataset_of(cell)
    clean = prepare_clean(study, dataset, fold, processes)
    name = noisy_folder_name(cell, fold)
    preprocessed = _folders(study, name)[1]
    wanted = noisy_record(study, cell, fold)
    with _lock(study, name):
        if not is_prepared(preprocessed, wanted):
            _make_noisy(study, cell, fold, clean, wanted, processes)
    return preprocessed


def _make_noisy(study: Study, cell: Cell, fold: int, clean: Path, wanted: dict[str, Any], processes: int) -> None:
    dataset = study.dataset_of(cell)
    name = noisy_folder_name(cell, fold)
    raw, preprocessed = _folders(study, name)
    _check_number(study, name)
    for folder in (raw, preprocessed):
        shutil.rmtree(folder, ignore_errors=True)
    done = subprocess.run(corrupt_command(cell, dataset.clean_id + fold, cell.id + fold, processes))
    if done.returncode:
        raise SettingsError(
            f"noise_tools corrupt failed for cell {cell.name!r} (exit {done.returncode}), see its message above; its "
            "options belong in the cell's corrupt_arguments."
        )
    description = _read_json(raw / "dataset.json")
    trusted = description.get("trusted_cases") or []
    if len(trusted) != cell.trusted:
        raise SettingsError(f"noise_tools wrote {len(trusted)} trusted cases, the cell wants {cell.trusted}.")
    preprocessed.mkdir(parents=True)
    plans = _read_json(clean / f"{PLANS_NAME}.json")
    plans["dataset_name"] = name
    _write_json(preprocessed / f"{PLANS_NAME}.json", plans)
    _write_json(preprocessed / "dataset.json", description)
    shutil.copyfile(clean / "dataset_fingerprint.json", preprocessed / "dataset_fingerprint.json")

    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    with _without_da_setting():
        preprocess_dataset(cell.id + fold, PLANS_NAME, (dataset.configuration,), [processes])
    split = _read_json(clean / "splits_final.json")[0]
    _finish(preprocessed, split, wanted | {"trusted_cases": trusted, "clean_dataset": clean.name})


def _chosen_folds(owner: str, folds: Collection[int], only: int | None) -> Collection[int]:
    if only is None:
        return folds
    check_fold(owner, only, folds)
    return [only]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(DEFAULT_CONFIG), help="configuration file (default: config.yaml here)")
    parser.add_argument("--work", help="working folder for bulky data (default: from the configuration file)")
    parser.add_argument("--cell", nargs="+", help="cells to prepare (default: all)")
    parser.add_argument("--clean", metavar="DATASET", help="prepare only the clean labels of this data set")
    parser.add_argument("--fold", type=int, help="only this fold (default: all that the cells have)")
    parser.add_argument("-np", "--processes", type=int, default=2, help="worker processes (default: 2)")
    args = parser.parse_args(arguments)
    try:
        study = load_study(args.config, args.work)
        cells = [study.cell(name) for name in args.cell] if args.cell else list(study.cells.values())
        set_nnunet_paths(study)
        if args.clean:
            if args.clean not in study.datasets:
                raise SettingsError(f"There is no data set {args.clean!r}; there are {', '.join(study.datasets)}.")
            dataset = study.datasets[args.clean]
            for fold in _chosen_folds(f"Data set {dataset.name!r}", study.folds_of(dataset), args.fold):
                print(f"prepared {prepare_clean(study, dataset, fold, args.processes)}")
            return 0
        for cell in cells:
            for fold in _chosen_folds(f"Cell {cell.name!r}", cell.folds, args.fold):
                print(f"prepared {prepare_noisy(study, cell, fold, args.processes)}")
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
