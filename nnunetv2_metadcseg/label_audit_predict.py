"""Label audit, nnU-Net's side: which cases a model has seen, and its prediction in every case's own geometry."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_metadcseg import __version__
from nnunetv2_metadcseg.label_audit_balance import Record, mean_record
from nnunetv2_metadcseg.trusted_cases import (
    TrustedCasesError,
    check_known,
    declared_cases,
    is_trusted_only,
    seen_in_training,
    trusted_in_training,
)

if TYPE_CHECKING:
    import torch

    from nnunetv2_metadcseg.label_audit_alpha import TrainerRecord

Fold = int | str


class AuditError(ValueError):
    """The audit cannot run as asked; the message says how to mend it."""


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns whatever nnU-Net and the libraries below it raise into an AuditError: `what`, and the reason."""
    try:
        yield
    except AuditError:
        raise
    except Exception as error:
        raise AuditError(f"{what} ({type(error).__name__}: {_reason(error):.200}).") from error


def _reason(error: BaseException) -> str:
    """The first line of an error's text, or the next where SimpleITK begins with a place in its C++ source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Exception thrown in SimpleITK")]
    return (told or lines or ["no reason given"])[0]


def read_json(file: Path, advice: str = "restore it") -> Any:
    """Raises AuditError, with `advice` where the file is missing, or where it is broken or a folder."""
    if file.is_dir():
        raise AuditError(f"{file} is a folder, expected a JSON file; give the file in it.")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))  # editors on Windows put a mark in front
    except FileNotFoundError as error:
        raise AuditError(f"There is no {file}; {advice}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AuditError(f"{file} is not valid JSON ({error}); correct it.") from error


def same_geometry(first: Any, second: Any) -> bool:
    """Whether what nnU-Net's reader says of two files puts their voxels in the same places.

    Args:
        first, second: its properties: nested, with the spacing and whatever the reader keeps of the header; the second
            may have more of them.
    """
    if isinstance(first, dict):
        return all(name in second and same_geometry(value, second[name]) for name, value in first.items())
    if isinstance(first, str):  # an orientation, RAS for instance
        return first == second
    return np.shape(first) == np.shape(second) and np.allclose(first, second, rtol=1e-4, atol=1e-4)


@dataclass(frozen=True)
class Structure:
    """What the network decides about: a foreground label or a region.

    Attributes:
        name: as in dataset.json. values: label values that belong to it. head: index of its probability map.
    """

    name: str
    values: tuple[int, ...]
    head: int


@dataclass
class CasePrediction:
    """One case in its own geometry; all arrays (*S), three axes as nnU-Net reads the label file.

    Attributes:
        given: label as given. predicted: label map of the prediction. probabilities: (K, *S).
        learned: 1 - alpha of the trainer, or None. valid: False where ignored.
        properties: nnU-Net's, with the geometry. out_of_fold: no model that predicted it has seen its label.
        record: disagreement of the case by that of a right label as the trainers counted it, or None.
        belief: the trainer's mean alpha of the case where its label and the teacher disagree, or None.
    """

    given: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    valid: np.ndarray
    properties: dict
    out_of_fold: bool
    learned: np.ndarray | None = None
    record: Record | None = None
    belief: float | None = None


class TrainedModel:
    """A model folder of nnU-Net with some of its folds, and the preprocessed cases they were trained and validated on.

    Args:
        folder: NETWORK__PLANS__CONFIGURATION folder in nnUNet_results. preprocessed: the data set's folder in
            nnUNet_preprocessed. folds: numbers, or "all". checkpoint: file name.
        maps: "prediction", or "learned" to add the trainer's own weights (a second pass over the case).
        device: torch device name. mirroring: test-time mirroring. tile_step_size: of the sliding window.

    Attributes:
        offsets: per fold (K,), added to its network's logits (label_audit_calibration.py); empty at first.

    Raises:
        AuditError: anything missing.
    """

    def __init__(
        self,
        folder: Path,
        preprocessed: Path,
        folds: Sequence[Fold],
        checkpoint: str = "checkpoint_final.pth",
        maps: str = "prediction",
        device: str = "cpu",
        mirroring: bool = True,
        tile_step_size: float = 0.5,
    ) -> None:
        self.folder, self.preprocessed, self.folds = folder, preprocessed, tuple(folds)
        self.maps = maps
        self.offsets: dict[Fold, np.ndarray] = {}
        self.mirroring, self.tile_step_size = mirroring, tile_step_size
        missing = [str(p) for p in self._files(checkpoint) if not p.is_file()]
        if missing:
            raise AuditError(
                f"There is no {missing[0]}; train this fold first, or correct the data set, trainer, configuration, "
                "fold or checkpoint name."
            )
        import torch

        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise AuditError(f"There is no device {device!r}; expected cpu, cuda or mps.") from error
        self.networks = {fold: self._open(fold, checkpoint) for fold in self.folds}
        if self.configuration.previous_stage_name is not None:
            raise AuditError(
                "The configuration is the second stage of a cascade, which the audit does not support; audit "
                f"{self.configuration.previous_stage_name} instead."
            )

    def _files(self, checkpoint: str) -> list[Path]:
        own = [self.folder / name for name in ("dataset.json", "plans.json")]
        return own + [self.folder / f"fold_{fold}" / checkpoint for fold in self.folds]

    def _open(self, fold: Fold, checkpoint: str) -> FoldNetwork:
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints where it computes
            predictor = nnUNetPredictor(
                tile_step_size=self.tile_step_size,
                use_mirroring=self.mirroring,
                perform_everything_on_device=self.device.type == "cuda",
                device=self.device,
                allow_tqdm=False,
            )
            file = self.folder / f"fold_{fold}" / checkpoint
            with explained(f"The model cannot be opened from {file} and plans.json and dataset.json in {self.folder}"):
                predictor.initialize_from_trained_model_folder(str(self.folder), (fold,), checkpoint)
                ours = torch.load(file, map_location="cpu", weights_only=False).get("metadcseg")
        self.predictor = predictor
        return FoldNetwork(self, fold, predictor, ours)

    # ---- what nnU-Net knows --------------------------------------------------------------------------------------

    @property
    def configuration(self):
        return self.predictor.configuration_manager

    @property
    def label_manager(self):
        return self.predictor.label_manager

    @cached_property
    def dataset_json(self) -> dict:
        """The one of the preprocessed folder, which may have got trusted cases since the training."""
        file = self.preprocessed / "dataset.json"
        return read_json(file) if file.is_file() else self.predictor.dataset_json

    @cached_property
    def trusted(self) -> list[str]:
        """Declared trusted cases; none is fine here, but a broken list is an error."""
        try:
            trusted = declared_cases(self.preprocessed, self.dataset_json)
            check_known(trusted, self.dataset.identifiers)
            return trusted
        except TrustedCasesError as error:
            raise AuditError(str(error)) from error

    @cached_property
    def structures(self) -> list[Structure]:
        labels = {name: value for name, value in self.predictor.dataset_json["labels"].items() if name != "ignore"}
        found, regions = [], self.label_manager.has_regions
        for name, value in labels.items():
            values = tuple(int(v) for v in value) if isinstance(value, list | tuple) else (int(value),)
            if values == (0,):
                continue
            found.append(Structure(name, values, len(found) if regions else values[0]))
        return found

    @cached_property
    def dataset(self):
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        folder = self.preprocessed / self.configuration.data_identifier
        if not folder.is_dir():
            raise AuditError(f"There is no {folder}; run nnUNetv2_preprocess for this configuration.")
        return infer_dataset_class(str(folder))(str(folder))

    @cached_property
    def splits(self) -> list[dict[str, list[str]]]:
        file = self.preprocessed / "splits_final.json"
        if not file.is_file():
            raise AuditError(f"There is no {file}, which says what each fold was trained on; restore it.")
        splits = read_json(file)
        if not isinstance(splits, list) or not all(isinstance(s, dict) and {"train", "val"} <= set(s) for s in splits):
            raise AuditError(f'{file} is not a list of folds with "train" and "val" each; restore it.')
        return splits

    def split(self, fold: Fold) -> tuple[set[str], set[str]]:
        """Training and validation cases of a fold."""
        if fold == "all":
            return set(self.dataset.identifiers), set()
        if not fold < len(self.splits):
            raise AuditError(f"Fold {fold} is not among the {len(self.splits)} folds of splits_final.json.")
        return set(self.splits[fold]["train"]), set(self.splits[fold]["val"])

    def trained_on(self, fold: Fold) -> set[str]:
        """Cases whose labels the fold's network has seen."""
        seen = self.networks[fold].seen
        return self.split(fold)[0] if seen is None else seen

    def split_notes(self) -> list[str]:
        """Folds that were trained on other cases than splits_final.json says now."""
        notes = []
        for fold in self.folds:
            more = len(self.trained_on(fold) - self.split(fold)[0])
            if more:
                notes.append(
                    f"The network of fold {fold} was trained on {more} cases that are not in the training part of its "
                    "fold in splits_final.json now, so the split has changed since; out of fold are the cases that its "
                    "checkpoint says it has not seen."
                )
        return notes

    def cases(self) -> list[str]:
        """Every case that the folds were trained or validated on."""
        named = set().union(*(set().union(*self.split(fold)) for fold in self.folds))
        absent = sorted(named - set(self.dataset.identifiers))
        if absent:
            raise AuditError(f"Case {absent[0]} of splits_final.json is not preprocessed; run nnUNetv2_preprocess.")
        return sorted(named)

    def folds_for(self, case: str) -> tuple[list[Fold], bool]:
        """The folds that predict a case, and whether none of them was trained on it."""
        unseen = [fold for fold in self.folds if case not in self.trained_on(fold)]
        return (unseen, True) if unseen else (list(self.folds), False)

    # ---- reading and predicting ----------------------------------------------------------------------------------

    @cached_property
    def reader(self):
        return self.predictor.plans_manager.image_reader_writer_class()

    @property
    def file_ending(self) -> str:
        return self.predictor.dataset_json["file_ending"]

    def given_file(self, case: str) -> Path:
        """The label as given, as nnU-Net keeps it beside the preprocessed data."""
        return self.preprocessed / "gt_segmentations" / f"{case}{self.file_ending}"

    def given(self, case: str) -> np.ndarray:
        file = self.given_file(case)
        if not file.is_file():
            raise AuditError(f"There is no {file}; run nnUNetv2_preprocess, which copies the labels there.")
        with explained(f"The label {file} cannot be read"):
            return np.rint(self.reader.read_seg(str(file))[0][0]).astype(np.int16)

    def predict(self, case: str, folds: Sequence[Fold] | None = None, learned: bool = True) -> CasePrediction:
        """Label and mean prediction of the folds that predict the case (or of the given ones).

        Args:
            learned: with the trainer's own weights, where `maps` asks for them; False spares their pass over the case.
        """
        chosen, out_of_fold = self.folds_for(case)
        if folds is not None:
            chosen, out_of_fold = list(folds), all(case not in self.trained_on(fold) for fold in folds)
        with explained(f"The preprocessed data of {case} cannot be read, run nnUNetv2_preprocess again"):
            data, seg, _, properties = self.dataset.load_case(case)
            data, seg = np.asarray(data[:]), np.asarray(seg[:])
        learned = learned and self.maps == "learned"
        with explained(f"{case} cannot be predicted on {self.device}; where its memory is too small try -device cpu"):
            outputs = [self.networks[fold].run(case, data, seg, learned) for fold in chosen]
        logits = sum(self._moved(o[0], fold) for o, fold in zip(outputs, chosen, strict=True)) / len(outputs)
        predicted, probabilities = self._export(logits, properties)
        doubts = [o[1] for o in outputs if o[1] is not None]
        # Every fold that was trained on the case has counted it, also where another one predicts it.
        records = [r for r in (network.record(case) for network in self.networks.values()) if r is not None]
        beliefs = [b for b in (network.belief(case) for network in self.networks.values()) if b is not None]
        given = self.given(case)
        ignore = self.label_manager.ignore_label
        return CasePrediction(
            given=given,
            predicted=predicted.astype(np.int16),
            probabilities=probabilities,
            valid=np.ones(given.shape, bool) if ignore is None else given != ignore,
            properties=properties,
            out_of_fold=out_of_fold,
            learned=self.to_case_geometry(sum(doubts) / len(doubts), properties)[0] if doubts else None,
            record=mean_record(records),
            belief=float(np.mean(beliefs)) if beliefs else None,
        )

    def image(self, case: str) -> np.ndarray:
        """First channel as preprocessed, brought back to the case's geometry (for pictures)."""
        data, _, _, properties = self.dataset.load_case(case)
        return self.to_case_geometry(np.asarray(data[:])[:1], properties)[0]

    def _moved(self, logits: torch.Tensor, fold: Fold) -> torch.Tensor:
        """Logits (K, *preprocessed) of a fold's network with its offsets."""
        if fold not in self.offsets:
            return logits
        return logits + logits.new_tensor(self.offsets[fold]).reshape(-1, *[1] * (logits.ndim - 1))

    def _export(self, logits: torch.Tensor, properties: dict) -> tuple[np.ndarray, np.ndarray]:
        import torch
        from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            self.predictor.plans_manager,
            self.configuration,
            self.label_manager,
            properties,
            return_probabilities=True,
            num_threads_torch=torch.get_num_threads(),
        )

    def to_case_geometry(self, maps: Any, properties: dict) -> np.ndarray:
        """Maps (C, *preprocessed) -> (C, *S), zero outside nnU-Net's crop; as nnU-Net's export does with logits."""
        plans, configuration = self.predictor.plans_manager, self.configuration
        shape, spacing = properties["shape_after_cropping_and_before_resampling"], properties["spacing"]
        spacing = [spacing[i] for i in plans.transpose_forward]
        current = [*spacing[: len(shape) - len(configuration.spacing)], *configuration.spacing]
        maps = np.asarray(configuration.resampling_fn_probabilities(maps, shape, current, spacing))
        whole = np.zeros((len(maps), *properties["shape_before_cropping"]), maps.dtype)
        whole[(slice(None), *(slice(*b) for b in properties["bbox_used_for_cropping"]))] = maps
        return whole.transpose([0, *(i + 1 for i in plans.transpose_backward)])

    def write(self, array: np.ndarray, file: Path, properties: dict) -> None:
        """An integer map in the case's geometry, by nnU-Net's own writer."""
        self.reader.write_seg(array, str(file), properties)


class FoldNetwork:
    """The network of one fold, and what MetaDCSeg left in its checkpoint.

    Args:
        ours: the checkpoint's entry "metadcseg", or None.

    Attributes:
        trainer_record: what can be read of it, or None. note: what the user must know about that, or None.
        seen: cases whose labels it was trained on; None: the checkpoint does not say.
    """

    def __init__(self, model: TrainedModel, fold: Fold, predictor: Any, ours: dict | None) -> None:
        self.model, self.fold, self.predictor = model, fold, predictor
        state = (ours or {}).get("state") or {}
        self.trainer = (ours or {}).get("trainer")
        self.note: str | None = None
        self.seen = self._seen(ours) if ours else None
        self.trainer_record = self._read(ours) if "weighting" in state else None
        if model.maps == "learned" and self.trainer_record is None:
            raise AuditError(
                self.note or f"The checkpoint of fold {fold} has no learned weights; use --maps prediction."
            )
        if state.get("left_out") and self.note is None:
            self.note = (
                f"So as not to teach the network of fold {fold} wrong labels, its trainer left out "
                f"{len(state['left_out'])} cases as doubtful: {', '.join(state['left_out'])}."
            )

    def _seen(self, ours: dict) -> set[str] | None:
        seen = seen_in_training(ours)
        if seen is None and is_trusted_only(ours):  # checkpoints before 2026-11-30 do not say which
            training = self.model.split(self.fold)[0]
            return training & set(self.model.trusted)
        return None if seen is None else set(seen)

    def _read(self, ours: dict) -> TrainerRecord | None:
        """The record of the trainer; for learned maps with its weights."""
        from nnunetv2_metadcseg.label_audit_alpha import LearnedWeights, TrainerRecord

        model = self.model
        try:
            trusted = trusted_in_training(ours, model.trusted)
            if model.maps == "learned":
                return LearnedWeights(self.predictor, ours, trusted, model.device)
            return TrainerRecord(ours, trusted, self.predictor.label_manager.has_regions, model.device)
        except (LookupError, TypeError, RuntimeError) as error:  # a checkpoint of another version of this package
            self.note = (
                f"The learned weights in the checkpoint of fold {self.fold} cannot be read by version "
                f"{__version__} ({type(error).__name__}: {str(error).splitlines()[0]:.100}), so they are not used."
            )
            return None

    def run(
        self, case: str, data: np.ndarray, seg: np.ndarray, learned: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (K, *preprocessed), and with `learned` 1 - alpha (1, *preprocessed), else None."""
        import torch

        image = torch.from_numpy(data)
        logits = self.predictor.predict_logits_from_preprocessed_data(image).float().cpu()
        if not learned:
            return logits, None
        label = np.maximum(seg, 0)  # nnU-Net's -1 outside the nonzero mask, which training takes for background
        return logits, self.trainer_record.suspicion(case, image, torch.from_numpy(label.astype(np.int16)), logits)

    def belief(self, case: str) -> float | None:
        return None if self.trainer_record is None else self.trainer_record.belief(case)

    def record(self, case: str) -> Record | None:
        return None if self.trainer_record is None else self.trainer_record.record(case)
