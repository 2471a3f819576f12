"""Which cases are trusted: read, validate, explain.

`trusted_cases.json` beside `splits_final.json` (a JSON list of case identifiers) wins over the key `"trusted_cases"` of
dataset.json, which `noise_tools corrupt` writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

FILE_NAME = "trusted_cases.json"


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
            "dataset.json beside it (planning copies it from the raw data set, preprocessing alone does not); check a "
            "few labels by hand and write their case identifiers there, for instance "
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


def seen_in_training(ours: dict) -> list[str] | None:
    """The cases whose labels a training was shown, as its checkpoint says; None where it does not.

    Checkpoints before 2026-12-01 say so of some trainers: MetaDCSeg's numbered all its training cases, TrustedOnly kept
    those that it saw.

    Args:
        ours: the entry "metadcseg" of the checkpoint.
    """
    state = ours["state"]
    older = state.get("cases")
    if older is None and is_trusted_only(ours):
        older = state.get("trusted")
    return list(ours.get("seen") or older or ()) or None


def is_trusted_only(ours: dict) -> bool:
    """Whether the trainer saw trusted cases only, by its name, which tells of checkpoints before 2026-12-01."""
    return (ours.get("trainer") or "").startswith("nnUNetTrainerTrustedOnly")
