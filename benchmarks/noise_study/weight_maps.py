"""Draw learned weights beside true errors, from a run that was kept.

python benchmarks/noise_study/run_arm.py --cell hippo_dilation_100 --arm metadcseg --seed 0 --keep --force
python benchmarks/noise_study/weight_maps.py --cell hippo_dilation_100 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from run_arm import choose_device, limit_threads, prepared_folders
from settings import DEFAULT_CONFIG, Run, SettingsError, Study, load_study, set_nnunet_paths

FIGURES = Path(__file__).resolve().parents[2] / "docs" / "figures"


@dataclass(frozen=True)
class Maps:
    """One case, 2D slices of the same shape: image, clean and given label, suspicion 1 - alpha."""

    case: str
    image: np.ndarray
    clean: np.ndarray
    given: np.ndarray
    suspicion: np.ndarray


def best_slice(wrong: np.ndarray) -> int:
    """Slice along the first axis with most wrong voxels; the middle one if there are none."""
    per_slice = wrong.reshape(len(wrong), -1).sum(1)
    return int(per_slice.argmax()) if per_slice.any() else len(wrong) // 2


def collect_maps(study: Study, run: Run, number: int) -> list[Maps]:
    """Weights of the run's kept checkpoint on ``number`` training cases with wrong labels."""
    folder, clean_folder, record = prepared_folders(study, run)
    run_folder = study.run_folder(run)
    if not list(run_folder.rglob("checkpoint_final.pth")):
        raise SettingsError(f"{run_folder} holds no checkpoint; do the run with run_arm.py --keep --force first.")
    set_nnunet_paths(study, results=run_folder)
    import torch
    from scoring import build_predictor
    from training import build_trainer, plan_run

    from nnunetv2_metadcseg.label_audit_alpha import LearnedWeights

    plan = plan_run(study, run, folder, clean_folder)
    trainer = build_trainer(study.arm(run.arm), plan, torch.device(choose_device("cpu", 1)))
    predictor = build_predictor(trainer, study.mirroring)
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", "cpu", weights_only=False)
    weights = LearnedWeights(predictor, checkpoint["metadcseg"], record["trusted_cases"], trainer.device)
    noisy = trainer.dataset_class(trainer.preprocessed_dataset_folder)
    clean = trainer.dataset_class(str(clean_folder / Path(trainer.preprocessed_dataset_folder).name))
    maps = []
    for case in trainer.do_split()[0]:
        image, given, _, _ = noisy.load_case(case)
        given, truth = (np.maximum(label[:], 0) for label in (given, clean.load_case(case)[1]))
        if len(maps) == number or case in record["trusted_cases"] or (given == truth).all():
            continue
        label = torch.from_numpy(given.astype(np.int16))
        suspicion = weights.suspicion(case, torch.from_numpy(image[:]), label, None).numpy()
        z = best_slice(given[0] != truth[0])
        maps.append(Maps(case, image[0, z], truth[0, z], given[0, z], suspicion[0, z]))
    return maps


def draw(maps: list[Maps], file: Path) -> Path:
    """One row per case: both outlines on the image, wrong voxels, suspicion."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(maps), 3, figsize=(7.5, 2.5 * len(maps)), squeeze=False)
    titles = ("clean (green) and given (red) label", "wrong voxels", "suspicion 1 - alpha")
    for row, item in zip(axes, maps, strict=True):
        row[0].imshow(item.image, cmap="gray")
        for label, colour in ((item.clean, "#4dd14d"), (item.given, "#ff4040")):
            for value in np.unique(label[label > 0]):
                row[0].contour(label == value, [0.5], colors=colour, linewidths=1)
        row[1].imshow(item.clean != item.given, cmap="Reds", vmin=0, vmax=1)
        shown = row[2].imshow(item.suspicion, cmap="Reds", vmin=0, vmax=1)
        row[0].set_ylabel(item.case, fontsize=7)
        for axis, title in zip(row, titles, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            if item is maps[0]:
                axis.set_title(title, fontsize=8)
    figure.colorbar(shown, ax=axes, fraction=0.02, pad=0.02)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return file


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(DEFAULT_CONFIG), help="configuration file (default: config.yaml here)")
    parser.add_argument("--work", help="working folder for bulky data (default: from the configuration file)")
    parser.add_argument("--cell", required=True)
    parser.add_argument("--arm", default="metadcseg")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("-n", "--number", type=int, default=3, help="cases to draw (default: 3)")
    parser.add_argument("--output", help="PNG file (default: docs/figures/weight_maps_<cell>.png)")
    args = parser.parse_args(arguments)
    limit_threads(1)
    try:
        study = load_study(args.config, args.work)
        with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
            maps = collect_maps(study, Run(args.cell, args.fold, args.arm, args.seed), args.number)
        if not maps:
            raise SettingsError(f"Cell {args.cell!r} has no training case with a wrong label.")
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {draw(maps, Path(args.output or FIGURES / f'weight_maps_{args.cell}.png'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
