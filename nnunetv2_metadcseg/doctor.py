"""`metadcseg doctor`: checks what training needs and names, for each fault, the line that mends it.

The trainer is resolved by nnU-Net's own function in a fresh process, because that is what decides whether
`nnUNetv2_train -tr ...` finds it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DEFAULT_TRAINER = "nnUNetTrainerMetaDCSeg"
OWN_PACKAGE = "nnunetv2-metadcseg"
PACKAGES = (OWN_PACKAGE, "nnunetv2", "torch", "batchgeneratorsv2", "acvl-utils", "SimpleITK", "numpy")
PATH_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
LEAST_NUMBERS = {"nnUNet_def_n_proc": 1, "nnUNet_n_proc_DA": 0}
MINIMUM_NNUNET = (2, 8, 1)
TRUE_VALUES = ("true", "1", "t")  # what nnU-Net takes for true in nnUNet_compile
FEW_CORES = 4
IMPORT_ERROR = re.compile(r"\b(ImportError|ModuleNotFoundError):")

# Runs in the fresh process: one JSON line behind a marker, since nnU-Net prints to stdout as well.
MARKER = "metadcseg-doctor:"
PROBE = f"""
import json, sys
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
found = {{"cuda": torch.cuda.is_available(), "torch": torch.__version__}}
try:
    trainer = recursive_find_trainer_class_by_name(sys.argv[1])
    found["trainer"] = f"{{trainer.__module__}}.{{trainer.__qualname__}}"
except Exception as error:
    found["error"] = f"{{type(error).__name__}}: {{error}}"
print({MARKER!r} + json.dumps(found))
"""


@dataclass(frozen=True)
class Finding:
    """One checked thing. `status` is "ok", "hint" (works, but slow or doubtful) or "missing" (training would fail)."""

    status: str
    text: str
    mend: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `metadcseg doctor`."""
    parser.add_argument("-tr", dest="trainer", default=DEFAULT_TRAINER, help=f"trainer (default: {DEFAULT_TRAINER})")


def run(args: argparse.Namespace) -> int:
    """Prints all findings; returns 1 where something is missing, else 0."""
    missing = 0
    for finding in diagnose(args.trainer, os.environ):
        missing += finding.status == "missing"
        print(f"{finding.status:<8}{finding.text}", flush=True)
        if finding.mend:
            print(f"{'':<8}mend it with: {finding.mend}", flush=True)
    print(f"{missing} missing: run the lines after 'mend it with'" if missing else "all is there")
    return 1 if missing else 0


def diagnose(trainer: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yields every finding, the slow ones (a fresh process imports torch and nnU-Net) last."""
    yield from check_versions()
    yield from check_paths(environment)
    cores = os.cpu_count() or 1
    yield from check_numbers(environment, cores)
    yield check_trainer_folder(environment)
    probed = probe(trainer, environment)
    yield check_trainer(trainer, probed, environment)
    yield from check_device(environment, probed, cores)


def check_versions() -> Iterator[Finding]:
    """Python and the packages; the version of nnU-Net must be one that reads nnUNet_extTrainer as we use it."""
    yield Finding("ok", f"python {platform.python_version()} ({sys.executable})")
    for package in PACKAGES:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield Finding(
                "missing", f"{package} is not installed", f"{sys.executable} -m pip install {source(package)}"
            )
            continue
        if package == "nnunetv2":
            yield check_nnunet_version(version)
        else:
            yield Finding("ok", f"{package} {version}")


def source(package: str) -> str:
    """What pip installs a package from; this one is in no package index."""
    if package != OWN_PACKAGE:
        return package
    folder = Path(__file__).resolve().parents[1]  # the source, unless this is an installed copy
    return f"'{folder}'" if (folder / "pyproject.toml").is_file() else "'<folder of the source>'"


def check_nnunet_version(version: str) -> Finding:
    """nnU-Net must be at least 2.8.1 and below 3."""
    release = re.match(r"\d+(\.\d+)*", version)  # without what may follow: rc1, .dev0, +local
    digits = tuple(map(int, release[0].split("."))) if release else ()
    mend = f"{sys.executable} -m pip install 'nnunetv2>=2.8.1,<3'"
    if digits < MINIMUM_NNUNET:
        return Finding("missing", f"nnunetv2 {version}, expected at least 2.8.1", mend)
    if digits[0] >= 3:
        return Finding("hint", f"nnunetv2 {version} is newer than this package was tested with (2.8)", mend)
    return Finding("ok", f"nnunetv2 {version}")


def check_paths(environment: Mapping[str, str]) -> Iterator[Finding]:
    """nnU-Net's three folders must be named, exist and be writable (the raw data may be read-only)."""
    for variable in PATH_VARIABLES:
        value = environment.get(variable)
        if not value:
            yield Finding("missing", f"{variable} is not set", f"export {variable}=/path/to/{variable}")
        elif value.startswith("~/"):  # in quotes a shell leaves it as it is, and so does nnU-Net
            mend = f'export {variable}="$HOME{value[1:]}"'
            yield Finding("missing", f"{variable}={value} starts with a ~ that nothing expands", mend)
        elif not Path(value).is_dir():
            yield Finding("missing", f"{variable}={value} is not a folder", f"mkdir -p '{value}'")
        elif variable != "nnUNet_raw" and not os.access(value, os.W_OK):
            yield Finding("missing", f"{variable}={value} is not writable", f"chmod u+w '{value}'")
        else:
            yield Finding("ok", f"{variable}={value}")


def check_numbers(environment: Mapping[str, str], cores: int) -> Iterator[Finding]:
    """nnU-Net ends with an error where one of these is set, but no whole number, or where it shall start no process."""
    for variable, least in LEAST_NUMBERS.items():
        value = environment.get(variable)
        if value is not None and not _is_number(value):
            yield Finding("missing", f"{variable}={value} is not a whole number", f"unset {variable}")
        elif value is not None and int(value) < least:
            text = f"{variable}={value}, expected at least {least}: the validation after a whole training would fail"
            yield Finding("missing", text, f"export {variable}={cores}")


def check_trainer_folder(environment: Mapping[str, str]) -> Finding:
    """nnUNet_extTrainer may name several folders; ours must be one of them."""
    from nnunetv2_metadcseg.cli import ext_path

    value = environment.get("nnUNet_extTrainer", "")
    if not value:
        return Finding("missing", "nnUNet_extTrainer is not set", 'export nnUNet_extTrainer="$(metadcseg ext-path)"')
    folders = [Path(folder).resolve() for folder in value.split(os.pathsep) if folder.strip()]
    if ext_path() not in folders:
        mend = f'export nnUNet_extTrainer="$nnUNet_extTrainer{os.pathsep}$(metadcseg ext-path)"'
        return Finding("missing", f"nnUNet_extTrainer={value} does not name {ext_path()}", mend)
    return Finding("ok", f"nnUNet_extTrainer={value}")


def probe(trainer: str, environment: Mapping[str, str]) -> dict:
    """What a fresh python process finds: CUDA, and the trainer class or the error of nnU-Net's search.

    The working folder is kept off the module search path (python -c puts it there), as for an installed command.
    """
    command = [sys.executable, "-c", "import sys; sys.path[:] = [p for p in sys.path if p]\n" + PROBE, trainer]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(MARKER):
            return json.loads(line.removeprefix(MARKER))
    last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return {"error": f"a fresh python process ended with status {done.returncode}: {last_line}"}


def check_trainer(trainer: str, probed: Mapping, environment: Mapping[str, str]) -> Finding:
    """Did nnU-Net's own search find the trainer?"""
    if "trainer" in probed:
        return Finding("ok", f"nnU-Net finds {trainer}: {probed['trainer']}")
    error = str(probed["error"])
    text = f"nnU-Net does not find {trainer}: {error.split('. ')[0]}"
    if IMPORT_ERROR.search(error):
        mend = f"{sys.executable} -m pip install --force-reinstall --no-deps {source(OWN_PACKAGE)}"
        return Finding("missing", text, mend)
    if not error.startswith("RuntimeError: Could not find requested nnunet trainer"):
        return Finding("missing", f"{text}; correct what the error names")
    folder = check_trainer_folder(environment)
    if folder.status == "ok":
        text += f"; correct the name, or leave -tr out for {DEFAULT_TRAINER}"
    return Finding("missing", text, folder.mend)


def check_device(environment: Mapping[str, str], probed: Mapping, cores: int) -> Iterator[Finding]:
    """With a CUDA device nothing is to be set; without one, three variables decide how long an epoch takes."""
    if "cuda" not in probed:
        return
    if probed["cuda"]:
        yield Finding("ok", f"torch {probed['torch']} sees a CUDA device")
        return
    yield Finding("ok", f"torch {probed['torch']} sees no CUDA device: train with -device cpu on {cores} core(s)")
    yield from check_cpu_variables(environment, cores)


def check_cpu_variables(environment: Mapping[str, str], cores: int) -> Iterator[Finding]:
    """Data augmentation in the main process, no compiling, no more helper processes than cores.

    nnUNet_n_proc_DA=0 is for training only: nnU-Net's planner takes it as a number of threads and refuses 0.
    """
    workers = environment.get("nnUNet_n_proc_DA")
    if cores <= FEW_CORES and workers != "0":
        text = (
            f"nnUNet_n_proc_DA is {workers or 'not set'}: augmentation workers take the training's cores (set it after "
            "planning: nnU-Net's planner refuses 0)"
        )
        yield Finding("hint", text, "export nnUNet_n_proc_DA=0")
    else:
        yield Finding("ok", f"nnUNet_n_proc_DA={workers or ''}")
    if environment.get("nnUNet_compile", "f").lower() in TRUE_VALUES:
        yield Finding("hint", "nnUNet_compile asks for torch.compile, slow without a GPU", "export nnUNet_compile=f")
    else:
        yield Finding("ok", f"nnUNet_compile={environment.get('nnUNet_compile', '')}")
    processes = environment.get("nnUNet_def_n_proc", "8")
    if _is_number(processes) and int(processes) > cores:
        text = f"nnUNet_def_n_proc is {processes}: more helper processes than cores"
        yield Finding("hint", text, f"export nnUNet_def_n_proc={cores}")
    elif _is_number(processes) and int(processes) > 0:  # else check_numbers has said so
        yield Finding("ok", f"nnUNet_def_n_proc={processes}")
    # With -device cpu nnU-Net sets torch's threads itself; only its helper processes follow the variable.
    yield Finding("ok", f"OMP_NUM_THREADS={environment.get('OMP_NUM_THREADS', '')} (-device cpu takes all cores)")


def _is_number(value: str) -> bool:
    return value.strip().isdecimal()
