"""Evidence for the label audit: does it find corrupted cases and wrong voxels, and better than simple rivals?

    python benchmarks/label_audit/run.py                       mixed errors, seed 0
    python benchmarks/label_audit/run.py --dataset nuclei --label-dice 0.8 --seed 0

Every finished step is kept in the working folder, so a stopped run goes on. Results: results/label_audit.csv (the
methods) and results/signals.csv (single signals of the audit and their combinations), for other noise with its name at
the end. Needs cleanlab and scikit-learn. Other steps, cases, shares or data need another working folder.
"""

from __future__ import annotations

import argparse
import csv
import os
import pickle
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE.parent / "noise_study"))  # for how it trains

import train as training  # noqa: E402
from evaluate import METHOD_COLUMNS, SIGNAL_COLUMNS, evaluate  # noqa: E402
from result_store import replace_csv  # noqa: E402
from work_folder import WorkFolderError, check_data, check_numbers, keep_settings  # noqa: E402

MAPS = {"stock": "prediction", "metadcseg": "learned"}  # the study judges both


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=HERE.parents[2] / "shared" / "data", help="folder of the data sets"
    )
    parser.add_argument("--work", type=Path, default=HERE / "work", help="bulky and disposable")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--dataset", nargs="+", choices=list(training.SOURCES), default=["hippocampus", "nuclei"])
    parser.add_argument("--label-dice", nargs="+", type=float, default=[0.8, 0.6])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--noise", choices=list(training.NOISES), default="unbiased")
    parser.add_argument("--steps", type=int, default=400, help="training steps per network (default: 400)")
    parser.add_argument("--cases", type=int, default=70, help="cases per data set (default: 70)")
    parser.add_argument("--trusted", type=int, default=10)
    parser.add_argument("--case-fraction", type=float, default=0.5, help="share of the others that is corrupted")
    args = parser.parse_args(arguments)
    args.work, args.data = args.work.resolve(), args.data.resolve()
    cells = [training.Cell(d, q, s, args.noise) for s in args.seed for q in args.label_dice for d in args.dataset]
    settings = {name: getattr(args, name) for name in ("steps", "cases", "trusted", "case_fraction")}
    try:
        check_data(args.data, cells)  # first: a mistyped folder is not to be kept as the settings of this one
        check_numbers(args.work, cells)
        keep_settings(args.work, {"data": str(args.data)} | settings)
    except WorkFolderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    training.set_paths(args.work)
    for cell in cells:
        training.prepare(cell, args.data, args.work, args.cases, args.trusted, args.case_fraction)
        for arm in training.TRAINERS:
            for fold in (0, 1):
                training.train(cell, arm, fold, args.work, args.steps)
        folder = predict(cell, args.work)
        methods, signals = evaluate(cell, folder, clean_labels(cell, args.work))
        for name, columns, rows in (
            ("label_audit", METHOD_COLUMNS, methods),
            ("signals", SIGNAL_COLUMNS, signals),
        ):
            add_rows(args.results / f"{name}{cell.suffix}.csv", columns, rows, cell)
        for row in methods:
            print(*(row[name] for name in METHOD_COLUMNS), flush=True)
    return 0


def predict(cell: training.Cell, work: Path) -> Path:
    """Predictions of every case, kept as pickles.

    "oof": out of fold and calibrated, as the audit has them; of stock nnU-Net also "plain": out of fold as they are,
    and "seen": by the network that was trained on the label.
    """
    from nnunetv2_metadcseg.label_audit_calibration import calibrate
    from nnunetv2_metadcseg.label_audit_predict import TrainedModel

    folder = work / "predictions" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    results = work / "nnUNet_results" / cell.dataset_name
    preprocessed = work / "nnUNet_preprocessed" / cell.dataset_name
    for arm, trainer in training.TRAINERS.items():
        model = TrainedModel(
            results / f"{trainer}__nnUNetPlans__{training.CONFIGURATION}", preprocessed, (0, 1), maps=MAPS[arm]
        )
        (folder / "structures.pkl").write_bytes(pickle.dumps(model.structures))
        files = {case: folder / f"{case}.{arm}.pkl" for case in model.cases()}
        missing = {case: file for case, file in files.items() if not file.is_file()}
        offsets = calibrate(model, list(files)).offsets if missing else {}
        for case, file in missing.items():
            content = {}
            if arm == "stock":
                model.offsets = {}
                seen = [fold for fold in (0, 1) if case in model.split(fold)[0]]
                content = {"plain": model.predict(case), "seen": model.predict(case, seen)}
            model.offsets = offsets
            content["oof"] = model.predict(case)
            for prediction in content.values():
                prediction.probabilities = prediction.probabilities.astype("float16")
            content["trusted"] = case in model.dataset_json["trusted_cases"]
            temporary = file.with_suffix(".tmp")
            temporary.write_bytes(pickle.dumps(content))
            os.replace(temporary, file)
    return folder


def clean_labels(cell: training.Cell, work: Path):
    """A function case -> clean label, read as nnU-Net reads it."""
    import json

    import numpy as np
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    raw = next((work / "nnUNet_raw").glob(f"Dataset{cell.source.number:03d}_*"))
    files = json.loads((raw / "dataset.json").read_text())["dataset"]
    plans = PlansManager(str(work / "nnUNet_preprocessed" / cell.dataset_name / "nnUNetPlans.json"))
    reader = plans.image_reader_writer_class()
    return lambda case: np.rint(reader.read_seg(files[case]["label"])[0][0]).astype(np.int16)


def add_rows(file: Path, columns: tuple[str, ...], rows: list[dict], cell: training.Cell) -> None:
    """Replaces the cell's rows in a results file, which stays complete where writing is interrupted."""
    key = {"dataset": cell.dataset, "label_dice": f"{cell.label_dice:g}", "seed": str(cell.seed)}
    kept = []
    if file.is_file():
        with file.open(newline="") as stream:
            kept = [row for row in csv.DictReader(stream) if any(row[name] != value for name, value in key.items())]
    file.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted([*kept, *rows], key=lambda row: [str(row[name]) for name in ("dataset", "label_dice", "seed")])
    replace_csv(file, columns, ordered, lineterminator="\r\n")


if __name__ == "__main__":
    sys.exit(main())
