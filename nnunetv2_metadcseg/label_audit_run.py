"""Label audit, the work: predicts every case, scores all of them together, and writes the folder OUT.

OUT/audit.csv, audit.json, audit.html, given/CASE, proposed/CASE, suspicion/CASE (uint8, per cent)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from nnunetv2_metadcseg.label_audit import error_direction, proposed_label, wrong_probability
from nnunetv2_metadcseg.label_audit_calibration import calibrate
from nnunetv2_metadcseg.label_audit_findings import Audit, CaseFinding, measure, probability_of_given, voxel_ratios
from nnunetv2_metadcseg.label_audit_notes import describe
from nnunetv2_metadcseg.label_audit_output import MAPS, TABLES, check_output, worth_keeping, written_whole
from nnunetv2_metadcseg.label_audit_predict import AuditError, CasePrediction, TrainedModel, explained, same_geometry
from nnunetv2_metadcseg.label_audit_score import score
from nnunetv2_metadcseg.label_audit_tables import as_json, write_csv
from nnunetv2_metadcseg.label_audit_trust import write_json


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
    for case in names:
        check_size(model, case)
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
    with worth_keeping("the tables or the page"):
        write_csv(audit, folder / "audit.csv", model.file_ending)
        write_json(folder / "audit.json", as_json(audit, model.file_ending))
        write_page(audit, folder, model, worst)
    for name in TABLES:  # together, after the maps: what is newer has been edited (label_audit_output.py)
        (folder / name).touch()
    return audit


def check_size(model: TrainedModel, case: str) -> None:
    """Raises AuditError where the label's header says another size than the preprocessed image had.

    Cheap, before hours of predictions: `check_prediction` looks at what was read. Nothing is known of files that
    SimpleITK cannot read, and of the order of axes, which some of nnU-Net's readers change.
    """
    import SimpleITK as sitk

    with explained(f"The preprocessed data of {case} cannot be read, run nnUNetv2_preprocess again"):
        image = model.dataset.load_case(case)[3].get("shape_before_cropping")
    header = sitk.ImageFileReader()
    header.SetFileName(str(model.given_file(case)))
    try:
        header.ReadImageInformation()
    except RuntimeError:
        return
    label = header.GetSize()
    expected, found = (sorted(int(n) for n in size if n > 1) for size in (image or label, label))
    if expected != found:
        raise AuditError(
            f"The label of {case} has {' x '.join(map(str, label))} voxels, expected as many as its image, "
            f"{' x '.join(str(int(n)) for n in image)} (in any order); correct one of them and run nnUNetv2_preprocess."
        )


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


def voxel_suspicion(p_given: np.ndarray, learned: np.ndarray | None, ratio: float | np.ndarray) -> np.ndarray:
    """Suspicion map (*S) in [0, 1]: the prediction's, and what the trainer learned where that is more.

    Args:
        p_given: (*S). learned: 1 - alpha (*S), or None. ratio: of the case, or (*S).
    """
    suspicion = wrong_probability(p_given, ratio)
    return suspicion if learned is None else np.maximum(suspicion, np.clip(learned, 0, 1))


def in_percent(suspicion: np.ndarray) -> np.ndarray:
    """(*S) uint8 as the maps hold it; rounded down, so that 50 and more is exactly what is counted and proposed."""
    return np.floor(100 * suspicion).astype(np.uint8)


def _write_maps(folder: Path, file: Path, finding: CaseFinding, model: TrainedModel) -> None:
    with np.load(file) as kept:
        content = {name: kept[name] for name in kept.files}
    given, predicted = content["given"], content["predicted"]
    ratio = voxel_ratios(finding, given, predicted, model.structures, model.label_manager.has_regions)
    suspicion = voxel_suspicion(content["p_given"], content.get("learned"), ratio)
    proposed = proposed_label(given, predicted, suspicion)
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
