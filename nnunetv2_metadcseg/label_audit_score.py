"""Label audit, all cases together: how far each label can be relied on, beside right ones, and the ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from nnunetv2_metadcseg.label_audit import (
    Disagreement,
    ErrorDirection,
    expected_rate,
    telling,
    with_usual_size,
)
from nnunetv2_metadcseg.label_audit_balance import Balance, find_balance, with_records
from nnunetv2_metadcseg.label_audit_decision import beyond_chance, decide
from nnunetv2_metadcseg.label_audit_findings import CaseFinding, LabelFinding


def score(findings: Sequence[CaseFinding]) -> None:
    """Sets `ratio`, what is found of every structure, and the rank of all cases.

    Cases predicted by a network that has seen their label disagree less, so each group has its own expectation.
    """
    _give_empty_labels_the_usual_size(findings)
    checked = [f for f in findings if f.trusted]
    unvouched = without_trusted_case(findings)
    for group in groups(findings):
        ratios, side, expected = _ratios(group, checked, lambda f: f.whole)
        tell = telling([f.whole for f in group])
        ratios = with_records(ratios, [f.record for f in group], [f.trusted for f in group], side, tell)
        for finding, ratio in zip(group, ratios, strict=True):
            finding.whole_ratio = finding.ratio = ratio
        for name in group[0].parts:
            least = expected if name in unvouched else 0.0
            own, *_ = _ratios(group, checked, lambda f, name=name: f.parts[name], least)
            for finding, ratio in zip(group, own, strict=True):
                direction = ErrorDirection("none", np.nan, np.nan, np.nan, 0, 0)
                finding.labels.append(LabelFinding(name, finding.parts[name].rate, ratio, direction))
    for finding in findings:
        if len(finding.labels) > 1:
            _let_label_decide(finding)
    for rank, finding in enumerate(sorted(findings, key=lambda f: (-f.ratio, f.case)), 1):
        finding.rank = rank


def _let_label_decide(finding: CaseFinding) -> None:
    """Gives a case the ratio of a single label where that is more, even beyond chance."""
    ratios = {label.name: beyond_chance(label.ratio, len(finding.labels)) for label in finding.labels}
    finding.ratio, finding.decided_by = decide(finding.whole_ratio, ratios)


def _give_empty_labels_the_usual_size(findings: Sequence[CaseFinding]) -> None:
    for finding, whole in zip(findings, with_usual_size([f.whole for f in findings]), strict=True):
        finding.whole = whole
    for name in findings[0].parts:
        for finding, part in zip(findings, with_usual_size([f.parts[name] for f in findings]), strict=True):
            finding.parts[name] = part


def groups(findings: Sequence[CaseFinding]) -> Iterable[list[CaseFinding]]:
    for out_of_fold in (True, False):
        group = [f for f in findings if f.out_of_fold is out_of_fold]
        if group:
            yield group


def without_trusted_case(findings: Sequence[CaseFinding]) -> list[str]:
    """Names of the labels that no trusted case holds.

    What is expected of them comes from the cases that agree best, of a rare label perhaps from a single one. So it is
    at least what is expected of all labels together: else a rare label would name the direction of every case.
    """
    return [name for name in findings[0].parts if not any(f.trusted and f.parts[name].labelled > 0 for f in findings)]


def _ratios(
    group: Sequence[CaseFinding],
    checked: Sequence[CaseFinding],
    part: Callable[[CaseFinding], Disagreement],
    least: float = 0.0,
) -> tuple[list[float], float, float]:
    """Rates of a group by what is expected of right labels, its side, and that expected rate.

    Args:
        checked: the trusted cases of all groups. least: of the expected rate.
    """
    balance = group_balance(group, checked, part)
    rates = np.array([balance.rate(part(f)) for f in group])
    elsewhere = [balance.rate(part(f)) for f in checked if part(f).labelled > 0]
    tell = telling([part(f) for f in group])
    trusted = np.array([f.trusted for f in group])
    expected = expected_rate(rates[tell], trusted[tell], float(np.mean(elsewhere)) if elsewhere else np.inf)
    expected = max(expected, least)
    return (rates / expected).tolist(), balance.side, expected


def group_balance(
    group: Sequence[CaseFinding], checked: Sequence[CaseFinding], part: Callable[[CaseFinding], Disagreement]
) -> Balance:
    """That of a group's doubtful cases beside its own trusted ones with this structure, or without any, beside all."""
    right = [f for f in group if f.trusted and part(f).labelled > 0]
    right = right or [f for f in checked if part(f).labelled > 0]
    return find_balance([part(f) for f in group if not f.trusted], [part(f) for f in right])
