"""Label audit, the numbers for other programs: audit.csv and audit.json."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_metadcseg.label_audit_findings import Audit
from nnunetv2_metadcseg.label_audit_output import MAPS

CASE_COLUMNS = (
    *("rank", "case", "label", "reliability", "direction", "bias", "shift", "distance", "unit"),
    *("missing_parts", "extra_parts", "disagreement", "suspicious_voxels", "out_of_fold", "trusted", "trainer_belief"),
    *("suspicion_file", "proposed_file", "given_file", "decided_by"),
)
_LABEL_KEYS = {"reliability", "disagreement", "direction", "bias", "shift", "distance", "missing_parts", "extra_parts"}


def rows(audit: Audit, ending: str) -> list[dict[str, Any]]:
    """One row per case (label empty) followed by one per structure."""
    found = []
    for f in audit.findings:
        files = {f"{kind}_file": f"{kind}/{f.case}{ending}" for kind in MAPS}
        common = {"rank": f.rank, "case": f.case, "out_of_fold": f.out_of_fold, "trusted": f.trusted} | files
        common["unit"] = f.unit
        found.append(
            common
            | {"label": "", "reliability": f.reliability, "direction": f.direction, "disagreement": f.rate}
            | {
                "decided_by": f.decided_by,
                "suspicious_voxels": f.suspicious_voxels,
                "trainer_belief": float("nan") if f.belief is None else f.belief,
            }
        )
        for label in f.labels:
            d = label.direction.as_dict()
            d["direction"] = d.pop("kind")
            own = {"label": label.name, "reliability": label.reliability, "disagreement": label.rate}
            found.append(common | own | d)
    return found


def write_csv(audit: Audit, file: Path, ending: str) -> None:
    """audit.csv: numbers with six significant digits, nothing where there is no number."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, CASE_COLUMNS, restval="")
        writer.writeheader()
        for row in rows(audit, ending):
            writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value


def as_json(audit: Audit, ending: str) -> dict[str, Any]:
    """audit.json: as the CSV, nested, with what the audit was made of."""
    cases: dict[str, dict] = {}
    for row in rows(audit, ending):
        row = {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
        if row["label"] == "":
            cases[row["case"]] = {name: value for name, value in row.items() if name != "label"} | {"labels": {}}
        else:
            kept = {name: value for name, value in row.items() if name in _LABEL_KEYS}
            cases[row["case"]]["labels"][row["label"]] = kept
    return audit.about | {"cases": cases}
