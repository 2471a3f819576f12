"""What the source of a corruption says about its own cases: which are trusted, and which are corrupted already."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnunetv2_metadcseg.trusted_cases import TrustedCasesError, declared_cases
from noise_tools import manifest as manifests
from noise_tools.errors import NoiseToolsError
from noise_tools.output import other_folder
from noise_tools.raw_dataset import RawDataset


@dataclass(frozen=True)
class KnownCases:
    """What is known about labels before any is corrupted.

    Attributes:
        declared: the trusted cases that the source declares, sorted, without those that are corrupted.
        contradicted: those that it declares trusted though they are corrupted.
        corrupted: cases that it says are corrupted: they are never trusted.
        others_clean: whether the rest is known to be right, as in a data set that noise_tools made.
    """

    declared: tuple[str, ...] = ()
    contradicted: tuple[str, ...] = ()
    corrupted: frozenset[str] = field(default_factory=frozenset)
    others_clean: bool = False


def known_cases(dataset: RawDataset) -> KnownCases:
    """Reads the source's lists of trusted cases and its noise manifest, if it has them.

    Raises:
        NoiseToolsError: a list or manifest that cannot be read, or trusted cases that the data set does not have.
    """
    path = dataset.folder / manifests.FILE_NAME
    manifest = manifests.read(path) if path.is_file() else None
    corrupted = manifests.corrupted_cases(manifest) if manifest else frozenset()
    declared = _declared(dataset)
    right = tuple(name for name in declared if name not in corrupted)
    wrong = tuple(name for name in declared if name in corrupted)
    return KnownCases(right, wrong, corrupted, others_clean=manifest is not None)


def _declared(dataset: RawDataset) -> list[str]:
    """As the trainings read them; of data that is not preprocessed, a trusted_cases.json beside dataset.json counts."""
    try:
        declared = declared_cases(other_folder("nnUNet_preprocessed", dataset.name) or dataset.folder, dataset.json)
    except TrustedCasesError as error:
        raise NoiseToolsError(str(error)) from error
    unknown = [name for name in declared if name not in dataset.cases]
    if unknown:
        raise NoiseToolsError(
            f"{dataset.name} declares the trusted cases {', '.join(unknown[:5])}, which it does not have; its cases "
            f'like {next(iter(dataset.cases))}: correct trusted_cases.json or "trusted_cases" in dataset.json.'
        )
    return declared
