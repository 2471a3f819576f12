"""From result rows to statements: mean and SD over runs, noise recovery, and the verdict per cell.

All comparisons use the mean Dice over foreground classes and test cases of a run, then mean and sample SD over runs
(seeds and folds). "One SD" between two arms is the root mean square of their two SDs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from arms import ORACLE_ARMS, PLAIN_ARMS
from result_store import METRICS, Row, read_rows
from settings import Run, SettingsError, Study, settings_hash

CLEAN_MARGIN = 0.005  # Dice that may be lost when the labels are clean
ORACLE_SHARE = 0.9  # share of the oracle's recovery that is asked for


@dataclass(frozen=True)
class Summary:
    """Mean and sample SD of a value over runs; SD is not-a-number for a single run."""

    mean: float
    sd: float
    runs: int


@dataclass(frozen=True)
class ArmResult:
    """One arm of one cell: each metric as mean over classes, and Dice per class."""

    arm: str
    metrics: dict[str, Summary]
    class_dice: dict[str, Summary]
    seconds_per_step: float
    alpha_auroc: Summary | None
    alpha_auroc_disagreeing: Summary | None

    @property
    def dice(self) -> Summary:
        return self.metrics["dice"]


@dataclass(frozen=True)
class Verdict:
    """Does our arm pass in a cell?

    Attributes:
        kind: ``deciding`` (the oracle beats the best plain arm by more than one SD), ``other``, ``clean labels`` or
            ``incomplete`` (arms are missing, or have a single run and so no SD; ``passed`` is then None).
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
    by_run: dict[tuple[str, str], list[Row]] = defaultdict(list)
    by_class: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_run[row["fold"], row["seed"]].append(row)
        by_class[row["class"]].append(_number(row["dice"]))
    metrics = {
        metric: summarise([summarise([_number(row[metric]) for row in run]).mean for run in by_run.values()])
        for metric in METRICS
    }
    first = [run[0] for run in by_run.values()]
    auroc, doubted = (
        summarise([_number(row.get(key, "")) for row in first]) for key in ("alpha_auroc", "alpha_auroc_disagreeing")
    )
    return ArmResult(
        arm=arm,
        metrics=metrics,
        class_dice={name: summarise(values) for name, values in by_class.items()},
        seconds_per_step=summarise([_number(row["seconds_per_step"]) for row in first]).mean,
        alpha_auroc=auroc if auroc.runs else None,
        alpha_auroc_disagreeing=doubted if doubted.runs else None,
    )


def recovery(value: float, noisy: float, clean: float) -> float:
    """Noise recovery R = (value - noisy) / (clean - noisy): 0 is stock training on noisy labels, 1 on clean ones.

    Not-a-number where the noise costs nothing (clean <= noisy): there is then nothing to recover.
    """
    return (value - noisy) / (clean - noisy) if clean > noisy else float("nan")


def one_sd(first: Summary, second: Summary) -> float:
    """Root mean square of two SDs; not-a-number if one is of a single run."""
    return math.sqrt((first.sd**2 + second.sd**2) / 2)


def _best(results: dict[str, ArmResult], names: tuple[str, ...]) -> ArmResult | None:
    present = [results[name] for name in names if name in results]
    return max(present, key=lambda result: result.dice.mean) if present else None


def judge(results: dict[str, ArmResult], ours: str = "metadcseg", clean_labels: bool = False) -> Verdict:
    """The study's criterion for one cell.

    - Labels clean: not more than 0.005 Dice below stock nnU-Net.
    - Deciding cell, where an oracle that knows the wrong voxels beats the best plain arm (noisy, trusted only, mixed)
      by more than one SD: ours must beat that arm by more than one SD and reach 0.9 of the oracle's recovery.
    - Elsewhere: not more than one SD below the best plain arm.
    """
    plain = _best(results, PLAIN_ARMS)
    oracle = _best(results, ORACLE_ARMS)
    recovered = _recoveries(results)
    if ours not in results:
        return Verdict("incomplete", None, f"no run of {ours}", recovery=recovered)
    own = results[ours].dice
    if clean_labels:
        return _judge_clean(own, results, recovered)
    missing = [name for name in PLAIN_ARMS if name not in results]
    if missing or oracle is None or plain is None:
        lacking = missing + ([] if oracle else ["oracle"])
        return Verdict("incomplete", None, f"no run of {', '.join(lacking)}", recovery=recovered)
    single = [result.arm for result in (results[ours], plain, oracle) if result.dice.runs < 2]
    if single:
        return Verdict("incomplete", None, f"a single run of {', '.join(single)}", recovery=recovered)
    margin = own.mean - plain.dice.mean
    sd = one_sd(own, plain.dice)
    common = {"best_plain": plain.arm, "best_oracle": oracle.arm, "recovery": recovered}
    if oracle.dice.mean - plain.dice.mean > one_sd(oracle.dice, plain.dice):
        share = _oracle_share(own, oracle.dice, results)
        passed = margin > sd and share >= ORACLE_SHARE
        reason = f"{margin:+.4f} against {plain.arm} (SD {sd:.4f}), {share:.2f} of the recovery of {oracle.arm}"
        return Verdict("deciding", passed, reason, **common)
    return Verdict("other", margin >= -sd, f"{margin:+.4f} against {plain.arm} (SD {sd:.4f})", **common)


def _judge_clean(own: Summary, results: dict[str, ArmResult], recovered: dict[str, float]) -> Verdict:
    stock = _best(results, ("clean", "noisy"))
    if stock is None:
        return Verdict("incomplete", None, "no run of clean", recovery=recovered)
    margin = own.mean - stock.dice.mean
    reason = f"{margin:+.4f} against stock nnU-Net"
    return Verdict("clean labels", margin >= -CLEAN_MARGIN, reason, best_plain=stock.arm, recovery=recovered)


def _recoveries(results: dict[str, ArmResult]) -> dict[str, float]:
    if "noisy" not in results or "clean" not in results:
        return {}
    noisy, clean = results["noisy"].dice.mean, results["clean"].dice.mean
    return {name: recovery(result.dice.mean, noisy, clean) for name, result in results.items()}


def _oracle_share(own: Summary, oracle: Summary, results: dict[str, ArmResult]) -> float:
    """Our recovery over the oracle's: the clean arm cancels, so it need not have run."""
    noisy = results["noisy"].dice.mean
    gained = oracle.mean - noisy
    return (own.mean - noisy) / gained if gained > 0 else float("nan")
