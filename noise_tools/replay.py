"""`noise_tools replay`: the corrupted data set of a manifest, made again from the clean one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noise_tools import manifest as manifests
from noise_tools import noise
from noise_tools.corrupt import find_test_files, put_test_files, write_dataset_json, write_label
from noise_tools.errors import NoiseToolsError
from noise_tools.output import check_not_replaced, copy_new, output_folder, reserved, written_whole
from noise_tools.parallel import run_cases
from noise_tools.raw_dataset import RawDataset, check_files, open_dataset, raw_root, read_label

if TYPE_CHECKING:
    import argparse


@dataclass(frozen=True)
class ReplayJob:
    """Everything a worker needs."""

    dataset: RawDataset
    entries: dict[str, Any]
    labels_folder: Path


def run(args: argparse.Namespace) -> int:
    """Entry point of the command line."""
    content = manifests.read(args.manifest)
    dataset = open_dataset(args.dataset)
    name = args.name or f"{dataset.short_name}Noisy"
    with reserved(raw_root(), args.output):
        folder = output_folder(raw_root(), args.output, name, args.overwrite, dataset.folder)
        same = replay(dataset, folder, args.manifest, content, args.processes)
    print(f"Wrote {folder}: {len(content['cases'])} labels, {same} of them with the bytes the manifest records.")
    if same < len(content["cases"]):
        print(f"The others differ; the manifest was written with {_named(content['versions'])}.")
    return 0


def replay(dataset: RawDataset, folder: Path, manifest: Path, content: dict[str, Any], processes: int = 1) -> int:
    """Writes the data set to `folder` and returns how many labels have the bytes that the manifest records.

    Raises:
        NoiseToolsError: cases that the data set does not have, or whose clean label is not the one of the manifest.
    """
    missing = sorted({*content["cases"], *content["test_cases"]} - set(dataset.cases))
    if missing:
        raise NoiseToolsError(
            f"{dataset.name} lacks {len(missing)} cases of {manifest.name} (first: {missing[0]}); the manifest belongs "
            f"to {content['source']}, give that with all of its cases."
        )
    check_files(dataset)
    check_not_replaced(folder, dataset.files)
    test_files = find_test_files(dataset, content["test_cases"])
    with written_whole(folder) as temporary:
        labels = temporary / "labelsTr"
        labels.mkdir()
        job = ReplayJob(dataset, content["cases"], labels)
        training = sorted(content["cases"])
        same = sum(run_cases(replay_case, job, training, processes, "Replaying").values())
        copy_new(manifest, temporary / manifests.FILE_NAME)
        write_dataset_json(dataset, folder, temporary, training, content["trusted_cases"])
        put_test_files(test_files, temporary)
    return same


def replay_case(job: ReplayJob, identifier: str) -> bool:
    """Writes one label; whether its bytes are those of the manifest."""
    case, entry = job.dataset.cases[identifier], job.entries[identifier]
    if manifests.sha256(case.label) != entry["clean_sha256"]:
        raise NoiseToolsError(
            f"Case {identifier}: {case.label} is not the clean label the manifest was made from; restore that file."
        )
    label, spacing = read_label(job.dataset, case)
    noisy = label
    for step in entry.get("steps", []):
        noisy = noise.load(step["type"]).apply(noisy, spacing, step["params"])
    target = job.labels_folder / f"{identifier}{job.dataset.file_ending}"
    write_label(job.dataset, case, label, noisy, target)
    return manifests.sha256(target) == entry["sha256"]


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())
