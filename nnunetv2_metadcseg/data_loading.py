"""Batches of given-label and trusted patches, at nnU-Net's planned batch size."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Sequence

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader


def trusted_patches_per_batch(batch_size: int, trusted_fraction: float) -> int:
    """How many patches of a batch come from trusted cases: max(1, round(batch_size * trusted_fraction)).

    At least one patch stays for the given labels, except in a batch of one (then 0 or 1: see `StratifiedDataLoader`).
    """
    if batch_size == 1:
        return 0
    return min(max(1, round(batch_size * trusted_fraction)), batch_size - 1)


class StratifiedDataLoader(nnUNetDataLoader):
    """nnU-Net's loader with the given-label patches first and the trusted patches last in every batch.

    The batch dictionary gets `num_given`, the number of given-label patches. Foreground patches are drawn at random at
    the rate that nnU-Net's fixed rule would give for this batch size; the fixed rule (the last patches of a batch)
    would give all foreground to the trusted ones.

    Args:
        given: identifiers of the cases with doubtful labels. trusted: identifiers of the trusted cases.
        num_trusted: trusted patches per batch, at least; all of them while `trusted_only` is set. A batch of one
            alternates at random between the two kinds.
        least_given: given-label patches per batch, at least (1 with DDP: the ranks' reductions need both kinds).
    """

    def __init__(
        self,
        *args,
        given: Sequence[str],
        trusted: Sequence[str],
        num_trusted: int,
        least_given: int = 0,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.least_given = least_given
        self.given, self.trusted, self.num_trusted = list(given), list(trusted), num_trusted
        # Shared with worker processes, which load batches while the training process changes its mind.
        self._trusted_only = multiprocessing.Value("b", 0, lock=False)
        self._given_share = multiprocessing.Value("d", 1.0, lock=False)
        self._weights = multiprocessing.Array("d", [1.0] * len(self.given), lock=False)
        if self.get_do_oversample == self._oversample_last_XX_percent:
            foreground = sum(self._oversample_last_XX_percent(i) for i in range(self.batch_size))
            self.oversample_foreground_percent = foreground / self.batch_size
            self.get_do_oversample = self._probabilistic_oversampling

    @property
    def trusted_only(self) -> bool:
        """Draw trusted patches only."""
        return bool(self._trusted_only.value)

    @trusted_only.setter
    def trusted_only(self, value: bool) -> None:
        self._trusted_only.value = int(value)

    def set_given_sampling(self, weights: Sequence[float], share: float) -> None:
        """Draw the given-label cases in proportion to `weights`, and `share` (0 to 1) of the planned number of them.

        Raises:
            ValueError: another number of weights than of given-label cases.
        """
        if len(weights) != len(self.given):
            raise ValueError(f"Got {len(weights)} sampling weights for {len(self.given)} given-label cases.")
        self._weights[:] = list(weights)
        self._given_share.value = share

    @property
    def given_sampling(self) -> tuple[list[float], float]:
        """Weights and share as set."""
        return list(self._weights), self._given_share.value

    def _num_given(self) -> int:
        """Given-label patches of the next batch; a fraction is settled at random, so that the mean is right."""
        if self.trusted_only:
            return 0
        planned = 0.5 if self.batch_size == 1 else self.batch_size - self.num_trusted
        return max(self.least_given, math.floor(planned * self._given_share.value + np.random.uniform()))

    def get_indices(self) -> list[str]:
        """Case identifiers of the next batch, drawn with replacement."""
        num_given = self._num_given()
        weights = np.array(self._weights)
        given = list(np.random.choice(self.given, num_given, p=weights / weights.sum())) if num_given else []
        return given + list(np.random.choice(self.trusted, self.batch_size - num_given))

    def generate_train_batch(self) -> dict:
        batch = super().generate_train_batch()
        trusted = set(self.trusted)
        # Counted from the drawn cases: the batch may have been made by a worker before `trusted_only` changed here.
        batch["num_given"] = sum(key not in trusted for key in batch["keys"])
        return batch


class ExtraSegChannels:
    """A data set of nnU-Net whose segmentations carry further channels through spatial augmentation.

    Args:
        dataset: data set with `load_case`.
        load_extra: maps a case identifier to an integer array (E, *S) in the preprocessed geometry.

    Raises:
        ValueError: on loading, if the extra channels have another shape than the segmentation.
    """

    def __init__(self, dataset, load_extra) -> None:
        self.dataset, self.load_extra = dataset, load_extra
        self.identifiers = dataset.identifiers

    def load_case(self, identifier: str):
        data, seg, seg_prev, properties = self.dataset.load_case(identifier)
        extra = self.load_extra(identifier)
        if extra.shape[1:] != seg.shape[1:]:
            raise ValueError(
                f"The extra map of case {identifier} has shape {extra.shape[1:]}, but its preprocessed label has "
                f"{tuple(seg.shape[1:])}; preprocess both from files of the same geometry."
            )
        return data, np.concatenate([seg[:], extra[:].astype(seg.dtype)]), seg_prev, properties
