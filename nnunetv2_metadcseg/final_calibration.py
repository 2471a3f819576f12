"""The end of the training: the last layer is calibrated on the trusted cases (calibration.py).

Where label errors are one-sided and the training is short, what predicts still finds structures too large or too small
on the whole, also in the trusted cases that it has learned from. Offsets on the bias of its last layer take that away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from nnunetv2_metadcseg.calibration import CaseSample, fit_offsets, sample, thinning
from nnunetv2_metadcseg.feature_tap import last_segmentation_layer, unwrap

MOST_CASES = 10  # are enough to look at


def calibrate_last_layer(trainer, cases: Sequence[str]) -> np.ndarray:
    """Adds the offsets of `fit_offsets` to the bias of the network's last layer, on all DDP ranks the same.

    Args:
        trainer: TrustedBatchTrainer with a `collective`. cases: trusted ones; they are predicted by nnU-Net's sliding
            window without mirroring.

    Returns:
        Offsets (K,) in logits; zeros with less than two cases.
    """
    layer, heads = last_segmentation_layer(trainer.network), trainer.label_manager.num_segmentation_heads
    if len(cases) < 2 or layer.bias is None:
        return np.zeros(heads)
    trainer.set_deep_supervision_enabled(False)
    predictor = _predictor(trainer)
    samples = [_sample(trainer, predictor, case) for case in cases]
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    offsets = fit_offsets(samples, trainer.label_manager.has_regions)
    offsets = trainer.collective.first(torch.tensor(offsets, dtype=torch.float32, device=trainer.device))
    with torch.no_grad():
        layer.bias += offsets
    return offsets.cpu().numpy()


def describe(offsets: np.ndarray, labels: dict, regions: bool, cases: int) -> str:
    """One line of log; labels: of dataset.json."""
    names = [name for name, value in labels.items() if name != "ignore" and not (regions and value == 0)]
    if not regions:
        names.sort(key=lambda name: labels[name])
    moved = [f"{name} {offset:+.2f}" for name, offset in zip(names, offsets, strict=False) if offset]
    found = ", ".join(moved) + " (added to logits)" if moved else "no structure is too large or too small on the whole"
    return f"Calibration on {cases} trusted cases: {found}"


def _predictor(trainer) -> nnUNetPredictor:
    predictor = nnUNetPredictor(
        use_mirroring=False,
        perform_everything_on_device=trainer.device.type == "cuda",
        device=trainer.device,
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        unwrap(trainer.network),
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    return predictor


def _sample(trainer, predictor: nnUNetPredictor, case: str) -> CaseSample:
    dataset = trainer.dataset_class(
        trainer.preprocessed_dataset_folder,
        [case],
        folder_with_segs_from_previous_stage=trainer.folder_with_segs_from_previous_stage,
    )
    data, seg, before, _ = dataset.load_case(case)
    data, seg = np.asarray(data[:]), np.asarray(seg[:])
    if trainer.is_cascaded:
        classes = trainer.label_manager.foreground_labels
        data = np.vstack((data, convert_labelmap_to_one_hot(before[:], classes, output_dtype=data.dtype)))
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data)).flatten(1)
    step = thinning(*logits.shape)  # already here: a whole case of many classes takes much memory
    probabilities = trainer.probabilities(logits[None, :, ::step].float().cpu())[0].numpy()
    # -1 is nnU-Net's mark of cropped background.
    label, valid = trainer.encoder(torch.from_numpy(np.maximum(seg.ravel()[::step], 0).astype(np.int16))[None, None])
    return sample(probabilities, label[0].bool().numpy(), valid[0, 0].bool().numpy(), trainer.label_manager.has_regions)
