"""Figures of the results page: Dice per arm with SD, and Dice against the share of noisy cases."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from analysis import ArmResult, arm_results, comparable_rows
from settings import Cell, Study

COLOURS = {
    "clean": "#4d4d4d",
    "noisy": "#b2182b",
    "trusted_only": "#e08214",
    "mixed": "#d6a500",
    "metadcseg": "#2166ac",
    "oracle_drop": "#5aae61",
    "oracle_replace": "#1b7837",
}
OTHER = "#9e9e9e"


def draw_figures(study: Study, folder: Path, ours: str = "metadcseg") -> list[str]:
    """Draw what the results allow into ``folder``; returns paths relative to the folder's parent."""
    import matplotlib

    matplotlib.use("Agg")
    by_cell = arm_results(comparable_rows(study)[0])
    if not by_cell:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = [draw_arms(by_cell, folder / "noise_study_dice_per_arm.png", ours)]
    for name, series in noise_series(study, by_cell).items():
        written.append(draw_noise_level(series, by_cell, name, folder / f"noise_study_level_{len(written)}.png"))
    return [str(path.relative_to(folder.parent)) for path in written]


def draw_arms(by_cell: dict[str, dict[str, ArmResult]], file: Path, ours: str) -> Path:
    """One panel per cell, one point with SD per arm, best on top."""
    import matplotlib.pyplot as plt

    columns = min(3, len(by_cell))
    lines = math.ceil(len(by_cell) / columns)
    height = 0.28 * max(len(results) for results in by_cell.values()) + 1
    figure, axes = plt.subplots(lines, columns, figsize=(4.4 * columns, height * lines), squeeze=False)
    for axis, (name, results) in zip(axes.flat, by_cell.items(), strict=False):
        ordered = sorted(results.values(), key=lambda result: result.dice.mean)
        for position, result in enumerate(ordered):
            _point(axis, result.dice.mean, position, xerr=_sd(result), colour=COLOURS.get(result.arm, OTHER))
        axis.set_yticks(range(len(ordered)), [result.arm for result in ordered])
        for label in axis.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() == ours else "normal")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("Dice on clean test cases (mean, SD over runs)", fontsize=8)
        axis.grid(axis="x", alpha=0.3)
    for axis in axes.flat[len(by_cell) :]:
        axis.axis("off")
    return _save(figure, file)


def noise_series(study: Study, by_cell: dict[str, Any]) -> dict[str, list[Cell]]:
    """Cells that differ in nothing but the share of noisy cases, two or more of them."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for name in by_cell:
        cell = study.cells[name]
        key = f"{cell.dataset}, {' + '.join(cell.noise)}, {cell.trusted} trusted, {cell.steps} steps"
        key += "" if cell.label_dice is None else f", label Dice {cell.label_dice:g}"
        key += f", noise seed {cell.noise_seed}" if cell.noise_seed else ""
        groups[" ".join([key, *cell.corrupt_arguments])].append(cell)
    ordered = {name: sorted(cells, key=lambda cell: cell.case_fraction) for name, cells in groups.items()}
    return {name: cells for name, cells in ordered.items() if len({cell.case_fraction for cell in cells}) > 1}


def draw_noise_level(cells: list[Cell], by_cell: dict[str, dict[str, ArmResult]], title: str, file: Path) -> Path:
    """One line per arm over the share of noisy cases."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    arms = dict.fromkeys(arm for cell in cells for arm in by_cell[cell.name])
    for arm in arms:
        points = [(cell.case_fraction, by_cell[cell.name][arm]) for cell in cells if arm in by_cell[cell.name]]
        x = [fraction for fraction, _ in points]
        y = [result.dice.mean for _, result in points]
        error = [_sd(result) for _, result in points]
        colour = COLOURS.get(arm, OTHER)
        axis.errorbar(x, y, yerr=error, label=arm, color=colour, marker="o", markersize=4, capsize=2, linewidth=1.3)
    axis.set_xlabel("share of noisy cases")
    axis.set_ylabel("Dice on clean test cases")
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncol=2)
    return _save(figure, file)


def _sd(result: ArmResult) -> float:
    return 0.0 if math.isnan(result.dice.sd) else result.dice.sd


def _point(axis: Any, x: float, y: float, *, xerr: float, colour: str) -> None:
    axis.errorbar(x, y, xerr=xerr, fmt="o", color=colour, markersize=5, capsize=2)


def _save(figure: Any, file: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file
