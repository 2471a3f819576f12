"""Predict the held-out test cases with the final weights and compare with the clean labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from result_store import METRICS

from noise_tools.metrics import label_metrics

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

CaseScore = dict[str, Any]


def build_predictor(trainer: nnUNetTrainer, mirroring: bool) -> Any:
    """nnU-Net's predictor with the weights of the final checkpoint, which is what a user would predict with."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    checkpoint = torch.load(
        Path(trainer.output_folder) / "checkpoint_final.pth", map_location=trainer.device, weights_only=False
    )
    predictor = nnUNetPredictor(
        use_mirroring=mirroring,
        perform_everything_on_device=trainer.device.type == "cuda",
        device=trainer.device,
        allow_tqdm=False,
    )
    trainer.set_deep_supervision_enabled(False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [checkpoint["network_weights"]],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    return predictor


def _drop_single_slice(array: np.ndarray, spacing: list[float]) -> tuple[np.ndarray, list[float]]:
    """nnU-Net gives pictures one slice: for surface distances they are 2D."""
    return (array[0], spacing[1:]) if array.shape[0] == 1 else (array, spacing)


def score_cases(
    trainer: nnUNetTrainer, predictor: Any, cases: dict[str, dict[str, Any]], save_to: Path | None = None
) -> list[CaseScore]:
    """One score per case and class. ``save_to``: folder for the predictions (as .npz), for figures.

    Args:
        predictor: from ``build_predictor``. cases: images and clean label of each test case, from ``source_cases``.
    """
    reader = trainer.plans_manager.image_reader_writer_class()
    labels = json.loads(json.dumps(trainer.dataset_json["labels"]))
    scores = []
    for case, files in cases.items():
        image, properties = reader.read_images(files["images"])
        prediction = predictor.predict_single_npy_array(image, {"spacing": properties["spacing"]})
        reference = reader.read_seg(files["label"])[0][0].astype(np.int16)
        reference, spacing = _drop_single_slice(reference, list(properties["spacing"]))
        prediction, _ = _drop_single_slice(np.asarray(prediction), spacing)
        for name, values in label_metrics(reference, prediction, spacing, labels).items():
            scores.append({"case": case, "class": name} | {metric: values[metric] for metric in METRICS})
        if save_to:
            save_to.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(save_to / f"{case}.npz", prediction=prediction.astype(np.uint8))
    return scores


def mean_scores(scores: list[CaseScore]) -> list[CaseScore]:
    """Means over cases, one row per class. ``missed``: cases with a missed or invented structure (Dice 0, no HD95)."""
    rows = []
    for name in dict.fromkeys(score["class"] for score in scores):
        own = [score for score in scores if score["class"] == name]
        row: CaseScore = {"class": name, "cases": len(own)}
        for metric in METRICS:
            values = np.array([score[metric] for score in own], dtype=float)
            row[metric] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
        row["missed"] = sum(1 for score in own if score["dice"] == 0 and np.isnan(score["hd95"]))
        rows.append(row)
    return rows
