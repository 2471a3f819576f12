"""Label audit, the work: predicts every case, scores all of them together, and writes the folder OUT.

OUT/audit.csv, audit.json, audit.html, given/CASE, proposed/CASE, suspicion/CASE (uint8, per cent)
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_metadcseg import __version__
from nnunetv2_metadcseg.label_audit import (
    Disagreement,
    ErrorDirection,
    disagreement,
    error_direction,
    expected_rate,
    joint_disagreement,
    label_disagreements,
    pooled,
    proposed_label,
    reliability,
    telling,
    unit,
    with_usual_size,
    wrong_probability,
)
from nnunetv2_metadcseg.label_audit_balance import Balance, Record, find_balance, with_records
from nnunetv2_metadcseg.label_audit_calibration import Calibration, by_structure, calibrate, lean_notes, size_errors
from nnunetv2_metadcseg.label_audit_output import MAPS, check_output, written_whole
from nnunetv2_metadcseg.label_audit_predict import AuditError, CasePrediction, Structure, TrainedModel, same_geometry

CASE_COLUMNS = (
    *("rank", "case", "label", "reliability", "direction", "bias", "shift", "distance", "unit"),
    *("missing_parts", "extra_parts", "disagreement", "suspicious_voxels", "out_of_fold", "trusted", "trainer_belief"),
    *("suspicion_file", "proposed_file", "given_file"),
)


@dataclass
class LabelFinding:
    """One structure of one case."""

    name: str
    rate: float
    reliability: float
    direction: ErrorDirection


@dataclass
class CaseFinding:
    """One case.

    Attributes:
        whole: its labels together. ratio: its disagreement divided by that of right labels.
        belief: the trainer's mean alpha of the case where its label and the teacher disagree, or None.
        record: the label's disagreement during training by that expected of a right label, or None.
    """

    case: str
    out_of_fold: bool
    trusted: bool
    parts: dict[str, Disagreement]
    whole: Disagreement
    belief: float | None
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    record: Record | None = None
    ratio: float = float("nan")
    suspicious_voxels: int = 0
    labels: list[LabelFinding] = field(default_factory=list)
    rank: int = 0

    @property
    def rate(self) -> float:
        return self.whole.rate

    @property
    def reliability(self) -> float:
        return reliability(self.ratio)

    @property
    def direction(self) -> str:
        """That of the least reliable structure that differs at all."""
        wrong = [label for label in self.labels if label.direction.kind != "none"]
        return min(wrong, key=lambda label: label.reliability).direction.kind if wrong else "none"


@dataclass
class Audit:
    """All findings, the least reliable case first, and how they were made."""

    findings: list[CaseFinding]
    about: dict[str, Any]


# ---- one case -------------------------------------------------------------------------------------------------------


def measure(case: str, prediction: CasePrediction, structures: Sequence[Structure], trusted: bool) -> CaseFinding:
    """Disagreement of every structure of a case."""
    parts = _parts(prediction, structures)
    spacing = tuple(float(s) for s in prediction.properties["spacing"])
    whole = _whole(prediction, structures, parts)
    shape = prediction.given.shape
    known = prediction.belief, shape, spacing, prediction.record
    return CaseFinding(case, prediction.out_of_fold, trusted, parts, whole, *known)


def _are_regions(prediction: CasePrediction, structures: Sequence[Structure]) -> bool:
    return len(prediction.probabilities) == len(structures)  # no background among the heads


def _parts(prediction: CasePrediction, structures: Sequence[Structure]) -> dict[str, Disagreement]:
    given, probabilities, valid = prediction.given, prediction.probabilities, prediction.valid
    if _are_regions(prediction, structures):
        return {s.name: disagreement(np.isin(given, s.values), probabilities[s.head], valid) for s in structures}
    values = [s.head for s in structures]  # the head of a label is its value
    found = label_disagreements(given, prediction.predicted, probabilities, values, valid)
    return {s.name: part for s, part in zip(structures, found, strict=True)}


def _whole(prediction: CasePrediction, structures: Sequence[Structure], parts: dict[str, Disagreement]) -> Disagreement:
    if _are_regions(prediction, structures):
        return pooled(list(parts.values()))
    p = probability_of_given(prediction, structures, regions=False)
    confidence = np.where(prediction.valid, prediction.probabilities.max(0) - p, 0)
    given, predicted = (np.where(prediction.valid, m, 0) for m in (prediction.given, prediction.predicted))
    return joint_disagreement(given, predicted, confidence)


def probability_of_given(prediction: CasePrediction, structures: Sequence[Structure], regions: bool) -> np.ndarray:
    """Predicted probability of what the given label says: (*S) float32; one where ignored.

    For regions that of the least likely decision.
    """
    probabilities = prediction.probabilities
    if regions:
        p = np.ones(prediction.given.shape, np.float32)
        for s in structures:
            inside = np.isin(prediction.given, s.values)
            p = np.minimum(p, np.where(inside, probabilities[s.head], 1 - probabilities[s.head]))
    else:
        known = np.clip(prediction.given, 0, len(probabilities) - 1).astype(np.int64)
        p = np.take_along_axis(probabilities, known[None], 0)[0].astype(np.float32)
    return np.where(prediction.valid, p, 1)


# ---- all cases together ---------------------------------------------------------------------------------------------


def score(findings: Sequence[CaseFinding]) -> None:
    """Sets `ratio`, the reliability of every structure, and the rank of all cases.

    Cases predicted by a network that has seen their label disagree less, so each group has its own expectation.
    """
    _give_empty_labels_the_usual_size(findings)
    checked = [f for f in findings if f.trusted]
    unvouched = _without_trusted_case(findings)
    for group in _groups(findings):
        ratios, side, expected = _ratios(group, checked, lambda f: f.whole)
        tell = telling([f.whole for f in group])
        ratios = with_records(ratios, [f.record for f in group], [f.trusted for f in group], side, tell)
        for finding, ratio in zip(group, ratios, strict=True):
            finding.ratio = ratio
        for name in group[0].parts:
            least = expected if name in unvouched else 0.0
            own, *_ = _ratios(group, checked, lambda f, name=name: f.parts[name], least)
            for finding, ratio in zip(group, own, strict=True):
                direction = ErrorDirection("none", np.nan, np.nan, np.nan, 0, 0)
                finding.labels.append(LabelFinding(name, finding.parts[name].rate, reliability(ratio), direction))
    for rank, finding in enumerate(sorted(findings, key=lambda f: (-f.ratio, f.case)), 1):
        finding.rank = rank


def _give_empty_labels_the_usual_size(findings: Sequence[CaseFinding]) -> None:
    for finding, whole in zip(findings, with_usual_size([f.whole for f in findings]), strict=True):
        finding.whole = whole
    for name in findings[0].parts:
        for finding, part in zip(findings, with_usual_size([f.parts[name] for f in findings]), strict=True):
            finding.parts[name] = part


def _groups(findings: Sequence[CaseFinding]) -> Iterable[list[CaseFinding]]:
    for out_of_fold in (True, False):
        group = [f for f in findings if f.out_of_fold is out_of_fold]
        if group:
            yield group


def _without_trusted_case(findings: Sequence[CaseFinding]) -> list[str]:
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


# ---- the whole audit ------------------------------------------------------------------------------------------------


def run_audit(
    model: TrainedModel,
    out: Path,
    worst: int = 20,
    overwrite: bool = False,
    cases: Sequence[str] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Audit:
    """Audits and writes `out`, which appears when it is complete.

    Args:
        worst: how many cases get pictures in the page. overwrite: replace `out`, if it is an earlier audit.
        cases: only these and the trusted cases, which calibrate the audit and say what is expected of right labels
            (default: all that the folds were trained or validated on).
        progress: wraps the loops over cases, tqdm for instance.

    Raises:
        AuditError: `out` exists, or something is missing in the data set.
    """
    check_output(out, overwrite)
    names = model.cases()
    if cases is not None:
        names = [case for case in names if case in {*cases, *model.trusted}]
    if not names:
        raise AuditError("There is no case to audit, expected training or validation cases in splits_final.json.")
    missing = [case for case in names if not model.given_file(case).is_file()]
    if missing:  # said now, not after hours of predicting the others
        raise AuditError(
            f"{len(missing)} of {len(names)} cases have no label in {model.given_file(missing[0]).parent} (first: "
            f"{missing[0]}); run nnUNetv2_preprocess, which copies the labels there."
        )
    with written_whole(out) as temporary:
        return _audit_into(temporary, model, names, worst, progress)


def _audit_into(folder: Path, model: TrainedModel, names: Sequence[str], worst: int, progress: Callable) -> Audit:
    from nnunetv2_metadcseg.label_audit_page import write_page

    interim = folder / "interim"
    for name in (interim, *(folder / kind for kind in MAPS)):
        name.mkdir()
    calibration = calibrate(model, names, progress)
    model.offsets = calibration.offsets
    findings = []
    for case in progress(names):
        prediction = model.predict(case)
        check_prediction(case, prediction)
        findings.append(measure(case, prediction, model.structures, case in model.trusted))
        _keep(interim / f"{case}.npz", prediction, model)
    score(findings)
    findings.sort(key=lambda f: f.rank)
    for finding in progress(findings):
        _write_maps(folder, interim / f"{finding.case}.npz", finding, model)
    shutil.rmtree(interim)
    audit = Audit(findings, describe(model, findings, calibration))
    write_csv(audit, folder / "audit.csv", model.file_ending)
    (folder / "audit.json").write_text(json.dumps(as_json(audit, model.file_ending), indent=2) + "\n")
    write_page(audit, folder, model, worst)
    return audit


def check_prediction(case: str, prediction: CasePrediction) -> None:
    """Raises AuditError where prediction and label cannot be compared: no numbers, or another grid."""
    if prediction.given.shape != prediction.probabilities.shape[1:]:
        raise AuditError(
            f"The label of {case} has the shape {prediction.given.shape}, expected that of its image, "
            f"{prediction.probabilities.shape[1:]}; correct one of them and run nnUNetv2_preprocess."
        )
    if not np.isfinite(prediction.probabilities).all():
        raise AuditError(
            f"The network predicts nan or infinite probabilities for {case}, expected numbers; its training has "
            "diverged, or its checkpoint is broken: train again, or give another checkpoint or fold."
        )


def _keep(file: Path, prediction: CasePrediction, model: TrainedModel) -> None:
    """What the second round needs: it waits for the scores of all cases."""
    p = probability_of_given(prediction, model.structures, model.label_manager.has_regions)
    content = {"p_given": p.astype(np.float16), "predicted": prediction.predicted, "given": prediction.given}
    if prediction.learned is not None:
        content["learned"] = prediction.learned.astype(np.float16)
    # Compressed, for all cases are kept at once: 6 bytes per voxel of whole CTs, 8 with learned maps.
    np.savez_compressed(file, **content)


def voxel_suspicion(p_given: np.ndarray, learned: np.ndarray | None, ratio: float) -> np.ndarray:
    """Suspicion map (*S) in [0, 1]: the prediction's, and what the trainer learned where that is more.

    Args:
        p_given: (*S). learned: 1 - alpha (*S), or None. ratio: of the case.
    """
    suspicion = wrong_probability(p_given, ratio)
    return suspicion if learned is None else np.maximum(suspicion, np.clip(learned, 0, 1))


def in_percent(suspicion: np.ndarray) -> np.ndarray:
    """(*S) uint8 as the maps hold it; rounded down, so that 50 and more is exactly what is counted and proposed."""
    return np.floor(100 * suspicion).astype(np.uint8)


def _write_maps(folder: Path, file: Path, finding: CaseFinding, model: TrainedModel) -> None:
    with np.load(file) as kept:
        content = {name: kept[name] for name in kept.files}
    suspicion = voxel_suspicion(content["p_given"], content.get("learned"), finding.ratio)
    given, proposed = content["given"], proposed_label(content["given"], content["predicted"], suspicion)
    finding.suspicious_voxels = int((suspicion >= 0.5).sum())
    for label, structure in zip(finding.labels, model.structures, strict=True):
        masks = (np.isin(m, structure.values) for m in (given, proposed))
        label.direction = error_direction(*masks, finding.spacing)
    properties = model.dataset.load_case(finding.case)[3]
    for kind, array in (("suspicion", in_percent(suspicion)), ("proposed", proposed)):
        model.write(array, folder / kind / f"{finding.case}{model.file_ending}", properties)
    _write_given(folder, finding.case, given, model, properties)


def _write_given(folder: Path, case: str, given: np.ndarray, model: TrainedModel, properties: dict) -> None:
    """Copies the label; where its header says another place than the image's, writes it as the other maps are.

    A file of its own that nnU-Net's writer keeps the spacing in (TIFF) is taken from the proposed label: nnU-Net does
    not bring it to the preprocessed folder.
    """
    name = f"{case}{model.file_ending}"
    if not same_geometry(model.reader.read_seg(str(model.given_file(case)))[1], properties):
        model.write(given, folder / "given" / name, properties)
        return
    shutil.copyfile(model.given_file(case), folder / "given" / name)
    side_file = folder / "proposed" / f"{case}.json"
    if side_file.is_file():
        shutil.copyfile(side_file, folder / "given" / side_file.name)


# ---- what is written ------------------------------------------------------------------------------------------------


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
        "notes": _notes(model, findings, learned) + lean_notes(size_errors(calibration, model.structures)),
        "file_ending": model.file_ending,
    }


def _notes(model: TrainedModel, findings: Sequence[CaseFinding], learned: bool) -> list[str]:
    notes = [network.note for network in model.networks.values() if network.note]
    if not learned and not notes:
        notes.append("No learned weights in this checkpoint: ranking and maps come from the prediction alone.")
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
    elif not all(any(f.trusted for f in group) for group in _groups(findings)):
        lacking = "out of fold" if any(f.trusted and not f.out_of_fold for f in findings) else "in fold"
        notes.append(
            f"No trusted case is among those predicted {lacking}, so what is "
            "expected of right labels there rests on the cases that agree best and is bounded by the trusted cases of "
            "the others; train and give all folds, and compare ranks within each kind only."
        )
    return notes + _unvouched_notes(findings)


def _unvouched_notes(findings: Sequence[CaseFinding]) -> list[str]:
    """Labels that some case holds but no trusted one; without any trusted case another note says so."""
    names = [n for n in _without_trusted_case(findings) if any(f.parts[n].labelled > 0 for f in findings)]
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
        for group in _groups(findings)
    }


def rows(audit: Audit, ending: str) -> list[dict[str, Any]]:
    """One row per case (label empty) followed by one per structure."""
    found = []
    for f in audit.findings:
        files = {f"{kind}_file": f"{kind}/{f.case}{ending}" for kind in MAPS}
        common = {"rank": f.rank, "case": f.case, "out_of_fold": f.out_of_fold, "trusted": f.trusted} | files
        common["unit"] = unit(f.spacing, f.shape)
        found.append(
            common
            | {"label": "", "reliability": f.reliability, "direction": f.direction, "disagreement": f.rate}
            | {
                "suspicious_voxels": f.suspicious_voxels,
                "trainer_belief": float("nan") if f.belief is None else f.belief,
            }
        )
        for label in f.labels:
            d = label.direction.as_dict()
            d["direction"] = d.pop("kind")
            own = {"label": label.name, "reliability": label.reliability, "disagreement": label.rate}
            found.append(common | own | d)
    return found


def write_csv(audit: Audit, file: Path, ending: str) -> None:
    """audit.csv: numbers with six significant digits, nothing where there is no number."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, CASE_COLUMNS, restval="")
        writer.writeheader()
        for row in rows(audit, ending):
            writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value


def as_json(audit: Audit, ending: str) -> dict[str, Any]:
    """audit.json: as the CSV, nested, with what the audit was made of."""
    cases: dict[str, dict] = {}
    for row in rows(audit, ending):
        row = {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
        if row["label"] == "":
            cases[row["case"]] = {name: value for name, value in row.items() if name != "label"} | {"labels": {}}
        else:
            kept = {name: value for name, value in row.items() if name in _LABEL_KEYS}
            cases[row["case"]]["labels"][row["label"]] = kept
    return audit.about | {"cases": cases}


_LABEL_KEYS = {"reliability", "disagreement", "direction", "bias", "shift", "distance", "missing_parts", "extra_parts"}
