"""Label audit, the active loop: which cases to check next, and adding those that a person has checked."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_metadcseg.label_audit_predict import AuditError
from nnunetv2_metadcseg.trusted_cases import FILE_NAME

TO_CHECK = "to_check.json"
CHECKED = "checked"
ANSWERS = (CHECKED, "to check", "skip")


def propose(audit: dict[str, Any], top: int) -> dict[str, str]:
    """The `top` least reliable cases that are not trusted yet, as a file for a person to edit: {case: "to check"}.

    Args:
        audit: content of audit.json. top: at least 1.

    Raises:
        AuditError: top below 1, or nothing left to check.
    """
    if top < 1:
        raise AuditError(f"--top is {top}, expected at least 1.")
    ranked = sorted(audit["cases"].items(), key=lambda item: item[1]["rank"])
    chosen = [case for case, values in ranked if not values["trusted"]][:top]
    if not chosen:
        raise AuditError("Every audited case is trusted already, so there is none left to check.")
    return dict.fromkeys(chosen, ANSWERS[1])


def write_proposal(out: Path, top: int) -> Path:
    """Writes OUT/to_check.json from OUT/audit.json; raises AuditError if there is no audit or an edited proposal."""
    file = out / TO_CHECK
    proposal = propose(read_json(out / "audit.json", "run the audit first"), top)
    if file.is_file() and CHECKED in read_json(file, "").values():
        raise AuditError(f"{file} holds checked cases already; hand it over with --confirm and remove it first.")
    write_json(file, proposal)
    return file


def confirmed_cases(answers: Any, known: Sequence[str], file: Path) -> list[str]:
    """The cases that a person marked as checked.

    Raises:
        AuditError: not a {case: answer} file, an unknown case or answer, or nothing checked.
    """
    if not isinstance(answers, dict):
        raise AuditError(f'{file} holds a {type(answers).__name__}, expected {{"case": "{CHECKED}", ...}}.')
    wrong = [(case, answer) for case, answer in answers.items() if answer not in ANSWERS]
    if wrong:
        raise AuditError(f"{file} says {wrong[0][1]!r} for {wrong[0][0]}, expected one of {list(ANSWERS)}.")
    unknown = sorted(set(answers) - set(known))
    if unknown:
        raise AuditError(f"{file} names {unknown[0]}, which is not a case of this data set; correct the identifier.")
    checked = sorted(case for case, answer in answers.items() if answer == CHECKED)
    if not checked:
        raise AuditError(
            f'{file} marks no case as "{CHECKED}", so nothing is added; edit it after looking at the labels.'
        )
    return checked


def confirm(file: Path, preprocessed: Path, trusted: Sequence[str], known: Sequence[str]) -> tuple[list[str], Path]:
    """Adds the checked cases of `file` to trusted_cases.json of the preprocessed data set.

    Args:
        trusted: the cases declared until now, wherever they are declared. known: all cases.

    Returns:
        The cases that are new in the list, and the list's file.
    """
    checked = confirmed_cases(read_json(file, "expected the edited to_check.json"), known, file)
    target = preprocessed / FILE_NAME
    write_json(target, sorted({*trusted, *checked}))
    return sorted(set(checked) - set(trusted)), target


def read_json(file: Path, advice: str) -> Any:
    """Raises AuditError with `advice` where the file is missing or broken."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError as error:
        raise AuditError(f"There is no {file}; {advice}.") from error
    except json.JSONDecodeError as error:
        raise AuditError(f"{file} is not valid JSON ({error}); correct it.") from error


def write_json(file: Path, content: Any) -> None:
    """Whole or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, file)
