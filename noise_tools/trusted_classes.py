"""Which classes no trusted case holds: nothing vouches for their labels in a training on this data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from noise_tools.raw_dataset import RawDataset, read_label


def classes_not_trusted(dataset: RawDataset, trusted: Sequence[str], training: Sequence[str]) -> list[str]:
    """Names of the classes or regions that some training case holds, but no trusted one, in the order of dataset.json.

    Only as many labels are read as it takes.

    Args:
        trusted, training: case identifiers.

    Raises:
        NoiseToolsError: a label cannot be read.
    """
    missing = _not_found(dataset, dataset.labels.regions, trusted)
    others = (case for case in training if case not in set(trusted))
    nowhere = _not_found(dataset, missing, others)
    return [name for name in missing if name not in nowhere]


def _not_found(
    dataset: RawDataset, wanted: Mapping[str, tuple[int, ...]], cases: Iterable[str]
) -> dict[str, tuple[int, ...]]:
    missing = dict(wanted)
    for case in cases:
        if not missing:
            break
        there = set(np.unique(read_label(dataset, dataset.cases[case])[0]).tolist())
        missing = {name: values for name, values in missing.items() if there.isdisjoint(values)}
    return missing
