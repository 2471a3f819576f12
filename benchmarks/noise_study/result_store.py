"""Results on disk: one CSV file per cell, one row per (arm, fold, seed, class).

Rows are added under a lock and the file is replaced as a whole, so that runs in parallel and interrupted runs leave a
file that is complete.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

METRICS = ("dice", "iou", "hd95", "surface_dice", "assd")
COLUMNS = (
    "cell",
    "arm",
    "fold",
    "seed",
    "class",
    *METRICS,
    "cases",
    "missed",
    "steps",
    "seconds_per_step",
    "seconds_total",
    "alpha_auroc",
    "alpha_auroc_disagreeing",
    "trainer",
    "config",
    "code",
    "signature",
    "settings",
    "copied_from",
)
Row = dict[str, str]


def read_rows(results: Path, cell: str | None = None) -> list[Row]:
    """Rows of one cell, or of all cells. Values are strings as in the file; an absent file has no rows."""
    files = [results / f"{cell}.csv"] if cell else sorted(results.glob("*.csv"))
    rows: list[Row] = []
    for file in files:
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as stream:
                rows += list(csv.DictReader(stream))
    return rows


def same_run(row: Row, cell: str, arm: str, fold: int, seed: int) -> bool:
    return (row["cell"], row["arm"], row["fold"], row["seed"]) == (cell, arm, str(fold), str(seed))


def find_signature(results: Path, signature: str) -> list[Row]:
    """Rows of the first run in any cell that was the same training (settings.signature)."""
    matches = [row for row in read_rows(results) if row["signature"] == signature]
    if not matches:
        return []
    first = matches[0]
    key = (first["cell"], first["arm"], int(first["fold"]), int(first["seed"]))
    return [row for row in matches if same_run(row, *key)]


def copied_runs(results: Path, signature: str) -> list[Row]:
    """What tells the copies of a training from it: cell, arm, fold, seed and settings, once per copied run."""
    keys = ("cell", "arm", "fold", "seed", "settings")
    rows = [row for row in read_rows(results) if row["signature"] == signature and row["copied_from"]]
    copies = [{key: row.get(key, "") for key in keys} for row in rows]
    return [copy for place, copy in enumerate(copies) if copy not in copies[:place]]


def format_value(value: object) -> str:
    """Numbers with six significant digits; not-a-number and None become an empty field."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def replace_csv(file: Path, columns: Sequence[str], rows: Iterable[Mapping], lineterminator: str = "\n") -> None:
    """Write a whole file, which stays as it was where writing is interrupted."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator=lineterminator)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, file)


def store_run(results: Path, rows: list[dict[str, object]]) -> Path:
    """Write the rows of one run into its cell's file, in place of older rows of the same run."""
    cell, arm, fold, seed = (rows[0][key] for key in ("cell", "arm", "fold", "seed"))
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"{cell}.csv"
    with FileLock(str(results / f".{cell}.lock")):
        kept = [row for row in read_rows(results, str(cell)) if not same_run(row, cell, arm, int(fold), int(seed))]
        every = [{column: format_value(row.get(column)) for column in COLUMNS} for row in [*kept, *rows]]
        replace_csv(file, COLUMNS, sorted(every, key=lambda row: (row["arm"], int(row["fold"]), int(row["seed"]))))
    return file
