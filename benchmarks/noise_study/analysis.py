"""From result rows to statements: mean and SD over runs, noise recovery, and the verdict per cell.

All comparisons use the mean Dice over foreground classes and test cases of a run, then mean and sample SD over runs
(seeds and folds). Arms are compared on the runs that all of them have: some folds and seeds are harder than others.
"One SD" between two arms is the root mean square of their two SDs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from arms import ORACLE_ARMS, PLAIN_ARMS
from result_store import METRICS, Row, read_rows
from settings import Run, SettingsError, Study, settings_hash

CLEAN_MARGIN = 0.005  # Dice that may be lost when the labels are clean
ORACLE_SHARE = 0.9  # share of the oracle's recovery that is asked for
RunKey = tuple[str, str]  # fold and seed, as in the file


@dataclass(frozen=True)
class Summary:
    """Mean and sample SD of a value over runs; SD is not-a-number for a single run."""

    mean: float
    sd: float
    runs: int


@dataclass(frozen=True)
class ArmResult:
    """One arm of one cell: each metric as mean over classes, and Dice per class.

    Attributes:
        run_dice: Dice of each run, mean over classes.
        missed: missed or invented structures, and how many were looked at, over all runs, cases and classes. Those have
            a Dice (0) but no surface distance.
    """

    arm: str
    run_dice: dict[RunKey, float]
    metrics: dict[str, Summary]
    class_dice: dict[str, Summary]
    seconds_per_step: float
    alpha_auroc: Summary | None
    alpha_auroc_disagreeing: Summary | None
    missed: tuple[int, int]

    @property
    def dice(self) -> Summary:
        return self.metrics["dice"]

    def dice_of(self, runs: Iterable[RunKey]) -> Summary:
        """Mean and SD over these of its runs."""
        return summarise([self.run_dice[run] for run in runs])


@dataclass(frozen=True)
class Verdict:
    """Does our arm pass in a cell?

    Attributes:
        kind: ``deciding`` (the oracle beats the best plain arm by more than one SD), ``other``, ``clean labels`` or
            ``incomplete`` (arms are missing, or share fewer than two runs; ``passed`` is then None).
        reason: the numbers behind it.
    """

    kind: str
    passed: bool | None
    reason: str
    best_plain: str = ""
    best_oracle: str = ""
    recovery: dict[str, float] = field(default_factory=dict)


def _number(text: str) -> float:
    return float(text) if text not in ("", None) else float("nan")


def summarise(values: list[float]) -> Summary:
    """Mean and SD of what is a number; not-a-number everywhere if nothing is."""
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        return Summary(float("nan"), float("nan"), 0)
    sd = float(np.std(kept, ddof=1)) if len(kept) > 1 else float("nan")
    return Summary(float(np.mean(kept)), sd, len(kept))


def comparable_rows(study: Study) -> tuple[list[Row], int]:
    """Rows of trainings with the settings that the configuration file has now, and the number of rows left out.

    Seeds and arms that the configuration file does not list are kept: a row of theirs is as good as any. So are rows
    from before the column ``settings``, if the training was as long as it is now.

    Raises:
        SettingsError: the results folder holds rows of a cell that the study does not have.
    """
    rows = read_rows(study.results)
    unknown = sorted({row["cell"] for row in rows} - set(study.cells))
    if unknown:
        raise SettingsError(
            f"{study.results} holds results of cells that the configuration file does not have: {', '.join(unknown)}; "
            "give the file a folder of its own with 'results:', or add the cells."
        )
    kept = [row for row in rows if _is_current(study, row)]
    return kept, len(rows) - len(kept)


def _is_current(study: Study, row: Row) -> bool:
    if row["steps"] != str(study.cells[row["cell"]].steps):
        return False
    try:
        wanted = settings_hash(study, Run(row["cell"], int(row["fold"]), row["arm"], int(row["seed"])))
    except SettingsError:  # an arm that the file does not describe, such as one made with --set
        return True
    return row.get("settings", "") in ("", wanted)


def arm_results(rows: list[Row]) -> dict[str, dict[str, ArmResult]]:
    """Group rows: ``{cell: {arm: ArmResult}}``."""
    grouped: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["cell"], row["arm"]].append(row)
    out: dict[str, dict[str, ArmResult]] = defaultdict(dict)
    for (cell, arm), own in grouped.items():
        out[cell][arm] = _arm_result(arm, own)
    return dict(out)


def _arm_result(arm: str, rows: list[Row]) -> ArmResult:
    by_run: dict[RunKey, list[Row]] = defaultdict(list)
    by_class: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_run[row["fold"], row["seed"]].append(row)
        by_class[row["class"]].append(_number(row["dice"]))
    per_run = {
        metric: {key: summarise([_number(row[metric]) for row in run]).mean for key, run in by_run.items()}
        for metric in METRICS
    }
    first = [run[0] for run in by_run.values()]
    auroc, doubted = (
        summarise([_number(row.get(key, "")) for row in first]) for key in ("alpha_auroc", "alpha_auroc_disagreeing")
    )
    return ArmResult(
        arm=arm,
        run_dice={key: dice for key, dice in per_run["dice"].items() if not math.isnan(dice)},
        metrics={metric: summarise(list(means.values())) for metric, means in per_run.items()},
        class_dice={name: summarise(values) for name, values in by_class.items()},
        seconds_per_step=summarise([_number(row["seconds_per_step"]) for row in first]).mean,
        alpha_auroc=auroc if auroc.runs else None,
        alpha_auroc_disagreeing=doubted if doubted.runs else None,
        missed=(_total(rows, "missed"), _total(rows, "cases")),
    )


def _total(rows: list[Row], column: str) -> int:
    return sum(int(row.get(column) or 0) for row in rows)


def recovery(value: float, noisy: float, clean: float) -> float:
    """Noise recovery R = (value - noisy) / (clean - noisy): 0 is stock training on noisy labels, 1 on clean ones.

    Not-a-number where the noise costs nothing (clean <= noisy): there is then nothing to recover.
    """
    return (value - noisy) / (clean - noisy) if clean > noisy else float("nan")


def one_sd(first: Summary, second: Summary) -> float:
    """Root mean square of two SDs; not-a-number if one is of a single run."""
    return math.sqrt((first.sd**2 + second.sd**2) / 2)


def shared_runs(results: dict[str, ArmResult], arms: Iterable[str]) -> list[RunKey]:
    """Fold and seed of the runs that all these arms have."""
    return sorted(set.intersection(*(set(results[arm].run_dice) for arm in arms)))


def judge(results: dict[str, ArmResult], ours: str = "metadcseg", clean_labels: bool = False) -> Verdict:
    """The study's criterion for one cell, on the runs that ours, the plain arms and the best oracle share.

    - Labels clean: not more than 0.005 Dice below stock nnU-Net.
    - Deciding cell, where an oracle that knows the wrong voxels beats the best plain arm (noisy, trusted only, mixed)
      by more than one SD: ours must beat that arm by more than one SD and reach 0.9 of the oracle's recovery.
    - Elsewhere: not more than one SD below the best plain arm.
    """
    recovered = _recoveries(results)
    if ours not in results:
        return Verdict("incomplete", None, f"no run of {ours}", recovery=recovered)
    if clean_labels:
        return _judge_clean(results, ours, recovered)
    oracles = [name for name in ORACLE_ARMS if name in results]
    missing = [name for name in PLAIN_ARMS if name not in results] + ([] if oracles else ["oracle"])
    if missing:
        return Verdict("incomplete", None, f"no run of {', '.join(missing)}", recovery=recovered)
    shared = {name: shared_runs(results, (ours, *PLAIN_ARMS, name)) for name in oracles}
    oracle = _most_gained(results, shared, "noisy")
    if oracle is None:
        return _too_few((ours, *PLAIN_ARMS, "an oracle"), recovered)
    return _judge_noisy(results, ours, oracle, shared[oracle], recovered)


def _judge_noisy(
    results: dict[str, ArmResult], ours: str, best_oracle: str, runs: list[RunKey], recovered: dict[str, float]
) -> Verdict:
    """Deciding or other cell, by these runs of ours, the plain arms and the oracle."""
    dice = {name: results[name].dice_of(runs) for name in (ours, *PLAIN_ARMS, best_oracle)}
    best_plain = max(PLAIN_ARMS, key=lambda name: dice[name].mean)
    own, plain, oracle = dice[ours], dice[best_plain], dice[best_oracle]
    margin, sd = own.mean - plain.mean, one_sd(own, plain)
    reason = f"{margin:+.4f} against {best_plain} (SD {sd:.4f})"
    fewer = any(len(results[name].run_dice) > len(runs) for name in (ours, best_plain, best_oracle))
    where = f"; on the {len(runs)} shared runs" if fewer else ""
    common = {"best_plain": best_plain, "best_oracle": best_oracle, "recovery": recovered}
    if oracle.mean - plain.mean > one_sd(oracle, plain):
        share = recovery(own.mean, dice["noisy"].mean, oracle.mean)  # over the oracle's: the clean arm cancels
        passed = margin > sd and share >= ORACLE_SHARE
        reason = f"{reason}, {share:.2f} of the recovery of {best_oracle}{where}"
        return Verdict("deciding", passed, reason, **common)
    return Verdict("other", margin >= -sd, reason + where, **common)


def _judge_clean(results: dict[str, ArmResult], ours: str, recovered: dict[str, float]) -> Verdict:
    """Both ``clean`` and ``noisy`` are then stock nnU-Net on clean labels."""
    shared = {name: shared_runs(results, (ours, name)) for name in ("clean", "noisy") if name in results}
    if not shared:
        return Verdict("incomplete", None, "no run of clean", recovery=recovered)
    stock = _most_gained(results, shared, ours)
    if stock is None:
        return _too_few((ours, *shared), recovered)
    margin = results[ours].dice_of(shared[stock]).mean - results[stock].dice_of(shared[stock]).mean
    reason = f"{margin:+.4f} against stock nnU-Net"
    return Verdict("clean labels", margin >= -CLEAN_MARGIN, reason, best_plain=stock, recovery=recovered)


def _most_gained(results: dict[str, ArmResult], shared: dict[str, list[RunKey]], base: str) -> str | None:
    """Of the arms with two shared runs or more, the one with most Dice above ``base`` on them; None without such."""
    gained = {
        name: results[name].dice_of(runs).mean - results[base].dice_of(runs).mean
        for name, runs in shared.items()
        if len(runs) > 1
    }
    return max(gained, key=gained.get, default=None)


def _too_few(arms: Iterable[str], recovered: dict[str, float]) -> Verdict:
    return Verdict("incomplete", None, f"fewer than two runs shared by {', '.join(arms)}", recovery=recovered)


def _recoveries(results: dict[str, ArmResult]) -> dict[str, float]:
    """Of each arm, on the runs that it shares with noisy and clean; without such runs it has none."""
    if "noisy" not in results or "clean" not in results:
        return {}
    out = {}
    for name, result in results.items():
        runs = shared_runs(results, (name, "noisy", "clean"))
        if runs:
            value, noisy, clean = (arm.dice_of(runs).mean for arm in (result, results["noisy"], results["clean"]))
            out[name] = recovery(value, noisy, clean)
    return out
