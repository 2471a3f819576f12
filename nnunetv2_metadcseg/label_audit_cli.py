"""`metadcseg audit`: rank cases whose labels look wrong and map the voxels; propose and confirm checked cases."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_metadcseg.dataset_folder import preprocessed_folder

if TYPE_CHECKING:
    from nnunetv2_metadcseg.label_audit_predict import TrainedModel

EXAMPLES = """\
examples:
  metadcseg audit -d 504 -c 3d_fullres -f 0 1 2 3 4 -tr nnUNetTrainerMetaDCSeg -o audit_504
  metadcseg audit --apply trusted --top 10 -o audit_504              writes audit_504/to_check.json, nothing else
  metadcseg audit --apply trusted --confirm audit_504/to_check.json -d 504
                                                                     adds what you marked "checked" to the trusted cases
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `metadcseg audit`."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("-d", dest="dataset", help="data set id or name")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="configuration (default: %(default)s)")
    parser.add_argument("-f", dest="folds", nargs="+", default=["0"], help="folds, or all (default: 0)")
    parser.add_argument(
        "-tr",
        dest="trainer",
        default="nnUNetTrainerMetaDCSeg",
        help="trainer; stock ones work too (default: %(default)s)",
    )
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier (default: %(default)s)")
    parser.add_argument("-o", dest="out", type=Path, help="folder to write")
    parser.add_argument(
        "-chk",
        dest="checkpoint",
        default="checkpoint_final.pth",
        help="checkpoint file name (default: %(default)s)",
    )
    parser.add_argument(
        "--maps",
        choices=("prediction", "learned"),
        default="prediction",
        help="suspicion from the prediction alone, or the trainer's learned weights too (default: %(default)s)",
    )
    parser.add_argument(
        "-device", "--device", default="cuda", help="cuda, cpu or mps (default: %(default)s, as nnU-Net)"
    )
    parser.add_argument("--disable_tta", action="store_true", help="no test-time mirroring (faster)")
    parser.add_argument("-step_size", type=float, default=0.5, help="step of the sliding window (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="only these, and the trusted cases")
    parser.add_argument("--worst", type=int, default=20, help="cases with pictures in the page (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier audit")
    trust = parser.add_argument_group("growing the trusted cases")
    trust.add_argument("--apply", choices=("trusted",), help="use a finished audit instead of making one")
    trust.add_argument("--top", type=int, default=10, help="how many cases to propose (default: %(default)s)")
    trust.add_argument("--confirm", type=Path, metavar="FILE", help="the edited to_check.json: add its checked cases")


def run(args: argparse.Namespace) -> int:
    """Runs the audit, or proposes or confirms trusted cases."""
    from nnunetv2_metadcseg.label_audit_predict import AuditError

    if args.confirm is not None and args.apply is None:
        raise AuditError("--confirm goes with --apply trusted; add it.")
    if args.confirm is not None:
        return _confirm(args)
    if args.out is None:
        raise AuditError("No folder given; add -o OUT.")
    return _propose(args) if args.apply else _audit(args)


def _propose(args: argparse.Namespace) -> int:
    from nnunetv2_metadcseg.label_audit_trust import write_proposal

    file = write_proposal(args.out, args.top)
    print(
        f'wrote {file}; look at these cases (audit.html), correct their labels, write "checked" for each, then run\n'
        f"metadcseg audit --apply trusted --confirm {shlex.quote(str(file))} -d DATASET"
    )
    return 0


def _confirm(args: argparse.Namespace) -> int:
    from nnunetv2_metadcseg.label_audit_predict import AuditError, read_json
    from nnunetv2_metadcseg.label_audit_trust import confirm, set_aside
    from nnunetv2_metadcseg.trusted_cases import declared_cases

    preprocessed = _preprocessed(args)
    dataset = read_json(preprocessed / "dataset.json", "run nnUNetv2_plan_and_preprocess")
    if not isinstance(dataset, dict) or not isinstance(dataset.get("file_ending"), str):
        raise AuditError(f'{preprocessed / "dataset.json"} has no "file_ending", expected nnU-Net\'s file; restore it.')
    ending = dataset["file_ending"]
    known = [f.name.removesuffix(ending) for f in (preprocessed / "gt_segmentations").glob(f"*{ending}")]
    raw = os.environ.get("nnUNet_raw")
    raw_folder = Path(raw) / preprocessed.name if raw else None
    trusted = declared_cases(preprocessed, dataset)
    new, file = confirm(args.confirm, preprocessed, trusted, known, raw_folder, ending)
    print(f"{file}: {len(new)} cases added ({', '.join(new) or 'all were there'}); train again to use them")
    kept = set_aside(args.confirm)
    if kept != args.confirm:
        print(f"{kept}: your answers; the next proposal in this folder leaves out what you answered")
    return 0


def _audit(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from nnunetv2_metadcseg.label_audit_output import check_output, left_over
    from nnunetv2_metadcseg.label_audit_predict import AuditError
    from nnunetv2_metadcseg.label_audit_run import run_audit

    if args.worst < 0:
        raise AuditError(f"--worst is {args.worst}, expected at least 0 (a number of cases).")
    check_output(args.out, args.overwrite)
    remnants = left_over(args.out)
    if remnants:
        print(f"note: {', '.join(map(str, remnants))}: left of a killed audit; remove it, unless it still runs")
    model = open_model(args)
    audit = run_audit(
        *(model, args.out, args.worst, args.overwrite, known_cases(model, args.cases)),
        progress=lambda cases: tqdm(cases, disable=not sys.stderr.isatty()),
    )
    for note in audit.about["notes"]:
        print(f"note: {note}")
    print("signals: " + "; ".join(audit.about["signals"]))
    for finding in audit.findings[:5]:
        label = f" ({finding.decided_by})" if finding.decided_by else ""
        print(f"{finding.rank:3d}. {finding.case}  reliability {finding.reliability:.3f}  {finding.direction}{label}")
    print(f"wrote {args.out / 'audit.html'}, audit.csv, audit.json and the maps of {len(audit.findings)} cases")
    return 0


def known_cases(model: TrainedModel, asked: list[str] | None) -> list[str] | None:
    """`--cases`, checked, each once."""
    from nnunetv2_metadcseg.label_audit_predict import AuditError

    if asked is None:
        return None
    cases = model.cases()
    unknown = sorted(set(asked) - set(cases))
    if unknown:
        raise AuditError(
            f"{unknown[0]} is not a case of these folds (for instance {', '.join(cases[:3])}); correct --cases."
        )
    return list(dict.fromkeys(asked))


def open_model(args: argparse.Namespace) -> TrainedModel:
    """The trained model that the options name."""
    from nnunetv2_metadcseg.label_audit_predict import AuditError, TrainedModel

    preprocessed = _preprocessed(args)
    results = _environment("nnUNet_results") / preprocessed.name
    name = f"{args.trainer}__{args.plans}__{args.configuration}"
    if not (results / name).is_dir():
        there = sorted(f.name for f in results.iterdir() if f.is_dir()) if results.is_dir() else []
        raise AuditError(
            f"There is no model {name} of {preprocessed.name} in nnUNet_results ("
            + (f"there are {', '.join(there[:5])}" if there else "there is none")
            + "); correct -tr, -p or -c, or train it first."
        )
    if not 0 < args.step_size <= 1:
        raise AuditError(f"-step_size is {args.step_size}, expected more than 0 and at most 1.")
    return TrainedModel(
        *(results / name, preprocessed, _folds(args.folds), args.checkpoint),
        maps=args.maps,
        device=_device(args.device),
        mirroring=not args.disable_tta,
        tile_step_size=args.step_size,
    )


def _preprocessed(args: argparse.Namespace) -> Path:
    from nnunetv2_metadcseg.label_audit_predict import AuditError

    if args.dataset is None:
        raise AuditError("No data set given; add -d ID.")
    return preprocessed_folder(args.dataset)


def _environment(name: str) -> Path:
    from nnunetv2_metadcseg.label_audit_predict import AuditError

    value = os.environ.get(name)
    if not value:
        raise AuditError(f"The environment variable {name} is not set; export it as for nnUNetv2_train.")
    return Path(value)


def _folds(texts: list[str]) -> list[int | str]:
    from nnunetv2_metadcseg.label_audit_predict import AuditError

    wrong = [text for text in texts if text != "all" and not text.isdecimal()]
    if wrong:
        raise AuditError(f"-f is {wrong[0]!r}, expected fold numbers or all.")
    return list(dict.fromkeys(text if text == "all" else int(text) for text in texts))


def _device(name: str) -> str:
    """nnU-Net's default is cuda; where there is none the audit says so instead of failing inside torch."""
    import torch

    from nnunetv2_metadcseg.label_audit_predict import AuditError

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise AuditError("There is no CUDA device here; add -device cpu.")
    return name
