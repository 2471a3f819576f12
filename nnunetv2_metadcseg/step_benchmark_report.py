"""What the benchmark says: a Markdown table, a bar chart, JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_metadcseg.step_benchmark import ArmCost, Effort, Result
from nnunetv2_metadcseg.step_benchmark_parts import PARTS


def ratio(cost: ArmCost, costs: Sequence[ArmCost], to: str = "stock", attribute: str = "step_seconds") -> float | None:
    """Cost of an arm divided by that of another; None where either was not measured."""
    other = next((getattr(c, attribute) for c in costs if c.arm == to), None)
    mine = getattr(cost, attribute)
    return mine / other if mine is not None and other else None


def table(result: Result, effort: Effort) -> str:
    """One configuration: all arms, MetaDCSeg's parts, drawing a batch."""
    target, costs = result.target, result.costs
    batch, *patch = result.patch
    threads = f", {target.threads} thread(s)" if target.device == "cpu" else ""
    lines = [
        f"{Path(target.folder).name} {target.configuration}: {batch} patches of {' x '.join(map(str, patch))}, "
        f"{target.device}{threads}, {effort.clock} time, {result.steps} steps per arm, "
        f"{result.disagreeing:.1%} of given-label voxels disagree",
        "",
        "| arm | s per step | x stock | x stock channels_last | peak MiB | x stock |",
        "|---|---|---|---|---|---|",
    ]
    for cost in costs:
        cells = (
            cost.arm,
            f"{cost.step_seconds:.4f}",
            _number(ratio(cost, costs)),
            _number(ratio(cost, costs, "stock_channels_last")),
            _number(cost.peak_mb, 0),
            _number(ratio(cost, costs, attribute="peak_mb")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += _parts_table([cost for cost in costs if cost.parts])
    data = ", ".join(f"{arm} {seconds:.4f} s" for arm, seconds in result.data_seconds.items())
    return "\n".join(
        [*lines, "", f"Drawing and augmenting a batch in the training process, not part of a step: {data}."]
    )


def _parts_table(costs: list[ArmCost]) -> list[str]:
    if not costs:
        return []
    lines = ["", f"| part, ms | {' | '.join(c.arm for c in costs)} |", f"|---|{'---|' * len(costs)}"]
    for part in PARTS:
        lines.append(f"| {part} | {' | '.join(f'{1000 * c.parts.get(part, 0):.1f}' for c in costs)} |")
    return lines


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def records(results: Sequence[Result]) -> list[dict]:
    """One per arm and configuration: device, configuration, arm, steps, step_seconds, peak_mb, ratio_to_stock."""
    return [
        {
            "device": result.target.device,
            "configuration": result.target.configuration,
            "arm": cost.arm,
            "steps": result.steps,
            "step_seconds": cost.step_seconds,
            "peak_mb": cost.peak_mb,
            "ratio_to_stock": ratio(cost, result.costs),
        }
        for result in results
        for cost in result.costs
    ]


def write_json(results: Sequence[Result], path: Path) -> None:
    """`records` as a JSON file, written whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(records(results), indent=1) + "\n")
    os.replace(partial, path)


def write_chart(results: Sequence[Result], path: Path) -> None:
    """Bars per configuration, seconds per step on the left and peak memory on the right, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.6 + 0.45 * sum(len(r.costs) + 1 for r in results)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(results), 2, squeeze=False)
    for result, (left, right) in zip(results, rows, strict=True):
        costs = result.costs[::-1]
        title = f"{Path(result.target.folder).name} {result.target.configuration}, {result.target.device}"
        _bars(left, costs, "step_seconds", f"{title}\nseconds per step (x stock)", 3)
        _bars(right, costs, "peak_mb", "\npeak memory, MiB (x stock)", 0)
        right.set_yticklabels([])
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=120)
    os.replace(partial, path)


def _bars(axes, costs: Sequence[ArmCost], attribute: str, title: str, digits: int) -> None:
    values = [getattr(cost, attribute) for cost in costs]
    colors = ["tab:orange" if cost.arm.startswith("metadcseg") else "tab:gray" for cost in costs]
    bars = axes.barh([cost.arm for cost in costs], [value or 0 for value in values], color=colors)
    labels = [
        "not measured" if value is None else f"{value:.{digits}f} ({_number(ratio(cost, costs, attribute=attribute))})"
        for cost, value in zip(costs, values, strict=True)
    ]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.margins(x=0.25)
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
