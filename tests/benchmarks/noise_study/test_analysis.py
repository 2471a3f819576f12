from __future__ import annotations

import math

import pytest
from analysis import Summary, arm_results, judge, one_sd, recovery, summarise
from result_store import format_value

from .conftest import result_row


def results_of(**dice):
    """One cell; each arm with its Dice per seed."""
    rows = [result_row(arm, seed, value) for arm, values in dice.items() for seed, value in enumerate(values)]
    return arm_results([as_read(row) for row in rows])["toy_60"]


def as_read(row, auroc=""):
    """The row as it comes back from the file: all strings."""
    return {key: format_value(value) for key, value in row.items()} | {"alpha_auroc": auroc}


PLAIN = {"noisy": [0.70, 0.72], "trusted_only": [0.74, 0.76], "mixed": [0.73, 0.75], "clean": [0.86, 0.88]}


def test_summarise():
    assert summarise([1.0, 2.0, 3.0]) == Summary(2.0, 1.0, 3)
    assert summarise([1.0, math.nan]).runs == 1 and math.isnan(summarise([1.0]).sd)
    assert summarise([]).runs == 0


def test_recovery():
    assert recovery(0.8, 0.7, 0.9) == pytest.approx(0.5)
    assert recovery(0.6, 0.7, 0.9) == pytest.approx(-0.5)
    assert math.isnan(recovery(0.8, 0.9, 0.9)), "noise that costs nothing leaves nothing to recover"


def test_one_sd_is_the_root_mean_square():
    assert one_sd(Summary(0, 3.0, 3), Summary(0, 4.0, 3)) == pytest.approx(math.sqrt(12.5))
    assert math.isnan(one_sd(Summary(0, math.nan, 1), Summary(0, 2.0, 3)))


def test_classes_are_averaged_within_a_run():
    rows = [result_row("noisy", seed, dice, name=name) for seed, name, dice in [(0, "a", 0.6), (0, "b", 0.8)]]
    rows += [result_row("noisy", seed, dice, name=name) for seed, name, dice in [(1, "a", 0.7), (1, "b", 0.9)]]
    arm = arm_results([as_read(row, "0.9") for row in rows])["toy_60"]["noisy"]
    assert arm.dice.mean == pytest.approx(0.75) and arm.dice.runs == 2
    assert arm.dice.sd == pytest.approx(0.1 / math.sqrt(2))
    assert arm.class_dice["b"].mean == pytest.approx(0.85)
    assert arm.alpha_auroc.mean == pytest.approx(0.9)


def test_deciding_cell_passed():
    verdict = judge(results_of(**PLAIN, oracle_drop=[0.80, 0.82], metadcseg=[0.80, 0.82]))
    assert (verdict.kind, verdict.passed, verdict.best_plain) == ("deciding", True, "trusted_only")
    assert verdict.recovery["metadcseg"] == pytest.approx(0.1 / 0.16)


def test_deciding_cell_fails_below_nine_tenths_of_the_oracle():
    verdict = judge(results_of(**PLAIN, oracle_drop=[0.84, 0.86], metadcseg=[0.80, 0.82]))
    assert (verdict.kind, verdict.passed) == ("deciding", False)


def test_deciding_cell_fails_within_one_sd_of_the_best_plain_arm():
    verdict = judge(results_of(**PLAIN, oracle_drop=[0.79, 0.79], metadcseg=[0.72, 0.79]))
    assert (verdict.kind, verdict.passed) == ("deciding", False)


def test_the_better_oracle_counts():
    verdict = judge(results_of(**PLAIN, oracle_drop=[0.7, 0.7], oracle_replace=[0.8, 0.8], metadcseg=[0.8, 0.8]))
    assert (verdict.kind, verdict.best_oracle, verdict.passed) == ("deciding", "oracle_replace", True)


@pytest.mark.parametrize(("ours", "passed"), [([0.74, 0.75], True), ([0.71, 0.72], False)])
def test_other_cell(ours, passed):
    verdict = judge(results_of(**PLAIN, oracle_drop=[0.75, 0.76], metadcseg=ours))
    assert (verdict.kind, verdict.passed) == ("other", passed)


@pytest.mark.parametrize(("ours", "passed"), [([0.866, 0.876], True), ([0.85, 0.86], False)])
def test_clean_labels(ours, passed):
    verdict = judge(results_of(clean=[0.87, 0.87], metadcseg=ours), clean_labels=True)
    assert (verdict.kind, verdict.passed) == ("clean labels", passed)


def test_incomplete_cells_are_not_judged():
    assert judge(results_of(noisy=[0.7])).passed is None
    verdict = judge(results_of(noisy=[0.7], mixed=[0.7], metadcseg=[0.8]))
    assert verdict.passed is None and "trusted_only" in verdict.reason and "oracle" in verdict.reason


def test_a_single_run_has_no_sd_and_is_not_judged():
    verdict = judge(results_of(**PLAIN, oracle_drop=[0.84], metadcseg=[0.84, 0.86]))
    assert (verdict.kind, verdict.passed) == ("incomplete", None)
    assert verdict.reason == "fewer than two runs shared by metadcseg, noisy, trusted_only, mixed, an oracle"


def rows_of_folds(arm, dice):
    return [as_read(result_row(arm, 0, value, fold=fold)) for fold, value in dice.items()]


def test_arms_are_compared_on_the_runs_that_they_share():
    """Ours is as good as noisy in every fold, and lacks the two hard ones."""
    folds = {0: 0.60, 1: 0.62, 2: 0.80, 3: 0.82, 4: 0.84}
    above = {"noisy": 0.0, "trusted_only": -0.01, "mixed": 0.0, "oracle_drop": 0.1, "clean": 0.1}
    rows = [row for arm, gain in above.items() for row in rows_of_folds(arm, {f: d + gain for f, d in folds.items()})]
    rows += rows_of_folds("metadcseg", {fold: folds[fold] for fold in (2, 3, 4)})
    verdict = judge(arm_results(rows)["toy_60"])
    assert (verdict.kind, verdict.passed) == ("deciding", False)
    assert verdict.reason.startswith("+0.0000 against noisy (SD 0.0200), 0.00 of the recovery of oracle_drop")
    assert verdict.reason.endswith("; on the 3 shared runs")
    assert verdict.recovery["metadcseg"] == pytest.approx(0.0)


def test_arms_that_share_no_two_runs_are_not_judged():
    rows = rows_of_folds("clean", {0: 0.8, 1: 0.8}) + rows_of_folds("metadcseg", {1: 0.9, 2: 0.9})
    verdict = judge(arm_results(rows)["toy_60"], clean_labels=True)
    assert (verdict.passed, verdict.reason) == (None, "fewer than two runs shared by metadcseg, clean")


def test_an_oracle_of_a_single_run_is_no_measure():
    verdict = judge(results_of(**PLAIN, oracle_drop=[0.8, 0.82], oracle_alpha=[0.95], metadcseg=[0.8, 0.82]))
    assert (verdict.passed, verdict.best_oracle) == (True, "oracle_drop")
