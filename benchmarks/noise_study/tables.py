"""Write the tables and figures of docs/results.md from the committed CSV files.

    python benchmarks/noise_study/tables.py

Only what stands between the markers in docs/results.md is replaced. The page of another configuration file, or of
other results, is results.md in their folder.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

from analysis import ArmResult, Summary, Verdict, arm_results, comparable_rows, judge
from arms import ARMS
from settings import DEFAULT_CONFIG, Cell, SettingsError, Study, load_study

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT_PAGE = REPOSITORY / "docs" / "results.md"
BEGIN = "<!-- noise study tables: begin (written by benchmarks/noise_study/tables.py) -->"
END = "<!-- noise study tables: end -->"


def number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def with_sd(summary: Summary, digits: int = 3) -> str:
    """``mean ± SD``; the mean alone for a single run."""
    if summary.runs == 0:
        return "-"
    mean = number(summary.mean, digits)
    return mean if math.isnan(summary.sd) else f"{mean} ± {number(summary.sd, digits)}"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def order_arms(names: list[str]) -> list[str]:
    """Built-in arms in their own order, then variants by name."""
    known = list(ARMS)
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def describe_cell(cell: Cell) -> str:
    """One line: what was done to the labels, and the length of the training."""
    if is_clean(cell):
        noise = "labels left clean"
    else:
        severity = "" if cell.label_dice is None else f", label Dice about {cell.label_dice:g}"
        extra = f" ({' '.join(cell.corrupt_arguments)})" if cell.corrupt_arguments else ""
        noise = f"{' + '.join(cell.noise)}{extra} in {cell.case_fraction:.0%} of the cases{severity}"
    return f"{cell.dataset}, {noise}; {cell.trusted} trusted cases; {cell.steps} steps."


def is_clean(cell: Cell) -> bool:
    return cell.case_fraction == 0


def cell_table(results: dict[str, ArmResult], verdict: Verdict) -> str:
    """One row per arm. The column ``missed`` is there if any arm missed or invented a structure."""
    any_missed = any(result.missed[0] for result in results.values())
    classes = list(dict.fromkeys(name for result in results.values() for name in result.class_dice))
    per_class = classes if len(classes) > 1 else []
    header = ["arm", "runs", "Dice", *[f"Dice {name}" for name in per_class]]
    header += ["missed"] if any_missed else []
    header += ["IoU", "HD95", "surface Dice", "ASSD", "R", "s/step", "AUROC of alpha", "where in doubt"]
    rows = []
    for name in order_arms(list(results)):
        result = results[name]
        row = [name, str(result.dice.runs), with_sd(result.dice)]
        row += [with_sd(result.class_dice[c]) if c in result.class_dice else "-" for c in per_class]
        row += ["{}/{}".format(*result.missed)] if any_missed else []
        row += [with_sd(result.metrics["iou"]), with_sd(result.metrics["hd95"], 2)]
        row += [with_sd(result.metrics["surface_dice"]), with_sd(result.metrics["assd"], 2)]
        row += [number(verdict.recovery.get(name, float("nan")), 2), number(result.seconds_per_step, 2)]
        for auroc in (result.alpha_auroc, result.alpha_auroc_disagreeing):
            row.append(with_sd(auroc, 2) if auroc else "-")
        rows.append(row)
    return markdown_table(header, rows)


def overview_table(cells: dict[str, tuple[dict[str, ArmResult], Verdict]], ours: str) -> str:
    """One row per cell: what decides, and the verdict."""
    header = ["cell", "kind", "clean", "noisy", "best plain", "oracle", ours, "R", "R of oracle", "passed", "why"]
    rows = []
    for name, (results, verdict) in cells.items():
        row = [name, verdict.kind]
        row += [with_sd(results[arm].dice) if arm in results else "-" for arm in ("clean", "noisy")]
        for arm in (verdict.best_plain, verdict.best_oracle):
            row.append(f"{with_sd(results[arm].dice)} ({arm})" if arm in results else "-")
        row.append(with_sd(results[ours].dice) if ours in results else "-")
        row += [number(verdict.recovery.get(arm, float("nan")), 2) for arm in (ours, verdict.best_oracle)]
        passed = {True: "yes", False: "**no**", None: "-"}[verdict.passed]
        rows.append([*row, passed, verdict.reason])
    return markdown_table(header, rows)


def report(study: Study, ours: str = "metadcseg", figures: list[str] | None = None) -> str:
    """The whole generated part as Markdown. Cells without results are left out."""
    by_cell = arm_results(comparable_rows(study)[0])
    cells = {}
    for name, cell in study.cells.items():
        if name in by_cell:
            cells[name] = (by_cell[name], judge(by_cell[name], ours, is_clean(cell)))
    if not cells:
        return "No results yet."
    parts = [summary_line([verdict for _, verdict in cells.values()]), overview_table(cells, ours)]
    parts += [f"![{Path(figure).stem.replace('_', ' ')}]({figure})" for figure in figures or []]
    for name, (results, verdict) in cells.items():
        parts += [f"### {name}", describe_cell(study.cells[name]), cell_table(results, verdict)]
    return "\n\n".join(parts)


def summary_line(verdicts: list[Verdict]) -> str:
    judged = [verdict for verdict in verdicts if verdict.passed is not None]
    deciding = [verdict for verdict in judged if verdict.kind == "deciding"]
    return (
        f"{len(verdicts)} cells with results, {len(judged)} complete, {len(deciding)} deciding. "
        f"Criterion met in {sum(1 for v in judged if v.passed)} of {len(judged)}, "
        f"of the deciding ones in {sum(1 for v in deciding if v.passed)} of {len(deciding)}."
    )


def replace_between_markers(page: str, content: str) -> str:
    """Put ``content`` between the two markers.

    Raises:
        SettingsError: the page does not have exactly one pair of markers.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise SettingsError(f"The page needs the line {BEGIN!r} and, below it, {END!r}, once each.")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def default_page(study: Study, config: str | Path) -> Path:
    """The project's page for the project's own study only; any other has its page beside its results."""
    own = Path(config).resolve() == DEFAULT_CONFIG and study.results == load_study(DEFAULT_CONFIG).results
    return PROJECT_PAGE if own else study.results / "results.md"


def find_page(study: Study, config: str | Path, page: str | None) -> Path:
    """The page to write, made if it is the default and absent.

    Raises:
        SettingsError: ``page`` is given and does not exist.
    """
    if page is not None:
        if not Path(page).is_file():
            raise SettingsError(f"There is no page {page}; name one that exists, or leave --page out.")
        return Path(page)
    default = default_page(study, config)
    if not default.is_file():
        default.parent.mkdir(parents=True, exist_ok=True)
        default.write_text(f"# Results\n\n{BEGIN}\n\n{END}\n", encoding="utf-8")
    return default


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(DEFAULT_CONFIG), help="configuration file (default: config.yaml here)")
    parser.add_argument("--results", help="folder of the CSV files (default: from the configuration file)")
    page_help = "page with the markers (default: docs/results.md for config.yaml, else results.md beside the CSV files)"
    parser.add_argument("--page", help=page_help)
    parser.add_argument("--ours", default="metadcseg", help="arm that is judged (default: metadcseg)")
    parser.add_argument("--print", action="store_true", help="print the tables and write nothing")
    parser.add_argument("--no-figures", action="store_true")
    args = parser.parse_args(arguments)
    try:
        study = load_study(args.config)
        if args.results:
            from dataclasses import replace

            study = replace(study, results=Path(args.results).resolve())
        left_out = comparable_rows(study)[1]
        if left_out:
            print(f"left out {left_out} rows of other settings than the configuration file has now", file=sys.stderr)
        if args.print:
            print(report(study, args.ours))
            return 0
        page = find_page(study, args.config, args.page)
        figures: list[str] = []
        if not args.no_figures:
            from figures import draw_figures

            figures = draw_figures(study, page.parent / "figures", args.ours)
        new = replace_between_markers(page.read_text(encoding="utf-8"), report(study, args.ours, figures))
        temporary = page.with_name(page.name + ".tmp")
        temporary.write_text(new, encoding="utf-8")
        os.replace(temporary, page)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
