"""The HTML page of `noise_tools report`: one file, pictures and script inside, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from noise_tools.overlay import FIRST_COLOR, SECOND_COLOR, draw_overlay, fullest_plane, png_base64

if TYPE_CHECKING:
    from noise_tools.report import Comparison, Row

_MOST_ROWS = 2000  # of the table in the page; the CSV has all
_MOST_LABELS = 6  # drawn apart in the histograms

# Column of the tables: key in Row.values, heading, format, whether a low value is the bad one.
_COLUMNS = (
    ("dice", "Dice", ".3f", "overlap, 1 is equal"),
    ("hd95", "HD95 [mm]", ".2f", "95th percentile of the distance between the surfaces"),
    ("assd", "Mean surface distance [mm]", ".2f", "average symmetric surface distance"),
    ("surface_dice", "Surface Dice", ".3f", "share of both surfaces within the tolerance"),
    ("volume_change", "Volume change", "+.1%", "volume of B against A"),
    ("components_gained", "Gained", "d", "connected parts of B that touch nothing of A"),
    ("components_lost", "Lost", "d", "connected parts of A that touch nothing of B"),
)


def page(comparison: Comparison, worst: int = 8) -> str:
    """The whole page.

    Args:
        comparison: what `noise_tools.report.compare` found; the label files are read again for the overlays.
        worst: how many of the cases with the lowest Dice to draw.
    """
    a, b = comparison.first.name, comparison.second.name
    sections = [
        _section("Per label", _label_table(comparison), _empty_note(comparison)),
        _section("Distributions", _histograms(comparison), _histogram_note(comparison)),
        _section("Worst cases", *_worst_cases(comparison, worst)),
        _section("Every case", _case_table(comparison), _case_note(comparison)),
    ]
    return _PAGE.format(
        title=escape(f"{a} against {b}"),
        style=_STYLE,
        head=_head(comparison),
        sections="\n".join(sections),
        script=_SCRIPT,
    )


def _head(comparison: Comparison) -> str:
    count, changed = len(comparison.cases), len(comparison.cases) - len(comparison.equal_cases)
    dice = comparison.case_dice()
    every = [v for v in dice.values() if not math.isnan(v)]
    differing = [v for case, v in dice.items() if case not in comparison.equal_cases and not math.isnan(v)]
    tiles = [
        (
            "Cases compared",
            str(count),
            f"{len(comparison.skipped)} in one folder only, left out" * bool(comparison.skipped),
        ),
        ("Cases that differ", str(changed), f"{changed / count:.0%} of all"),
        ("Mean Dice, all cases", _format(_mean(every), ".3f"), "mean of the labels' Dice in a case"),
        (
            "Mean Dice, cases that differ",
            _format(_mean(differing), ".3f"),
            f"lowest {_format(_lowest(differing), '.3f')}",
        ),
    ]
    cells = "".join(
        f'<div class="tile"><div class="name">{name}</div><div class="value">{value}</div>'
        f'<div class="note">{note}</div></div>'
        for name, value, note in tiles
    )
    a, b = comparison.first, comparison.second
    return (
        f"<p><b>A</b> {escape(a.name)}: the reference (clean labels, first rater)<br>"
        f"<b>B</b> {escape(b.name)}: compared with it (noisy labels, second rater)</p>"
        f'<div class="tiles">{cells}</div>'
    )


def _section(title: str, content: str, note: str = "") -> str:
    paragraph = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{paragraph}{content}</section>"


def _label_table(comparison: Comparison) -> str:
    heads = ["Label", "Cases", *(_heading(c) for c in _COLUMNS), "Missing in B", "Only in B"]
    body = []
    for label in comparison.labels:
        rows = [row for row in comparison.rows if row.label == label]
        cells = [escape(label), str(len(rows))]
        cells += [_over_cases(rows, key, form) for key, _, form, _ in _COLUMNS]
        cells += [str(sum(_missing(row) for row in rows)), str(sum(_invented(row) for row in rows))]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _over_cases(rows: Sequence[Row], key: str, form: str) -> str:
    values = np.array([row.values[key] for row in rows], dtype=float)
    values = values[~np.isnan(values)]
    if key.startswith("components"):
        return str(int(values.sum()))
    if not len(values):
        return "&ndash;"
    return f'{values.mean():{form}} <span class="spread">&plusmn; {values.std():{form.lstrip("+")}}</span>'


def _empty_note(comparison: Comparison) -> str:
    return (
        "Mean &plusmn; standard deviation over cases; for pictures, mm means pixels; gained and lost are sums. "
        f"Surface Dice at {comparison.tolerance:g} mm. A label that only one of A and B has counts with Dice 0 and "
        "has no distance; one that neither has counts nowhere."
    )


def _histograms(comparison: Comparison) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.9), layout="constrained")
    rows = _differing_rows(comparison)
    metrics = [c for c in _COLUMNS if c[0] in ("dice", "hd95", "assd", "volume_change")]
    labels = comparison.labels if len(comparison.labels) <= _MOST_LABELS else ("all labels",)
    for axes, (key, heading, _, _) in zip(figure.subplots(1, len(metrics)), metrics, strict=True):
        groups = [_finite(rows, key, label if labels == comparison.labels else None) for label in labels]
        _histogram(axes, groups, labels, key)
        axes.set_title(heading, fontsize=10)
    figure.axes[0].set_ylabel("cases" if labels == comparison.labels else "cases and labels")
    if len(labels) > 1:
        figure.axes[0].legend(fontsize=8, frameon=False)
    return f'<img alt="Histograms of the values above" src="{png_base64(figure, 110)}">'


def _differing_rows(comparison: Comparison) -> list[Row]:
    """Rows of the cases that differ; of all cases if none does."""
    differing = [row for row in comparison.rows if row.case not in comparison.equal_cases]
    return differing or list(comparison.rows)


def _histogram_note(comparison: Comparison) -> str:
    equal = len(comparison.equal_cases)
    if not 0 < equal < len(comparison.cases):
        return "One value per case and label."
    return f"One value per case and label; {equal} case{'s' * (equal != 1)} without any difference left out."


def _finite(rows: Sequence[Row], key: str, label: str | None) -> np.ndarray:
    values = np.array([row.values[key] for row in rows if label in (None, row.label)], dtype=float)
    return values[np.isfinite(values)]


def _histogram(axes, groups: Sequence[np.ndarray], labels: Sequence[str], key: str) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    everything = np.concatenate(groups)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if not len(everything):
        axes.text(0.5, 0.5, "undefined everywhere", ha="center", va="center", transform=axes.transAxes, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    low, high = everything.min(), everything.max()
    if key == "dice":
        low, high = min(low, 0.9), 1.0
    elif key != "volume_change":
        low = 0.0
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    axes.hist(groups, bins=np.linspace(low, high, 21), label=list(labels), color=_COLORS[: len(groups)])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if key == "volume_change":
        axes.axvline(0, color="0.4", lw=0.8)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))


_COLORS = ["#3b6fb6", "#e0912f", "#4c9f70", "#b0578d", "#8c6d46", "#6b7280"]


def _worst_cases(comparison: Comparison, count: int) -> tuple[str, str]:
    cases = comparison.worst_cases(count)
    if not cases:
        return ("<p>No case differs.</p>", "") if count else ("<p>None asked for (--worst 0).</p>", "")
    note = (
        f"Lowest mean Dice first. {_swatch('first', 'A')} {escape(comparison.first.name)}, "
        f"{_swatch('second', 'B')} {escape(comparison.second.name)}; voxels that differ are tinted. "
        "Volumes: the slice with the most differing voxels in each direction."
    )
    if not (comparison.first.images or comparison.second.images):
        note += " Give --images to draw them over the images."
    return f'<div class="cases">{"".join(_worst_case(comparison, case) for case in cases)}</div>', note


def _swatch(kind: str, text: str) -> str:
    return f'<span class="swatch {kind}">{text}</span>'


def _worst_case(comparison: Comparison, case: str) -> str:
    scores = ", ".join(
        f"{escape(row.label)} {_format(row.values['dice'], '.3f')}" for row in comparison.rows if row.case == case
    )
    picture = png_base64(case_figure(comparison, case), 100)
    swatches = f"{_swatch('first', 'A')} {_swatch('second', 'B')}"
    return (
        f"<figure><figcaption>{swatches} <b>{escape(case)}</b> &middot; Dice {scores}</figcaption>"
        f'<img alt="Outlines of A and B in {escape(case)}" src="{picture}"></figure>'
    )


def case_figure(comparison: Comparison, case: str):
    """Matplotlib figure of one case: the slice with the most differing voxels in each direction (one picture in 2D)."""
    from matplotlib.figure import Figure

    from noise_tools.report import read_pair

    (a, spacing), (b, _) = read_pair(comparison.first, comparison.second, case)
    image = comparison.first.read_image(case)
    image = comparison.second.read_image(case) if image is None else image
    if image is not None and image.shape != a.shape:
        image = None  # an image on another grid would mislead
    a, b = comparison.scope.part(a, b)
    different = a != b
    axes_of_slices = (0, 1, 2) if a.ndim == 3 else (None,)
    size = 3.6 if a.ndim == 3 else 5.2  # inches
    figure = Figure(figsize=(size * len(axes_of_slices), size), layout="constrained")
    for axes, axis in zip(np.atleast_1d(figure.subplots(1, len(axes_of_slices))), axes_of_slices, strict=True):
        plane = fullest_plane(different, spacing, axis)
        draw_overlay(axes, plane, image, a, b)
        axes.set_title(plane.title, fontsize=9, color="0.3")
    return figure


def _case_table(comparison: Comparison) -> str:
    rows = sorted(comparison.rows, key=_worst_first)[:_MOST_ROWS]
    heads = ["Case", "Label", *(_heading(c) for c in _COLUMNS), "Volume A", "Volume B"]
    columns = (*_COLUMNS, ("reference_volume", "", ".6g", ""), ("prediction_volume", "", ".6g", ""))
    body = []
    for row in rows:
        cells = [f"<td>{escape(row.case)}</td><td>{escape(row.label)}</td>"]
        cells += [_value_cell(row.values[key], form) for key, _, form, _ in columns]
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f'<th aria-sort="none"><button>{text}</button></th>' for text in heads)
    return (
        '<input id="filter" type="search" placeholder="Show cases or labels with &hellip;" aria-label="Filter">'
        f'<div class="wide"><table id="cases"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _case_note(comparison: Comparison) -> str:
    note = "Lowest Dice first; a click on a heading sorts. Volumes in mm&sup3; (pixels for pictures)."
    if len(comparison.rows) > _MOST_ROWS:
        note += f" The {_MOST_ROWS} worst of {len(comparison.rows)} rows; all of them are in the CSV file."
    return note


def _value_cell(value: float, form: str) -> str:
    if math.isnan(value):
        return '<td data-value="">&ndash;</td>'
    return f'<td data-value="{value:.6g}">{_format(value, form)}</td>'


def _heading(column: tuple[str, str, str, str]) -> str:
    return f'<span title="{column[3]}">{column[1]}</span>'


def _worst_first(row: Row) -> tuple:
    dice = row.values["dice"]
    return math.isnan(dice), dice, row.case, row.label


def _missing(row: Row) -> bool:
    return row.values["reference_volume"] > 0 and row.values["prediction_volume"] == 0


def _invented(row: Row) -> bool:
    return row.values["reference_volume"] == 0 and row.values["prediction_volume"] > 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _lowest(values: Sequence[float]) -> float:
    return min(values, default=math.nan)


def _format(value: float, form: str) -> str:
    if math.isnan(value):
        return "&ndash;"
    return f"{int(value)}" if form == "d" else f"{value:{form}}"


_STYLE = (
    """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: #1f2933; background: #f6f7f9; margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 8px; }
h2 { font-size: 18px; margin: 0 0 8px; }
section, .tile { background: #fff; border: 1px solid #e2e6eb; border-radius: 8px; }
section { padding: 18px 20px; margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px; }
.tile { padding: 12px 16px; }
.tile .name { color: #52606d; font-size: 13px; }
.tile .value { font-size: 26px; font-weight: 600; font-variant-numeric: tabular-nums; }
.note { color: #52606d; font-size: 13px; margin: 0 0 10px; }
.tile .note { margin: 0; min-height: 1.5em; }
.wide { overflow: auto; }
#cases { font-size: 13px; }
.wide:has(#cases) { max-height: 620px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { font-weight: 600; font-size: 13px; vertical-align: bottom; background: #fff; position: sticky; top: 0; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid #edf0f3; white-space: nowrap; }
th { white-space: normal; border-bottom: 2px solid #cbd2d9; }
td:first-child, th:first-child, #cases td:nth-child(2), #cases th:nth-child(2) { text-align: left; }
tbody tr:hover { background: #f3f6fa; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid #3b6fb6; }
th[aria-sort="ascending"] button::after { content: " \\25B2"; font-size: 10px; }
th[aria-sort="descending"] button::after { content: " \\25BC"; font-size: 10px; }
.spread { color: #7b8794; }
img { max-width: 100%; display: block; }
.cases { display: flex; flex-wrap: wrap; gap: 18px 28px; }
figure { margin: 0; }
figcaption { margin-bottom: 4px; }
input[type="search"] { font: inherit; padding: 5px 10px; margin-bottom: 10px; width: 280px; border: 1px solid #cbd2d9;
  border-radius: 6px; }
.swatch { padding: 0 7px; border-radius: 4px; color: #10202c; font-weight: 600; }
"""
    ".swatch.first { background: " + FIRST_COLOR + "; }\n.swatch.second { background: " + SECOND_COLOR + "; }\n"
)

_SCRIPT = """
const table = document.getElementById("cases"), body = table.tBodies[0];
const key = (row, i) => { const c = row.cells[i], v = c.dataset.value; return v === undefined ? c.textContent : v; };
table.querySelectorAll("th").forEach((th, i) => th.firstChild.addEventListener("click", () => {
  const up = th.getAttribute("aria-sort") !== "ascending";
  table.querySelectorAll("th").forEach(other => other.setAttribute("aria-sort", "none"));
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const number = i > 1;
  [...body.rows].sort((p, q) => {
    const a = key(p, i), b = key(q, i);
    if (number && (a === "" || b === "")) return (a === "") - (b === "");
    const order = number ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return up ? order : -order;
  }).forEach(row => body.append(row));
}));
document.getElementById("filter").addEventListener("input", event => {
  const text = event.target.value.toLowerCase();
  for (const row of body.rows)
    row.hidden = !(row.cells[0].textContent + " " + row.cells[1].textContent).toLowerCase().includes(text);
});
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{head}
{sections}
<p class="note">Written by noise_tools report.</p>
</main>
<script>{script}</script>
</body>
</html>
"""
