"""Which cases are trusted: read, validate, explain.

`trusted_cases.json` beside `splits_final.json` (a JSON list of case identifiers) wins over the key `"trusted_cases"` of
dataset.json, which `noise_tools corrupt` writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

FILE_NAME = "trusted_cases.json"
LOOKED_AT = 50  # cases, for the size of structures


class TrustedCasesError(ValueError):
    """The list of trusted cases is missing or cannot be used."""


def declared_cases(preprocessed_folder: str | Path, dataset_json: dict) -> list[str]:
    """The declared trusted cases of a data set, sorted; no list or an empty one is none.

    Args:
        preprocessed_folder: the data set's folder in nnUNet_preprocessed (where splits_final.json lies).
        dataset_json: content of dataset.json.

    Raises:
        TrustedCasesError: not a list of strings.
    """
    file = Path(preprocessed_folder) / FILE_NAME
    if file.is_file():
        source = str(file)
        try:
            cases = json.loads(file.read_text(encoding="utf-8-sig"))  # editors on Windows put a mark in front
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise TrustedCasesError(
                f"{file} is not valid JSON in UTF-8 ({error}); write a list of case identifiers."
            ) from error
    else:
        source = 'the key "trusted_cases" of dataset.json'
        cases = dataset_json.get("trusted_cases")
    cases = [] if cases is None else cases
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        raise TrustedCasesError(f"{source} holds {cases!r:.80}, expected a JSON list of case identifiers (strings).")
    return sorted(set(cases))


def read_trusted_cases(preprocessed_folder: str | Path, dataset_json: dict) -> list[str]:
    """As `declared_cases`, for a training that needs some.

    Raises:
        TrustedCasesError: none declared, or not a list of strings.
    """
    cases = declared_cases(preprocessed_folder, dataset_json)
    if not cases:
        raise TrustedCasesError(
            f'No trusted cases: expected {Path(preprocessed_folder) / FILE_NAME} or the key "trusted_cases" in '
            "dataset.json; check a few labels by hand and write their case identifiers there, for instance "
            '["case_01", "case_07", "case_12"], or train nnUNetTrainerMetaDCSegSelfTrusted, which chooses them itself.'
        )
    return cases


def trusted_training_cases(declared: Sequence[str], training: Sequence[str], known: Sequence[str]) -> list[str]:
    """The trusted cases among a fold's training cases.

    Args:
        declared: trusted cases of the data set. training: the fold's training cases. known: all preprocessed cases.

    Raises:
        TrustedCasesError: unknown identifiers; none in this fold's training split; or nothing but trusted cases.
    """
    check_known(declared, known)
    here = sorted(set(declared) & set(training))
    if not here:
        raise TrustedCasesError(
            f"None of the {len(declared)} trusted cases is in this fold's training split; train another fold or `all`, "
            "or declare trusted cases among the training cases."
        )
    if len(here) == len(set(training)):
        raise TrustedCasesError(
            f"All {len(here)} training cases are trusted, so there is no doubtful label to weigh; "
            "train stock nnUNetTrainer, or declare fewer trusted cases."
        )
    return here


def check_known(declared: Sequence[str], known: Sequence[str]) -> None:
    """Raises TrustedCasesError where a declared trusted case is none of the `known` preprocessed cases."""
    unknown = sorted(set(declared) - set(known))
    if unknown:
        raise TrustedCasesError(
            f"Trusted cases {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''} are not among the "
            f"{len(known)} preprocessed cases (for instance {', '.join(sorted(known)[:3])}); correct the identifiers "
            "(no file ending)."
        )


def trusted_in_training(ours: dict, declared: Sequence[str]) -> list[str]:
    """The cases that a training took as trusted: those it chose itself, else those declared then, or else now.

    Args:
        ours: the entry "metadcseg" of its checkpoint. declared: trusted cases of the data set now.
    """
    state = ours["state"]
    return list(state.get("self_trusted", {}).get("chosen") or state.get("trusted") or declared)


def absent_classes(
    labels: dict, trusted: Sequence[str], training: Sequence[str], locations: Callable[[str], dict]
) -> list[str]:
    """Names of the classes or regions that some training case holds, but no trusted one.

    Only as many cases are looked at as it takes: all of them where a class exists nowhere.

    Args:
        labels: the entry "labels" of dataset.json. trusted, training: identifiers of the fold.
        locations: maps a case to nnU-Net's `class_locations`: {class or region: sampled voxels}.
    """
    names = _foreground(labels)
    missing = _not_found(names, trusted, locations)
    elsewhere = missing - _not_found(missing, (case for case in training if case not in set(trusted)), locations)
    return [name for value, name in names.items() if value in elsewhere]


def empty_cases(labels: dict, cases: Iterable[str], locations: Callable[[str], dict]) -> list[str]:
    """Those of the cases whose label holds no class or region.

    Args:
        labels, locations: as for `absent_classes`.
    """
    names = _foreground(labels)
    return [case for case in cases if len(_not_found(names, [case], locations)) == len(names)]


def patches_per_view(
    labels: dict, cases: Sequence[str], locations: Callable[[str], dict], patch_size: Sequence[int]
) -> float:
    """Patches that show the structure of a case once: the median over the cases, at least 1.

    As many as it takes to cover the box around all classes. One where a patch holds the whole structure; of 2d patches
    of a volume as many as it has slices with structure.

    Args:
        labels, locations: as for `absent_classes`. cases: identifiers; evenly spaced ones of many are looked at.
        patch_size: of 2 or 3 axes, as in the plans.
    """
    values = _foreground(labels)
    counts = []
    for case in cases[:: max(1, len(cases) // LOOKED_AT)]:
        found = [voxels for key, voxels in locations(case).items() if _values(key) in values and len(voxels)]
        if found:
            voxels = np.concatenate(found)[:, 1:]  # the first column is the channel
            extent = np.ptp(voxels, axis=0) + 1
            patch = [1] * (len(extent) - len(patch_size)) + list(patch_size)
            counts.append(float(np.maximum(extent / patch, 1).prod()))
    return float(np.median(counts)) if counts else 1.0


def foreground_heads(names: Sequence[str], labels: dict, heads: Sequence[int | Sequence[int]]) -> list[bool]:
    """Which of a network's foreground `heads` (label values, or regions) have one of these names."""
    named = [_values(labels[name]) for name in names]
    return [_values(head) in named for head in heads]


def _foreground(labels: dict) -> dict[frozenset[int], str]:
    """Names of the classes or regions by their label values."""
    return {_values(value): name for name, value in labels.items() if name != "ignore" and _values(value) != {0}}


def _not_found(wanted: Iterable[frozenset], cases: Iterable[str], locations: Callable[[str], dict]) -> set[frozenset]:
    """Those of `wanted` for which no case has a voxel."""
    missing = set(wanted)
    for case in cases:
        if not missing:
            break
        missing -= {_values(key) for key, voxels in locations(case).items() if len(voxels)}
    return missing


def _values(label: int | Sequence[int]) -> frozenset[int]:
    """The label values of a class or region."""
    return frozenset(label) if isinstance(label, (list, tuple)) else frozenset([int(label)])
