"""What nnU-Net's preprocessing noted of where classes lie: which cases hold them, and how many patches show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

LOOKED_AT = 50  # cases, for the size of structures


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


def unlabelled_cases(cases: Iterable[str], locations: Callable[[str], dict]) -> list[str]:
    """Those of the cases in which all voxels are ignored. nnU-Net notes annotated ones only with an ignore label.

    Args:
        cases, locations: as for `absent_classes`.
    """
    return [case for case in cases if not all(map(len, _annotated(locations(case))))]


def _annotated(locations: dict) -> list[Sequence]:
    """Sampled voxels that are not ignored: nnU-Net's key for them is -1 and all labels."""
    return [voxels for key, voxels in locations.items() if -1 in _values(key)]


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
