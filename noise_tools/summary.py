"""What `noise_tools corrupt` tells people about its manifest: a table, and what they should know before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from noise_tools import manifest as manifests
from noise_tools.severity import MEASURES, REACHED

_TITLES = {"label_dice": "label Dice", "surface_distance": "HD95 in mm", "label_change": "changed share"}
_NAMED = 5  # cases named in a sentence


def summary(content: Mapping[str, Any]) -> str:
    """Table and sentences for people about a manifest."""
    entries = {name: entry for name, entry in content["cases"].items() if entry["noise"]}
    lines = [*_table(list(entries.values()), content["settings"]), _counts(content, entries)]
    lines += [*_left_out(content), *_unchanged(entries), *_missed_targets(entries.values()), *_lost(entries.values())]
    return "\n".join(lines)


def _table(entries: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """Per noise type the cases, the label Dice and any other measure asked for and achieved."""
    shown = [name for name in MEASURES if name == "label_dice" or settings[name] is not None]
    rows = [["noise", "cases"]]
    for name in shown:
        rows[0] += [f"{_TITLES[name]} asked", "achieved: mean (min - max)"]
    rows[0].append("missed")
    for kind in dict.fromkeys(entry["noise"] for entry in entries):
        rows.append(_row(kind, [entry for entry in entries if entry["noise"] == kind], shown))
    if len(rows) != 2:
        rows.append(_row("all", entries, shown))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(kind: str, entries: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> list[str]:
    cells = [kind, str(len(entries))]
    for name in shown:
        asked = next((entry[name]["asked"] for entry in entries), None)
        values = [entry[name]["achieved"] for entry in entries if entry[name]["achieved"] is not None]
        cells.append("-" if asked is None else f"{asked:.3f}")
        cells.append(f"{np.mean(values):.3f} ({min(values):.3f} - {max(values):.3f})" if values else "-")
    return [*cells, str(sum(_missed(entry) or "note" in entry for entry in entries))]


def _missed(entry: Mapping[str, Any]) -> bool:
    return any(entry[name]["reached"] is False for name in MEASURES)


def _counts(content: Mapping[str, Any], entries: Mapping[str, Any]) -> str:
    trusted, test = len(content["trusted_cases"]), len(content["test_cases"])
    clean = len(content["cases"]) - len(entries) - trusted
    return (
        f"{len(content['cases'])} training cases: {len(entries)} corrupted, {trusted} trusted, "
        f"{clean} clean but not trusted; {test} held out as test cases."
    )


def _left_out(content: Mapping[str, Any]) -> list[str]:
    """Cases chosen for noise that had nothing to corrupt."""
    count = sum(entry["noise"] is None and "note" in entry for entry in content["cases"].values())
    chosen = count + sum(entry["noise"] is not None for entry in content["cases"].values())
    if not count:
        return []
    return [f"{count} of the {chosen} cases chosen for noise have no foreground and stayed as they are."]


def _unchanged(entries: Mapping[str, Any]) -> list[str]:
    """Labels that are as they were: because the noise would have left nothing, or because it did nothing."""
    spared = [name for name, entry in entries.items() if "note" in entry]
    idle = [name for name, entry in entries.items() if not entry["changed"] and "note" not in entry]
    lines = []
    if spared:
        lines.append(
            f"{len(spared)} corrupted labels ({_named(spared)}) were left as they were, since the noise would have "
            "removed their whole foreground: ask for less, or pass --allow-empty."
        )
    if idle:
        lines.append(
            f"{len(entries) - len(idle) - len(spared)} of {len(entries)} corrupted labels changed; in the others "
            f"({_named(idle)}) the noise found nothing it could do that leaves foreground: ask for another "
            "strength, widen its range with --param, or take another type."
        )
    return lines


def _named(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
    return ", ".join(cases[:_NAMED]) + more


def _missed_targets(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    missed = sum(_missed(entry) for entry in entries)
    if not missed:
        return []
    return [
        f"{missed} corrupted labels could not be brought to the asked value (within {REACHED:.0%}); the closest "
        f"that was found was kept, see {manifests.FILE_NAME}."
    ]


def _lost(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Structures that are gone from corrupted labels, and labels that have none left."""
    held: dict[str, list[bool]] = {}
    empty = 0
    for entry in entries:
        # Without a Dice the region is on neither side; without a change of volume it is new.
        changes = {
            name: values["volume_change"] for name, values in entry["regions"].items() if values["dice"] is not None
        }
        empty += set(changes.values()) == {-1.0}
        for name, change in changes.items():
            if change is not None:
                held.setdefault(name, []).append(change == -1.0)
    lost = {name: gone for name, gone in held.items() if any(gone)}
    lines = [f"{name} is gone from {sum(gone)} of {len(gone)} corrupted labels." for name, gone in lost.items()]
    return [*lines, f"{empty} corrupted labels are empty."] if empty else lines
