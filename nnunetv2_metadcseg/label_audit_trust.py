"""Label audit, the active loop: which cases to check next, and adding those that a person has checked."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_metadcseg.label_audit_predict import AuditError, read_json
from nnunetv2_metadcseg.preprocessed_labels import outdated_labels
from nnunetv2_metadcseg.trusted_cases import FILE_NAME

TO_CHECK = "to_check.json"
CHECKED = "checked"
TO_LOOK_AT = "to check"  # what a proposal says of every case
ANSWERS = (CHECKED, TO_LOOK_AT, "skip")
LISTED = 10  # cases that a message names
HANDED_OVER = "to_check.{}.json"  # numbered from 1: answers of earlier rounds


def propose(audit: dict[str, Any], top: int, answered: Collection[str] = ()) -> dict[str, str]:
    """The `top` least reliable cases that are not trusted yet, as a file for a person to edit: {case: "to check"}.

    Args:
        audit: content of audit.json. top: at least 1. answered: cases of earlier rounds, which are left out.

    Raises:
        AuditError: top below 1, or nothing left to check.
    """
    if top < 1:
        raise AuditError(f"--top is {top}, expected at least 1.")
    ranked = sorted(audit["cases"].items(), key=lambda item: item[1]["rank"])
    chosen = [case for case, values in ranked if not values["trusted"] and case not in answered][:top]
    if not chosen:
        raise AuditError("Every audited case is trusted or answered already, so there is none left to check.")
    return dict.fromkeys(chosen, TO_LOOK_AT)


def write_proposal(out: Path, top: int) -> Path:
    """Writes OUT/to_check.json from OUT/audit.json; raises AuditError if there is no audit or an edited proposal."""
    file = out / TO_CHECK
    audit = read_audit(out / "audit.json")
    if is_answered(file):
        raise AuditError(
            f"{file} holds answers that you have not handed over; to get a new proposal do so with --confirm, rename "
            f"it to {free_name(out).name} (the cases in it that you answered are left out then), or remove it."
        )
    write_json(file, propose(audit, top, answered_cases(out)))
    return file


def answered_cases(out: Path) -> set[str]:
    """Cases that a person has checked or skipped in earlier rounds; raises AuditError as `read_answers`."""
    return {case for file in handed_over(out) for case, answer in read_answers(file).items() if answer != TO_LOOK_AT}


def handed_over(out: Path) -> list[Path]:
    """The answers of earlier rounds."""
    start, end = HANDED_OVER.split("{}")
    files = sorted(out.glob(HANDED_OVER.format("*")))
    return [file for file in files if file.name.removeprefix(start).removesuffix(end).isdecimal()]


def free_name(out: Path) -> Path:
    """That of the next round's answers."""
    names = (out / HANDED_OVER.format(number) for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def set_aside(file: Path) -> Path:
    """Renames confirmed answers, so that the next proposal may have their name; where they lie now.

    Files of another name stay, and those in a folder that cannot be written.
    """
    if file.name == TO_CHECK:
        with contextlib.suppress(OSError):
            return file.rename(free_name(file.parent))
    return file


def read_audit(file: Path) -> dict[str, Any]:
    """Content of audit.json; raises AuditError where it is missing or no audit."""
    audit = read_json(file, "run the audit first")
    cases = audit.get("cases") if isinstance(audit, dict) else None
    if not isinstance(cases, dict) or not all(
        isinstance(v, dict) and {"rank", "trusted"} <= set(v) for v in cases.values()
    ):
        raise AuditError(f"{file} is not an audit: expected ranked cases in it; run the audit again with --overwrite.")
    return audit


def read_answers(file: Path) -> dict[str, str]:
    """Content of to_check.json: {case: answer}.

    Raises:
        AuditError: missing, not such a file, or an unknown answer.
    """
    answers = read_json(file, f"expected the edited {TO_CHECK}, which --confirm renames to {HANDED_OVER.format(1)}")
    if not isinstance(answers, dict):
        raise AuditError(
            f'{file} holds a {type(answers).__name__}, expected {{"case": "{CHECKED}", ...}}; correct or remove it.'
        )
    wrong = [(case, answer) for case, answer in answers.items() if answer not in ANSWERS]
    if wrong:
        raise AuditError(f"{file} says {wrong[0][1]!r} for {wrong[0][0]}, expected one of {list(ANSWERS)}; correct it.")
    return answers


def is_answered(file: Path) -> bool:
    """Whether there is such a file, and a person has answered for some case; raises AuditError as `read_answers`."""
    return file.is_file() and bool(set(read_answers(file).values()) - {TO_LOOK_AT})


def confirmed_cases(answers: dict[str, str], known: Sequence[str], file: Path) -> list[str]:
    """The cases that a person marked as checked.

    Raises:
        AuditError: an unknown case, or nothing checked.
    """
    unknown = sorted(set(answers) - set(known))
    if unknown:
        raise AuditError(f"{file} names {unknown[0]}, which is not a case of this data set; correct the identifier.")
    checked = sorted(case for case, answer in answers.items() if answer == CHECKED)
    if not checked:
        raise AuditError(
            f'{file} marks no case as "{CHECKED}", so nothing is added; edit it after looking at the labels.'
        )
    return checked


def confirm(
    file: Path,
    preprocessed: Path,
    trusted: Sequence[str],
    known: Sequence[str],
    raw: Path | None = None,
    ending: str = "",
) -> tuple[list[str], Path]:
    """Adds the checked cases of `file` to trusted_cases.json of the preprocessed data set.

    Args:
        preprocessed: the data set's folder. trusted: the cases declared until now, wherever they are declared.
        known: all cases. raw: the data set's folder in nnUNet_raw, if there is one. ending: of label files.

    Returns:
        The cases that are new in the list, and the list's file.

    Raises:
        AuditError: the answers are of another data set or cannot be used, a declared case does not exist, or a label
            was corrected in the raw data set only.
    """
    answers = read_answers(file)
    identifier = audited_identifier(file, preprocessed.name)
    checked = confirmed_cases(answers, known, file)
    unknown = sorted(set(trusted) - set(known))
    if unknown:
        raise AuditError(
            f"The trusted cases of {preprocessed.name} name {unknown[0]}, which is none of its cases (for instance "
            f"{', '.join(sorted(known)[:3])}, without file ending); correct {FILE_NAME} in {preprocessed}, or "
            '"trusted_cases" in its dataset.json where there is no such file.'
        )
    if raw is not None:
        check_preprocessed_labels(checked, preprocessed, raw, ending, identifier)
    target = preprocessed / FILE_NAME
    write_json(target, sorted({*trusted, *checked}))
    return sorted(set(checked) - set(trusted)), target


def audited_identifier(answers: Path, dataset: str) -> str | None:
    """Folder of the preprocessed cases that the audit beside the answers is of; None where that is not known.

    Raises:
        AuditError: the audit is of another data set; case names may agree.
    """
    file = answers.parent / "audit.json"
    audit = read_audit(file) if file.is_file() else {}
    audited = audit.get("dataset", dataset)
    if audited != dataset:
        raise AuditError(f"{answers} belongs to an audit of {audited}, but -d names {dataset}; correct -d or the file.")
    return audit.get("data_identifier")


def check_preprocessed_labels(
    cases: Sequence[str], preprocessed: Path, raw: Path, ending: str, identifier: str | None = None
) -> None:
    """Raises AuditError where a raw label was corrected, but training would still read the label from before.

    Args: as of `outdated_labels`.
    """
    file = raw / "dataset.json"
    content = read_json(file) if file.is_file() else {}
    content = content if isinstance(content, dict) else {}
    outdated = outdated_labels(cases, preprocessed, raw, content, ending, identifier)
    if outdated:
        named = ", ".join(list(outdated)[:LISTED]) + (" ..." if len(outdated) > LISTED else "")
        also = f" (the same holds for {len(outdated)} cases: {named})" if len(outdated) > 1 else ""
        raise AuditError(f"{next(iter(outdated.values()))}, then confirm again{also}.")


def write_json(file: Path, content: Any) -> None:
    """Whole or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, file)
