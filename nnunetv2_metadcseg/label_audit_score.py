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
from nnunetv2_metadcseg.label_audit_decision import decide, excess, lower_spread, ratio_of, spread
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
    if len(findings[0].parts) > 1:
        _let_labels_decide(findings)
    for rank, finding in enumerate(sorted(findings, key=lambda f: (-f.ratio, f.case)), 1):
        finding.rank = rank


def _let_labels_decide(findings: Sequence[CaseFinding]) -> None:
    """Gives cases the ratio of a single label where that is more, on the scale of all labels together."""
    for group in groups(findings):
        whole = _spread_of_right(group, findings, lambda f: f.whole_ratio, lambda f: f.whole)
        own = {label.name: _spread_of_label(group, findings, i) for i, label in enumerate(group[0].labels)}
        for f in group:
            above = {label.name: excess(label.ratio, own[label.name], len(own)) for label in f.labels}
            for label in f.labels:
                label.beyond = ratio_of(above[label.name], own[label.name])
            # Scaled down where right labels vary more than cases, never up.
            scaled = {name: ratio_of(above[name], min(own[name], whole)) for name in own}
            f.ratio, f.decided_by = decide(f.whole_ratio, scaled)


def _spread_of_label(group: Sequence[CaseFinding], findings: Sequence[CaseFinding], index: int) -> float:
    """Of right labels; a few trusted ones may agree by chance, so at least what all labels of the group say of it."""
    right = _spread_of_right(group, findings, lambda f: f.labels[index].ratio, lambda f: f.part(index))
    return max(right, lower_spread([f.labels[index].ratio for f in group if f.part(index).labelled > 0]))


def _spread_of_right(
    group: Sequence[CaseFinding],
    findings: Sequence[CaseFinding],
    ratio: Callable[[CaseFinding], float],
    part: Callable[[CaseFinding], Disagreement],
) -> float:
    """Of the group's trusted cases with this structure, or without any of all, or else of all cases of the group.

    Where a trusted label rightly lacks the structure, what the network finds nevertheless is part of the spread.
    """
    for cases in ([f for f in group if f.trusted], [f for f in findings if f.trusted], group):
        ratios = [ratio(f) for f in cases if part(f).labelled > 0 or ratio(f) > 1]
        if ratios:
            return spread(ratios)
    return spread([])


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
