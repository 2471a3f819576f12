"""Label audit, what it was made of: provenance, the signals used, and what the reader must know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nnunetv2_metadcseg import __version__
from nnunetv2_metadcseg.label_audit import telling
from nnunetv2_metadcseg.label_audit_calibration import Calibration, by_structure, calibration_notes
from nnunetv2_metadcseg.label_audit_findings import CaseFinding
from nnunetv2_metadcseg.label_audit_predict import TrainedModel
from nnunetv2_metadcseg.label_audit_score import group_balance, groups, without_trusted_case

LEAST_TELLING = 5  # cases of which the fifth that agrees best is one at least


def describe(model: TrainedModel, findings: Sequence[CaseFinding], calibration: Calibration) -> dict[str, Any]:
    """Provenance, the signals used, and what the reader must know."""
    networks = model.networks.values()
    learned = any(network.trainer_record is not None for network in networks)
    signals = ["disagreement of label and prediction, weighed by the prediction's confidence"]
    if any(f.record is not None for f in findings):
        signals.append("disagreement of label and second opinion during training, over all visits of the case")
    if model.maps == "learned":
        signals.append("learned weights: 1 - alpha per voxel (maps only)")
    return {
        "version": __version__,
        "dataset": model.predictor.plans_manager.dataset_name,
        "data_identifier": model.configuration.data_identifier,
        "model": model.folder.name,
        "folds": [str(fold) for fold in model.folds],
        "trainer": next((network.trainer for network in networks if network.trainer), model.folder.name.split("__")[0]),
        "signals": signals,
        "offsets": by_structure(calibration, model.structures),
        "balances": _balances(findings),
        "notes": _notes(model, findings, learned) + calibration_notes(calibration, model.structures),
        "file_ending": model.file_ending,
    }


def _notes(model: TrainedModel, findings: Sequence[CaseFinding], learned: bool) -> list[str]:
    notes = [network.note for network in model.networks.values() if network.note]
    if not learned and not notes:
        notes.append("No learned weights in this checkpoint: ranking and maps come from the prediction alone.")
    notes += model.split_notes()
    seen = sum(not f.out_of_fold for f in findings)
    if seen:
        notes.append(
            f"{seen} of {len(findings)} cases are predicted by a network that was trained on their label (no fold "
            "given here has them outside its training cases); it may have learned the error. Train and give more folds "
            "to mend this."
        )
    if not any(f.trusted for f in findings):
        notes.append(
            "No trusted case among these: the disagreement of right labels is taken from the fifth of the cases that "
            "agree best."
        )
        notes += _few_notes(findings)
    elif not all(any(f.trusted for f in group) for group in groups(findings)):
        lacking = "out of fold" if any(f.trusted and not f.out_of_fold for f in findings) else "in fold"
        notes.append(
            f"No trusted case is among those predicted {lacking}, so what is "
            "expected of right labels there rests on the cases that agree best and is bounded by the trusted cases of "
            "the others; train and give all folds, and compare ranks within each kind only."
        )
    return notes + unvouched_notes(findings)


def _few_notes(findings: Sequence[CaseFinding]) -> list[str]:
    """Without trusted cases: of a kind with a few cases the best is the measure of all, a single one that of itself."""
    few = min(int(telling([f.whole for f in group]).sum()) for group in groups(findings))
    if few >= LEAST_TELLING:
        return []
    return [
        f"Only {few} of these cases can tell what is expected of right labels, expected at least {LEAST_TELLING}: a "
        "reliability near 0.5 says nothing here, whatever the label; audit more cases (without --cases), or declare "
        "trusted ones."
    ]


def unvouched_notes(findings: Sequence[CaseFinding]) -> list[str]:
    """Labels that some case holds but no trusted one; without any trusted case another note says so."""
    names = [n for n in without_trusted_case(findings) if any(f.parts[n].labelled > 0 for f in findings)]
    if not names or not any(f.trusted for f in findings):
        return []
    return [
        f"No trusted case holds {', '.join(names)}: what is expected of right labels there rests on the cases that "
        "agree best, and is at least that of all labels together; trust a case that holds each."
    ]


def _balances(findings: Sequence[CaseFinding]) -> dict[str, dict[str, float]]:
    """Center and side of the labels of all cases of a kind together."""
    checked = [f for f in findings if f.trusted]
    return {
        "out of fold" if group[0].out_of_fold else "in fold": asdict(group_balance(group, checked, lambda f: f.whole))
        for group in groups(findings)
    }
