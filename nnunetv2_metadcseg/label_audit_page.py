"""Label audit, the page: one HTML file with the ranked table, the distribution, and the worst cases in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from nnunetv2_metadcseg.label_audit_output import MAPS
from nnunetv2_metadcseg.label_audit_pictures import GIVEN_COLOUR, PROPOSED_COLOUR, data_url, draw_case

if TYPE_CHECKING:
    from nnunetv2_metadcseg.label_audit_findings import Audit, CaseFinding
    from nnunetv2_metadcseg.label_audit_predict import TrainedModel

BINS = 20
MOST_LABELS = 8  # with a column of their own


def write_page(audit: Audit, folder: Path, model: TrainedModel, worst: int) -> None:
    """Writes audit.html into the audit's folder, where the maps lie already; pictures for the first `worst` cases."""
    pictures = {f.case: data_url(_picture(f, folder, model)) for f in audit.findings[:worst]}
    (folder / "audit.html").write_text(page(audit, pictures), encoding="utf-8")


def _picture(finding: CaseFinding, folder: Path, model: TrainedModel) -> bytes:
    name = f"{finding.case}{model.file_ending}"
    given, proposed, suspicion = (
        model.reader.read_seg(str(folder / kind / name))[0][0] for kind in ("given", "proposed", "suspicion")
    )
    return draw_case(model.image(finding.case), given, proposed, suspicion / 100, finding.spacing)


def page(audit: Audit, pictures: dict[str, str]) -> str:
    """The whole page as text.

    Args:
        pictures: case -> URL of its picture (a data: URL keeps the page in one file).
    """
    about = audit.about
    return _PAGE.format(
        title=escape(f"Label audit of {about['dataset']}"),
        style=_STYLE,
        head=_head(audit),
        histogram=_histogram(audit.findings),
        table=_table(audit),
        cases="\n".join(_case(f, about["file_ending"], pictures.get(f.case)) for f in audit.findings),
        script=_SCRIPT,
        given=GIVEN_COLOUR,
        proposed=PROPOSED_COLOUR,
    )


def _head(audit: Audit) -> str:
    about = audit.about
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in about["notes"])
    return (
        f"<p>{len(audit.findings)} cases of <b>{escape(about['dataset'])}</b>, model <b>{escape(about['model'])}</b> "
        f"(trained by {escape(about['trainer'])}), fold {escape(', '.join(about['folds']))}.</p>"
        f"<p>Signals used: {escape('; '.join(about['signals']))}.</p>{notes}"
    )


def _histogram(findings: Sequence[CaseFinding]) -> str:
    """Bars of the reliability, trusted cases on top of the others in another colour."""
    edges = np.linspace(0, 1, BINS + 1)
    trusted = np.histogram([f.reliability for f in findings if f.trusted], edges)[0]
    others = np.histogram([f.reliability for f in findings if not f.trusted], edges)[0]
    top = max(1, int((trusted + others).max()))
    bars, width, height = [], 560 / BINS, 120
    for i, (a, b) in enumerate(zip(others, trusted, strict=True)):
        x, low, high = 30 + i * width, a / top * height, b / top * height
        tip = f"<title>{edges[i]:.2f} to {edges[i + 1]:.2f}: {a + b} cases, {b} of them trusted</title>"
        bars.append(
            f'<g>{tip}<rect class="bar" x="{x:.1f}" y="{130 - low:.1f}" width="{width - 2:.1f}" height="{low:.1f}"/>'
            f'<rect class="bar trusted" x="{x:.1f}" y="{130 - low - high:.1f}" width="{width - 2:.1f}" '
            f'height="{high:.1f}"/></g>'
        )
    ticks = "".join(f'<text x="{30 + t * 560:.0f}" y="146" text-anchor="middle">{t:g}</text>' for t in (0, 0.5, 1))
    return (
        f'<svg viewBox="0 0 620 165" role="img" aria-label="Distribution of the reliability">{"".join(bars)}{ticks}'
        f'<line x1="30" x2="590" y1="130" y2="130"/><text x="26" y="18" text-anchor="end">{top}</text>'
        '<text x="310" y="162" text-anchor="middle">reliability</text></svg>'
    )


def _table(audit: Audit) -> str:
    names = [label.name for label in audit.findings[0].labels][:MOST_LABELS]
    heads = [("rank", "Rank"), ("case", "Case"), ("reliability", "Reliability"), ("direction", "Label is")]
    heads += [(f"label-{i}", escape(name)) for i, name in enumerate(names)] if len(names) > 1 else []
    heads += [
        ("bias", "Bias"),
        ("shift", "Shift"),
        ("distance", "Distance"),
        ("voxels", "Suspicious voxels"),
        ("oof", "Out of fold"),
        ("trusted", "Trusted"),
    ]
    top = "".join(f'<th><button data-column="{key}">{text}</button></th>' for key, text in heads)
    body = "\n".join(_row(f, names if len(names) > 1 else [], audit.about["file_ending"]) for f in audit.findings)
    return f'<table id="ranking"><thead><tr>{top}<th>Files</th></tr></thead><tbody>\n{body}\n</tbody></table>'


def _row(finding: CaseFinding, names: Sequence[str], ending: str) -> str:
    own = {label.name: label for label in finding.labels}
    main = finding.worst.direction
    lengths = [(key, getattr(main, key)) for key in ("bias", "shift", "distance")]
    link = f'<a href="#case={quote(finding.case)}">{escape(finding.case)}</a>'
    cells = [
        _cell("rank", finding.rank, str(finding.rank)),
        _cell("case", finding.case, link),
        _cell("reliability", finding.reliability, _meter(finding.reliability) + _decided_by(finding)),
        _cell("direction", finding.direction, escape(finding.direction)),
        *(_cell(f"label-{i}", own[n].reliability, f"{own[n].reliability:.3f}") for i, n in enumerate(names)),
        *(_cell(key, value, _length(value, finding.unit)) for key, value in lengths),
        _cell("voxels", finding.suspicious_voxels, f"{finding.suspicious_voxels}"),
        _cell("oof", int(finding.out_of_fold), "yes" if finding.out_of_fold else "no"),
        _cell("trusted", int(finding.trusted), "yes" if finding.trusted else ""),
        f"<td>{_links(finding.case, ending)}</td>",
    ]
    return f'<tr data-case="{escape(finding.case)}">{"".join(cells)}</tr>'


def _cell(column: str, value: object, shown: str) -> str:
    plain = "" if isinstance(value, float) and np.isnan(value) else str(value)
    return f'<td data-column="{column}" data-value="{escape(plain)}">{shown}</td>'


def _meter(value: float) -> str:
    return f'<span class="meter"><i style="width:{100 * value:.0f}%"></i></span> {value:.3f}'


def _decided_by(finding: CaseFinding) -> str:
    return f" ({escape(finding.decided_by)})" if finding.decided_by else ""


def _length(value: float, unit: str) -> str:
    return "–" if np.isnan(value) else f"{value:.2f} {unit}"


def _links(case: str, ending: str) -> str:
    return " ".join(f'<a href="{kind}/{quote(case + ending)}">{kind}</a>' for kind in MAPS)


def _case(finding: CaseFinding, ending: str, picture: str | None) -> str:
    length = finding.unit
    lines = "".join(
        f"<tr><td>{escape(label.name)}</td><td>{label.reliability:.3f}</td><td>{label.direction.kind}</td>"
        f"<td>{_length(label.direction.bias, length)}</td><td>{_length(label.direction.shift, length)}</td>"
        f"<td>{_length(label.direction.distance, length)}</td><td>{label.direction.missing_parts}</td>"
        f"<td>{label.direction.extra_parts}</td></tr>"
        for label in finding.labels
    )
    seen = "" if finding.out_of_fold else ", predicted by a network that was trained on this label"
    trusted = ", trusted" if finding.trusted else ""
    shown = f'<img src="{picture}" alt="slices of {escape(finding.case)}">' if picture else ""
    return (
        f'<details class="case" data-case="{escape(finding.case)}"><summary>{finding.rank}. {escape(finding.case)} '
        f"– reliability {finding.reliability:.3f}{_decided_by(finding)}, {finding.direction}{trusted}{seen}"
        f"</summary>{shown}"
        "<table><thead><tr><th>Label</th><th>Reliability</th><th>Label is</th><th>Bias</th><th>Shift</th>"
        f"<th>Distance</th><th>Missing parts</th><th>Extra parts</th></tr></thead><tbody>{lines}</tbody></table>"
        f"<p>{_links(finding.case, ending)}</p></details>"
    )


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
<h1>{title}</h1>
{head}
<h2>Distribution</h2>
<p>1: label and prediction agree. 1/2: they disagree as much as right labels do. Towards 0: look at this label.
Trusted cases are green.</p>
{histogram}
<h2>Cases, the least reliable first</h2>
<p>Click a heading to sort, a case to open it. A label's name behind the reliability: that label is worse than all
together, and decided. Bias: mean signed distance of the label's surface from the proposed one
(positive: too large); shift: of the centroids; distance: mean distance of the surfaces; all of the worst
label. Suspicion maps hold per cent.</p>
<div class="scroll">{table}</div>
<h2>One by one</h2>
<p>Contours: <b style="background:{given}">given</b>, <b style="background:{proposed}">proposed</b> (dashed). Below or
beside them the probability that the given label is wrong, from dark (0.2) to bright (1).</p>
{cases}
<script>{script}</script></body></html>
"""

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:76rem;padding:0 1rem;color:#1b1f24}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:1.8rem}
.note{background:#fff6dd;border-left:4px solid #e0a800;padding:.4rem .7rem;margin:.4rem 0}
svg{width:100%;max-width:620px}svg text{font-size:12px;fill:#555}svg line{stroke:#999}
.bar{fill:#4878a8}.bar.trusted{fill:#3c9d5c}
.scroll{overflow:auto;max-height:32rem;border:1px solid #ddd}
table{border-collapse:collapse;font-size:14px}td,th{padding:.25rem .6rem;text-align:left;white-space:nowrap}
tbody tr:nth-child(even){background:#f6f7f9}#ranking{width:100%}
#ranking thead{position:sticky;top:0;background:#fff;box-shadow:0 1px #ccc}
th button{font:inherit;font-weight:600;border:0;background:none;cursor:pointer;padding:0;color:#1b4f8a}
th button[data-order=asc]::after{content:" ▲"}th button[data-order=desc]::after{content:" ▼"}
.meter{display:inline-block;width:60px;height:9px;background:#e3e6ea;vertical-align:middle}
.meter i{display:block;height:100%;background:#c0392b}
details{border:1px solid #ddd;border-radius:4px;margin:.4rem 0;padding:.4rem .7rem}
summary{cursor:pointer;font-weight:600}details img{display:block;max-width:100%;margin:.6rem 0;background:#000}
"""

# The view (sorting, open case) lives in the address, so that it can be shared: #sort=distance:desc&case=name
_SCRIPT = """
"use strict";
const body = document.querySelector("#ranking tbody");
function view() { return new URLSearchParams(location.hash.slice(1)); }
function valueOf(row, column) {
  return row.querySelector(`td[data-column="${CSS.escape(column)}"]`).dataset.value;
}
function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const difference = Number(a) - Number(b);
  return Number.isNaN(difference) ? a.localeCompare(b, undefined, {numeric: true}) : difference;
}
function sortBy(column, order) {
  const button = document.querySelector(`th button[data-column="${CSS.escape(column)}"]`);
  if (!button) return;
  for (const other of document.querySelectorAll("th button")) delete other.dataset.order;
  button.dataset.order = order;
  const sign = order === "desc" ? -1 : 1;
  const rows = [...body.rows].map(row => [row, valueOf(row, column)]);
  // Cells without a number stay last in both orders.
  rows.sort(([, a], [, b]) => (a === "" || b === "" ? 1 : sign) * compare(a, b));
  body.append(...rows.map(([row]) => row));
}
function openCase(name) {
  const found = [...document.querySelectorAll("details.case")].find(one => one.dataset.case === name);
  if (found) { found.open = true; found.scrollIntoView(); }
}
function show() {
  const asked = view();
  if (asked.has("sort")) sortBy(...asked.get("sort").split(":"));
  if (asked.has("case")) openCase(asked.get("case"));
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const order = button.dataset.order === "asc" ? "desc" : "asc";
    const next = view();
    next.set("sort", `${button.dataset.column}:${order}`);
    next.delete("case");
    history.replaceState(null, "", "#" + next);
    sortBy(button.dataset.column, order);
  });
}
for (const link of document.querySelectorAll('#ranking a[href^="#case="]')) {
  link.addEventListener("click", event => {
    event.preventDefault();
    const next = view();
    next.set("case", link.closest("tr").dataset.case);
    history.replaceState(null, "", "#" + next);
    openCase(next.get("case"));
  });
}
addEventListener("hashchange", show);
show();
"""
