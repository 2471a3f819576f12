"""Scores of every method for every case and voxel, and how well they find what was corrupted."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_metadcseg.label_audit import disagreement, wrong_probability
from nnunetv2_metadcseg.label_audit_findings import measure, probability_of_given, voxel_ratios
from nnunetv2_metadcseg.label_audit_score import score

METHOD_COLUMNS = ("dataset", "label_dice", "seed", "method", "case_auroc", "precision_at_k", "voxel_auroc")
SIGNAL_COLUMNS = ("dataset", "label_dice", "seed", "model", "kind", "signal", "auroc")
Scores = dict[str, dict[str, Any]]  # method -> case -> score (a number, or a map)


def evaluate(cell: Any, folder: Path, clean: Callable[[str], np.ndarray]) -> tuple[list[dict], list[dict]]:
    """Rows of both results files.

    Judged are the cases that are not trusted: a case is positive if its label differs from the clean one anywhere, a
    voxel if it differs there. precision_at_k: k is the number of corrupted cases. Case scores of rivals and voxel maps
    come from the same stock networks, out of fold but for small_loss; higher is more suspicious.
    """
    structures = pickle.loads((folder / "structures.pkl").read_bytes())
    stock, ours = (load(folder, arm) for arm in ("stock", "metadcseg"))
    doubtful = [case for case, content in stock.items() if not content["trusted"]]
    wrong = {case: stock[case]["oof"].given != clean(case) for case in doubtful}
    case_scores, maps = rivals(stock, doubtful, structures)
    for name, contents in (("metadcseg", ours), ("audit_stock", stock)):
        case_scores[name], maps[name] = audit(contents, structures, doubtful)
    key = {"dataset": cell.dataset, "label_dice": cell.label_dice, "seed": cell.seed}
    methods = [
        key | {"method": name} | case_quality(case_scores[name], wrong) | {"voxel_auroc": pooled(maps[name], wrong)}
        for name in case_scores
    ]
    return methods, [key | row for row in study(stock, ours, structures, wrong)]


def load(folder: Path, arm: str) -> dict[str, dict]:
    files = sorted(folder.glob(f"*.{arm}.pkl"))
    return {f.name.removesuffix(f".{arm}.pkl"): pickle.loads(f.read_bytes()) for f in files}


# ---- methods --------------------------------------------------------------------------------------------------------


def audit(contents: dict[str, dict], structures: Sequence, doubtful: Sequence[str]) -> tuple[dict, dict]:
    """What `metadcseg audit` gives: ratio per case (its reliability falls with it) and suspicion maps."""
    findings = scored(contents, "oof", structures)
    maps = {case: suspicion(findings[case], contents[case]["oof"], structures) for case in doubtful}
    return {case: findings[case].ratio for case in doubtful}, maps


def suspicion(finding: Any, prediction: Any, structures: Sequence) -> np.ndarray:
    ratios = voxel_ratios(finding, prediction.given, prediction.predicted, structures, regions=False)
    return wrong_probability(given_probability(prediction), ratios)


def scored(contents: dict, kind: str, structures: Sequence, with_records: bool = True) -> dict[str, Any]:
    """The audit's finding of every case, from the predictions of a kind; without what the trainer recorded on wish."""
    findings = {case: measure(case, c[kind], structures, c["trusted"]) for case, c in contents.items()}
    if not with_records:
        for finding in findings.values():
            finding.record = None
    score(list(findings.values()))
    return findings


def given_probability(prediction: Any) -> np.ndarray:
    return probability_of_given(prediction, (), regions=False)


def rivals(stock: dict[str, dict], doubtful: Sequence[str], structures: Sequence) -> tuple[Scores, Scores]:
    """The rivals named in the issue."""
    names = ("small_loss", "oof_dice", "confidence", "cleanlab")
    scores: Scores = {name: {} for name in names}
    maps: Scores = {name: {} for name in names}
    for case in doubtful:
        oof, seen = stock[case]["plain"], stock[case]["seen"]
        loss = -np.log(np.clip(given_probability(seen), 1e-4, 1))
        scores["small_loss"][case], maps["small_loss"][case] = float(loss.mean()), loss
        scores["oof_dice"][case] = 1 - mean_dice(oof.given, oof.predicted, structures)
        maps["oof_dice"][case] = (oof.given != oof.predicted).astype(np.float32)
        doubt = 1 - oof.probabilities.max(0).astype(np.float32)
        structure = (oof.given > 0) | (oof.predicted > 0)
        scores["confidence"][case] = float(doubt[structure].mean()) if structure.any() else 0.0
        maps["confidence"][case] = doubt
        scores["cleanlab"][case], maps["cleanlab"][case] = cleanlab_scores(oof)
    return scores, maps


def mean_dice(given: np.ndarray, predicted: np.ndarray, structures: Sequence) -> float:
    dice = []
    for s in structures:
        a, b = np.isin(given, s.values), np.isin(predicted, s.values)
        if a.any() or b.any():
            dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(dice)) if dice else 1.0


def cleanlab_scores(prediction: Any) -> tuple[float, np.ndarray]:
    """cleanlab.segmentation's softmin score per image (a volume is one tall image) and its pixel scores."""
    from cleanlab.segmentation.rank import get_label_quality_scores

    shape = prediction.given.shape
    flat = (1, -1, shape[-1])
    probabilities = prediction.probabilities.astype(np.float64)
    probabilities = (probabilities / probabilities.sum(0)).reshape(1, len(probabilities), -1, shape[-1])
    image, pixel = get_label_quality_scores(prediction.given.reshape(flat).astype(int), probabilities, verbose=False)
    return 1 - float(image[0]), 1 - pixel[0].reshape(shape)


# ---- quality --------------------------------------------------------------------------------------------------------


def case_quality(scores: dict[str, float], wrong: dict[str, np.ndarray]) -> dict[str, float]:
    cases = list(scores)
    truth = np.array([wrong[case].any() for case in cases])
    values = np.array([scores[case] for case in cases])
    k = int(truth.sum())
    # Ties in the order of the scores count by chance: the mean over both orders.
    first = [truth[np.lexsort((sign * np.arange(len(cases)), -values))][:k].mean() for sign in (1, -1)]
    return {"case_auroc": round(auroc(values, truth), 4), "precision_at_k": round(float(np.mean(first)), 4)}


def pooled(maps: dict[str, np.ndarray], wrong: dict[str, np.ndarray]) -> float:
    """AUROC over the voxels of all cases together."""
    values = np.concatenate([maps[case].ravel() for case in wrong])
    return round(auroc(values, np.concatenate([wrong[case].ravel() for case in wrong])), 4)


def auroc(values: np.ndarray, truth: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, values.astype(np.float32)))


# ---- which signals are worth it -------------------------------------------------------------------------------------


def study(stock: dict, ours: dict, structures: Sequence, wrong: dict[str, np.ndarray]) -> list[dict]:
    """AUROC of single signals and combinations, out of fold and in fold."""
    rows = []
    for model, contents in (("stock", stock), ("metadcseg", ours)):
        for kind in ("oof", "seen") if model == "stock" else ("oof",):
            chosen = {case: c[kind] for case, c in contents.items()}
            signals = case_signals(chosen, structures, wrong) | audit_signals(contents, kind, structures, wrong)
            for name, values in signals.items():
                truth = np.array([wrong[case].any() for case in wrong])
                row = {"model": model, "kind": f"case, {kind}", "signal": name}
                rows.append(row | {"auroc": round(auroc(np.array([values[c] for c in wrong]), truth), 4)})
            for name, maps in voxel_signals(contents, kind, structures, wrong):
                row = {"model": model, "kind": f"voxel, {kind}", "signal": name}
                rows.append(row | {"auroc": pooled(maps, wrong)})
    return rows


def case_signals(chosen: dict[str, Any], structures: Sequence, wrong: dict) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for case in wrong:
        p = chosen[case]
        parts, hard, soft = [], [], []
        for s in structures:
            given, q = np.isin(p.given, s.values), p.probabilities[s.head].astype(np.float32)
            part = disagreement(given, q)
            parts.append(part)
            size = max(part.size, 1e-6)
            hard.append((given != (q > 0.5)).sum() / size)
            soft.append(np.abs(given - q).sum() / size)
        own = {
            "confident, pooled": sum(x.extra + x.missing for x in parts) / max(sum(x.size for x in parts), 1e-6),
            "confident, worst structure": max(x.rate for x in parts),
            "confident, balance": sum(abs(x.extra - x.missing) for x in parts) / max(sum(x.size for x in parts), 1e-6),
            "hard": float(np.mean(hard)),
            "soft": float(np.mean(soft)),
        }
        for name, value in own.items():
            found.setdefault(name, {})[case] = float(value)
    return {name: values for name, values in found.items() if len(values) == len(wrong)}


def audit_signals(contents: dict, kind: str, structures: Sequence, wrong: dict) -> dict[str, dict[str, float]]:
    """The audit's ratio, without what the trainer recorded, that alone, and the trainer's belief in its place."""
    findings = scored(contents, kind, structures)
    found = {"ratio": {case: findings[case].ratio for case in wrong}}
    found["ratio of all labels together"] = {case: findings[case].whole_ratio for case in wrong}
    records = {case: findings[case].record for case in wrong}
    if all(record is not None for record in records.values()):
        found["record"] = {case: record.ratio for case, record in records.items()}
    without = scored(contents, kind, structures, with_records=False)
    ratio = found["ratio without record"] = {case: without[case].ratio for case in wrong}
    beliefs = {case: contents[case][kind].belief for case in wrong}
    odds = {case: (1 - b) / b for case, b in beliefs.items() if b}
    if odds:
        found["ratio x belief"] = with_second(ratio, odds)
    return found


def with_second(ratio: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Geometric mean with a second signal where it is known."""
    return {case: float(np.sqrt(max(value, 1e-3) * max(other.get(case, value), 1e-3))) for case, value in ratio.items()}


def voxel_signals(contents: dict, kind: str, structures: Sequence, wrong: dict):
    findings = scored(contents, kind, structures)
    p = {case: given_probability(contents[case][kind]) for case in wrong}
    yield "1 - p", {case: 1 - p[case] for case in wrong}
    yield "odds", {case: odds(p[case], findings[case].whole_ratio) for case in wrong}
    yield "(1 - p) (1 - R)", {case: wrong_probability(p[case], findings[case].whole_ratio) for case in wrong}
    found = {case: suspicion(findings[case], contents[case][kind], structures) for case in wrong}
    yield "(1 - p) (1 - R of the label)", found
    if all(contents[case][kind].learned is not None for case in wrong):
        learned = {case: contents[case][kind].learned for case in wrong}
        yield "learned", learned
        both = {case: np.maximum(found[case], learned[case]) for case in wrong}
        yield "max((1 - p) (1 - R of the label), learned)", both


def odds(p: np.ndarray, ratio: float) -> np.ndarray:
    """The network's odds against the label times the case's ratio, as a probability."""
    factor = float(np.clip(ratio, 0.1, 20))
    return factor * (1 - p) / (factor * (1 - p) + p)
