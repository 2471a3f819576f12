"""Does the learned weight find the noise? AUROC of 1 - alpha for wrongly labelled voxels of the training cases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_metadcseg.calibration import spread_evenly

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

BINS = 1000
MAX_CASES = 8  # two networks look at each: seconds per run


def auroc(wrong: np.ndarray, right: np.ndarray) -> float:
    """Area under the ROC curve from two histograms of the same bins; equal values count half.

    Args:
        wrong, right: number of wrongly and of rightly labelled voxels per bin of rising suspicion, shape (bins,).

    Returns:
        Probability that a wrong voxel is more suspicious than a right one; not-a-number if either is missing.
    """
    total = float(wrong.sum()) * float(right.sum())
    if total == 0:
        return float("nan")
    below = np.cumsum(right) - right
    return float((wrong * (below + 0.5 * right)).sum() / total)


def count(suspicion: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Histograms (2, bins) of the suspicion in [0, 1] of wrong (row 0) and right voxels (row 1)."""
    return np.stack([np.histogram(suspicion[mask], BINS, (0, 1))[0] for mask in (wrong, ~wrong)])


def weight_auroc(trainer: nnUNetTrainer, predictor: Any, clean_folder: Path) -> dict[str, float]:
    """AUROC over training cases that are not trusted (at most MAX_CASES).

    Args:
        predictor: with the trainer's final weights (scoring.build_predictor). clean_folder: the preprocessed data set
            with the clean labels.

    Returns:
        ``alpha_auroc`` over all voxels, and ``alpha_auroc_disagreeing`` over those where label and teacher disagree,
        the only ones where alpha can differ from one. Empty for trainers that learn no alpha.
    """
    import torch

    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", "cpu", weights_only=False)
    ours = checkpoint.get("metadcseg")
    if not ours or "weighting" not in ours["state"]:
        return {}
    from nnunetv2_metadcseg.label_audit_alpha import LearnedWeights
    from nnunetv2_metadcseg.trusted_cases import trusted_in_training

    noisy = trainer.dataset_class(trainer.preprocessed_dataset_folder)
    clean = trainer.dataset_class(str(clean_folder / Path(trainer.preprocessed_dataset_folder).name))
    trusted = set(trusted_in_training(ours, trainer.dataset_json["trusted_cases"]))
    weights = LearnedWeights(predictor, ours, sorted(trusted), trainer.device)
    cases = spread_evenly([case for case in trainer.do_split()[0] if case not in trusted], MAX_CASES)
    everywhere, disagreeing = np.zeros((2, BINS), dtype=np.int64), np.zeros((2, BINS), dtype=np.int64)
    for case in cases:
        image, given, _, _ = noisy.load_case(case)
        truth = np.maximum(clean.load_case(case)[1][:], 0)
        given = np.maximum(given[:], 0)  # -1 is nnU-Net's mark of cropped background
        label = torch.from_numpy(given.astype(np.int16))
        suspicion = weights.suspicion(case, torch.from_numpy(image[:]), label, None).numpy()
        everywhere += count(suspicion, truth != given)
        doubted = suspicion > 0
        disagreeing += count(suspicion[doubted], (truth != given)[doubted])
    return {"alpha_auroc": auroc(*everywhere), "alpha_auroc_disagreeing": auroc(*disagreeing)}
