"""`noise_tools report A B`: how two folders of label files differ, as a CSV table and one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from noise_tools.label_folders import LabelFolder
    from noise_tools.metrics import LabelValue

CSV_NAME, PAGE_NAME = "report.csv", "report.html"


@dataclass(frozen=True)
class Row:
    """Values of one label in one case; the keys of `values` are `noise_tools.metrics.METRICS`."""

    case: str
    label: str
    values: dict[str, float]


@dataclass(frozen=True)
class Scope:
    """What of two label maps is compared: not what either ignores, and only some labels where `only` names them."""

    ignore: int | None = None
    only: tuple[int, ...] | None = None

    def part(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both label maps with background wherever nothing is compared."""
        import numpy as np

        kept = np.ones(a.shape, dtype=bool)
        if self.ignore is not None:
            kept = (a != self.ignore) & (b != self.ignore)
        if self.only is None or 0 in self.only:
            return np.where(kept, a, 0), np.where(kept, b, 0)
        return tuple(np.where(kept & np.isin(label, self.only), label, 0) for label in (a, b))


@dataclass(frozen=True)
class Comparison:
    """What was compared and what came out.

    Attributes:
        first: the reference: clean labels or the first rater.
        second: what is judged: noisy labels or the second rater.
        rows: one per case and label, ordered by case.
        equal_cases: cases in which no compared label differs anywhere.
        skipped: cases that only one folder has, left out on demand.
        tolerance: of the surface Dice, in mm.
        scope: what of the label maps is compared.
    """

    first: LabelFolder
    second: LabelFolder
    rows: tuple[Row, ...]
    equal_cases: frozenset[str]
    skipped: tuple[str, ...] = ()
    tolerance: float = 1.0
    scope: Scope = Scope()

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.case for row in self.rows))

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.label for row in self.rows))

    def case_dice(self) -> dict[str, float]:
        """Mean Dice over the labels of each case; NaN where neither folder has any label."""
        import numpy as np

        scores: dict[str, list[float]] = {}
        for row in self.rows:
            scores.setdefault(row.case, []).append(row.values["dice"])
        return {case: float(np.nanmean(v)) if not np.isnan(v).all() else float("nan") for case, v in scores.items()}

    def worst_cases(self, count: int) -> list[str]:
        """The cases with the lowest mean Dice, worst first; equal ones never belong to them."""
        dice = self.case_dice()
        differing = [case for case in self.cases if case not in self.equal_cases]
        return sorted(differing, key=lambda case: (dice[case], case))[:count]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command."""
    where = "folder of label files, raw data set of nnU-Net, or number of a data set in nnUNet_raw"
    parser.add_argument("first", metavar="A", help=f"the reference (clean labels, first rater): {where}")
    parser.add_argument("second", metavar="B", help="what is compared with it (noisy labels, second rater): likewise")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("noise_report"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="images to draw under the overlays; default: those of the data set",
    )
    parser.add_argument(
        "--labels", type=int, nargs="+", metavar="VALUE", help="default: those of dataset.json, else all that occur"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1.0, metavar="MM", help="of the surface Dice (default: %(default)s mm)"
    )
    parser.add_argument("--worst", type=int, default=8, metavar="N", help="cases to draw (default: %(default)s)")
    parser.add_argument("--common", action="store_true", help="compare the cases both folders have, skip the others")
    parser.add_argument(
        "-np", dest="processes", type=int, default=1, metavar="N", help="processes (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older report in the output folder")


def run(args: argparse.Namespace) -> None:
    """Compare, write `report.csv` and `report.html` into the output folder, and print the means.

    Raises:
        NoiseToolsError: folders that cannot be compared, or a report that exists already.
    """
    from noise_tools.errors import NoiseToolsError

    for name, lowest in (("worst", 0), ("tolerance", 0)):
        if not getattr(args, name) >= lowest:
            raise NoiseToolsError(f"--{name} is {getattr(args, name)}; expected {lowest} or more.")
    existing = [args.output / name for name in (CSV_NAME, PAGE_NAME) if (args.output / name).exists()]
    if existing and not args.overwrite:
        raise NoiseToolsError(f"{existing[0]} exists already; give another folder with -o, or --overwrite.")
    _check_output(args.output)
    comparison = compare(
        args.first,
        args.second,
        images=args.images,
        labels=args.labels,
        tolerance=args.tolerance,
        common=args.common,
        processes=args.processes,
    )
    write_report(comparison, args.output, worst=args.worst)
    print(summary(comparison))
    print(f"Wrote {args.output / PAGE_NAME} and {args.output / CSV_NAME}")


def _check_output(folder: Path) -> None:
    """Raises NoiseToolsError now, and not after all cases are compared, where the folder cannot be written."""
    import os

    from noise_tools.errors import NoiseToolsError

    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise NoiseToolsError(f"{there} is no folder that you may write to; give another with -o.")


def compare(
    first: str | Path,
    second: str | Path,
    *,
    images: str | Path | None = None,
    labels: Sequence[int] | None = None,
    tolerance: float = 1.0,
    common: bool = False,
    processes: int = 1,
) -> Comparison:
    """Compare every case of two folders.

    Args:
        first: the reference; see `noise_tools.label_folders.open_label_folder` for what may be given.
        second: what is compared with it.
        images: folder of images for the overlays.
        labels: label values; by default those of dataset.json, else all that occur.
        tolerance: of the surface Dice, in mm.
        common: skip cases that only one folder has, instead of refusing.
        processes: how many to use.

    Raises:
        NoiseToolsError: no common case, a missing case, labels that A and B declare differently (unless `labels` says
            which values to compare), labels of different shape or spacing, unreadable files.
    """
    import math

    from noise_tools.errors import NoiseToolsError
    from noise_tools.label_folders import open_label_folder
    from noise_tools.parallel import run_cases

    a, b = _read_alike(open_label_folder(first, images), open_label_folder(second, images))
    if a.cases == b.cases:
        raise NoiseToolsError(f"A and B are the same label files ({a.path}); give two different folders.")
    cases = [case for case in a.cases if case in b.cases]
    skipped = tuple(sorted(set(a.cases) ^ set(b.cases)))
    _check_cases(a, b, cases, skipped, common)
    chosen, ignore = _chosen_labels(a, b, labels)
    scope = Scope(ignore, tuple(labels) if labels is not None else None)
    results = run_cases(_compare_case, _Job(a, b, chosen, scope, tolerance), cases, processes, "Comparing")
    rows = tuple(Row(case, label, values) for case in cases for label, values in results[case][0].items())
    if all(math.isnan(row.values["dice"]) for row in rows):
        names = f" among the labels to compare ({', '.join(chosen)})" if chosen else ""
        raise NoiseToolsError(f"No label map in A or B has any foreground{names}; correct --labels, A or B.")
    equal = frozenset(case for case in cases if results[case][1])
    return Comparison(a, b, rows, equal, skipped, tolerance, scope)


def write_report(comparison: Comparison, folder: Path, worst: int = 8) -> None:
    """Write `report.csv` and `report.html` into `folder`; each appears whole or not at all."""
    import os

    from noise_tools.report_page import page

    contents = {CSV_NAME: csv_text(comparison.rows), PAGE_NAME: page(comparison, worst)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        unfinished = folder / f".{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, folder / name)


def csv_text(rows: Iterable[Row]) -> str:
    """The table as CSV: case, label and the columns of `METRICS`; what is undefined (NaN) stays empty."""
    import csv
    import io
    import math

    from noise_tools.metrics import METRICS

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["case", "label", *METRICS])
    for row in rows:
        values = [row.values[name] for name in METRICS]
        writer.writerow([row.case, row.label, *("" if math.isnan(v) else f"{v:.6g}" for v in values)])
    return buffer.getvalue()


def summary(comparison: Comparison) -> str:
    """Means per label as plain text."""
    import numpy as np

    changed = len(comparison.cases) - len(comparison.equal_cases)
    lines = [f"{len(comparison.cases)} cases compared, {changed} differ."]
    for label in comparison.labels:
        values = [row.values for row in comparison.rows if row.label == label]
        dice, hd95 = (np.array([v[name] for v in values]) for name in ("dice", "hd95"))
        parts = [
            f"{text} {x[~np.isnan(x)].mean():{form}}" if not np.isnan(x).all() else f"{text} undefined"
            for text, x, form in (("mean Dice", dice, ".4f"), ("mean HD95", hd95, ".2f"))
        ]
        lines.append(f"  {label}: {', '.join(parts)}")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Job:
    """What a worker process needs to compare any case."""

    first: LabelFolder
    second: LabelFolder
    labels: dict[str, LabelValue] | None
    scope: Scope
    tolerance: float


def _compare_case(job: _Job, case: str) -> tuple[dict[str, dict[str, float]], bool]:
    """Values per label, and whether the label maps are equal in what is compared."""
    import numpy as np

    from noise_tools.metrics import label_metrics

    (a, spacing), (b, _) = read_pair(job.first, job.second, case)
    # Labels that no dataset.json declares: a case has rows for those that it has.
    labels = job.labels or {str(v): int(v) for v in np.union1d(a, b) if v > 0}
    same = np.array_equal(*job.scope.part(a, b))
    if not labels:
        return {}, same
    return label_metrics(a, b, spacing, labels, ignore_label=job.scope.ignore, tolerance=job.tolerance), same


def read_pair(first: LabelFolder, second: LabelFolder, case: str) -> tuple[Any, Any]:
    """(label map, spacing) of a case in both folders.

    Raises:
        NoiseToolsError: shape, spacing or the direction of the axes differ. Origins may: many tools write none.
    """
    import numpy as np

    from noise_tools.errors import NoiseToolsError

    a, b = first.read_label(case), second.read_label(case)
    if a[0].shape != b[0].shape:
        raise NoiseToolsError(
            f"Case {case}: the label has shape {a[0].shape} in A but {b[0].shape} in B; "
            "resample one onto the grid of the other."
        )
    if not np.allclose(a[1], b[1], rtol=1e-3):
        raise NoiseToolsError(
            f"Case {case}: the label has spacing {a[1]} in A but {b[1]} in B; correct the header of the wrong one."
        )
    directions = [_axis_directions(folder, case) for folder in (first, second)]
    comparable = None not in directions and len(directions[0]) == len(directions[1])
    if comparable and not np.allclose(*directions, atol=0.1):
        raise NoiseToolsError(
            f"Case {case}: the axes of the label have the directions {directions[0]} in A but {directions[1]} in B, so "
            "voxels do not correspond; bring one to the orientation of the other (SimpleITK: DICOMOrient, or Resample)."
        )
    return a, b


def _read_alike(a: LabelFolder, b: LabelFolder) -> tuple[LabelFolder, LabelFolder]:
    """Both with the reader that turns axes, where one of them asks for it: else voxels would not correspond."""
    if _turns_axes(a) == _turns_axes(b):
        return a, b
    reader = (a if _turns_axes(a) else b).reader
    return replace(a, reader=reader), replace(b, reader=reader)


def _turns_axes(folder: LabelFolder) -> bool:
    return "Reorient" in (folder.reader or "")


def _axis_directions(folder: LabelFolder, case: str) -> tuple[float, ...] | None:
    """Direction cosines in the header of a label; None where there are none, or a reader turns axes by itself."""
    from noise_tools.raw_dataset import read_header

    if _turns_axes(folder):
        return None
    try:
        header = read_header(folder.cases[case])
    except RuntimeError:
        return None  # a picture that ITK does not know; nnU-Net's reader has read it
    return tuple(round(value, 3) for value in header.GetDirection())


def _check_cases(a: LabelFolder, b: LabelFolder, cases: list[str], skipped: Sequence[str], common: bool) -> None:
    from noise_tools.errors import NoiseToolsError

    if not cases:
        raise NoiseToolsError(
            f"A and B have no case in common (A has {_some(a.cases)}; B has {_some(b.cases)}); "
            "the label files of a case need the same name in both."
        )
    if skipped and not common:
        raise NoiseToolsError(
            f"{len(skipped)} cases are in one folder only ({_some(skipped)}); add them, or give --common to compare "
            f"the {len(cases)} that both have."
        )


def _some(cases: Iterable[str]) -> str:
    names = list(cases)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _chosen_labels(
    a: LabelFolder, b: LabelFolder, given: Sequence[int] | None
) -> tuple[dict[str, LabelValue] | None, int | None]:
    """Labels to compare by name (None: whatever occurs) and the ignore label."""
    declared = a.labels or b.labels
    ignore = a.ignore if a.ignore is not None else b.ignore
    if given is None:
        _check_same_labels(a, b)
        return declared, ignore
    names = {value: name for name, value in (declared or {}).items()}
    return {names.get(value, str(value)): value for value in given}, ignore


def _check_same_labels(a: LabelFolder, b: LabelFolder) -> None:
    """Raises NoiseToolsError if both declare labels, and not the same: one value would be judged as two structures.

    The order does not matter, nor an ignore label that one of them declares: it is left out of both.
    """
    from noise_tools.errors import NoiseToolsError

    if a.labels is None or b.labels is None:
        return
    first, second = ({name: _values(value) for name, value in folder.labels.items()} for folder in (a, b))
    if a.ignore is not None and b.ignore is not None:
        first["ignore"], second["ignore"] = str(a.ignore), str(b.ignore)
    for name in first | second:
        in_a, in_b = (declared.get(name, "not declared") for declared in (first, second))
        if in_a != in_b:
            raise NoiseToolsError(
                f"The dataset.json of A and that of B declare different labels ({name!r} is {in_a} in A but {in_b} in "
                "B); make them agree, or name the values to compare with --labels."
            )


def _values(label: LabelValue) -> str:
    """Values of a label or region, the same text however dataset.json orders or repeats them."""
    return ", ".join(map(str, sorted({label} if isinstance(label, int) else set(label))))
