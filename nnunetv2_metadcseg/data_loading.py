"""Batches of given-label and trusted patches, at nnU-Net's planned batch size."""

from __future__ import annotations

import multiprocessing
from collections.abc import Collection, Sequence

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader


class StratifiedDataLoader(nnUNetDataLoader):
    """nnU-Net's loader with the given-label patches first and the trusted patches last in every batch.

    The batch dictionary gets `num_given`, the number of given-label patches. Foreground patches are drawn at random at
    the rate that nnU-Net's fixed rule would give for this batch size; the fixed rule (the last patches of a batch)
    would give all foreground to the trusted ones.

    The number of trusted patches is `trusted_share` of the batch, rounded up or down at random so that the share holds
    in the mean also for the small batches of 3D training. Below a share of one at least one given-label patch stays in
    a batch of several.

    Trusted cases without structure are drawn no more often than such cases occur among all: they are quick to check, so
    there may be many of them, and they would crowd out those that show what the structure looks like.

    While no case is trusted, a batch is drawn from all cases alike and carries `undivided`: true. `set_trusted` ends
    that; batches that workers have made before still come, and are known by that mark.

    Args:
        given: identifiers of the cases with doubtful labels. trusted: identifiers of the trusted cases, or none yet.
        trusted_share: share of the patches that come from trusted cases, in [0, 1].
        least_trusted: trusted patches in every batch, whatever the share.
        empty: identifiers of the cases, given and trusted, whose label holds no structure.
    """

    def __init__(
        self,
        *args,
        given: Sequence[str],
        trusted: Sequence[str],
        trusted_share: float,
        least_trusted: int = 0,
        empty: Collection[str] = (),
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.cases, self.empty = [*given, *trusted], frozenset(empty)
        # Shared with worker processes, which load batches while the training process changes its mind.
        self._least_trusted = multiprocessing.Value("i", least_trusted, lock=False)
        self._trusted_share = multiprocessing.Value("d", trusted_share, lock=False)
        self._is_trusted = multiprocessing.Array("b", [0] * len(given) + [1] * len(trusted), lock=False)
        self._is_left_out = multiprocessing.Array("b", len(self.cases), lock=False)
        self._undivided = multiprocessing.Value("b", not trusted, lock=False)
        if self.get_do_oversample == self._oversample_last_XX_percent:
            foreground = sum(self._oversample_last_XX_percent(i) for i in range(self.batch_size))
            self.oversample_foreground_percent = foreground / self.batch_size
            self.get_do_oversample = self._probabilistic_oversampling

    @property
    def given(self) -> list[str]:
        """The cases with doubtful labels, but those that are left out."""
        kinds = zip(self.cases, self._is_trusted, self._is_left_out, strict=True)
        return [case for case, trusted, left_out in kinds if not (trusted or left_out)]

    @property
    def trusted(self) -> list[str]:
        """The trusted cases; empty while none is."""
        return [case for case, trusted in zip(self.cases, self._is_trusted, strict=True) if trusted]

    def set_trusted(self, trusted: Sequence[str]) -> None:
        """Declare the trusted cases of a loader that was made without any.

        Raises:
            ValueError: there are trusted cases already; or unknown cases, none, or nothing but trusted cases.
        """
        chosen = set(trusted)
        if not self._undivided.value:
            raise ValueError(f"This loader has {len(self.trusted)} trusted cases already; they are set only once.")
        if not chosen or not chosen < set(self.cases):
            raise ValueError(
                f"Got {len(chosen)} trusted cases, of which {len(chosen - set(self.cases))} unknown; expected at least "
                f"one and fewer than the {len(self.cases)} cases of this loader."
            )
        self._is_trusted[:] = [case in chosen for case in self.cases]
        self._undivided.value = 0  # last: a worker looks at the others only after this

    def leave_out(self, cases: Sequence[str]) -> None:
        """Draw these given-label cases no more; without any others, batches hold trusted patches only.

        Raises:
            ValueError: some of them are trusted or unknown.
        """
        left_out = set(cases)
        wrong = sorted(left_out - set(self.cases) | left_out & set(self.trusted))
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot be left out; expected given-label cases of this loader.")
        self._is_left_out[:] = [case in left_out for case in self.cases]

    @property
    def trusted_share(self) -> float:
        """Share of the patches that come from trusted cases; 1: trusted patches only."""
        return self._trusted_share.value

    @trusted_share.setter
    def trusted_share(self, value: float) -> None:
        self._trusted_share.value = value

    @property
    def least_trusted(self) -> int:
        """Trusted patches in every batch, whatever the share."""
        return self._least_trusted.value

    @least_trusted.setter
    def least_trusted(self, value: int) -> None:
        self._least_trusted.value = value

    def _num_trusted(self) -> int:
        """Trusted patches of the next batch."""
        share = self.trusted_share
        if share >= 1:
            return self.batch_size
        number = int(share * self.batch_size + np.random.uniform())
        # Once cases were left out the share follows from how many there are, however few of them are not trusted.
        most = self.batch_size if any(self._is_left_out) else max(1, self.batch_size - 1)
        return max(self.least_trusted, min(number, most))

    def get_indices(self) -> list[str]:
        """Case identifiers of the next batch, drawn with replacement."""
        # Looked up once: a worker may be here while the training process changes it.
        self._batch_is_undivided = bool(self._undivided.value)
        if self._batch_is_undivided:
            return list(np.random.choice(self.cases, self.batch_size))
        cases = self.given
        num_given = self.batch_size - self._num_trusted() if cases else 0
        given = list(np.random.choice(cases, num_given)) if num_given else []
        trusted = self.trusted
        return given + list(np.random.choice(trusted, self.batch_size - num_given, p=self._odds(trusted)))

    def _odds(self, trusted: Sequence[str]) -> list[float] | None:
        """Probability of every trusted case; None: all alike."""
        num_empty, share = sum(case in self.empty for case in trusted), len(self.empty) / len(self.cases)
        if num_empty == len(trusted) or num_empty <= share * len(trusted):
            return None
        odds = share / num_empty, (1 - share) / (len(trusted) - num_empty)
        return [odds[case not in self.empty] for case in trusted]

    def generate_train_batch(self) -> dict:
        batch = super().generate_train_batch()
        batch["undivided"] = self._batch_is_undivided
        # Counted from the drawn cases: the batch may have been made by a worker before the share changed here.
        trusted = set() if self._batch_is_undivided else set(self.trusted)
        batch["num_given"] = sum(key not in trusted for key in batch["keys"])
        return batch


class ExtraSegChannels:
    """A data set of nnU-Net whose segmentations carry further channels through spatial augmentation.

    Args:
        dataset: data set with `load_case`.
        load_extra: maps a case identifier and the shape (*S) of its preprocessed label to an integer array (E, *S),
            which may lie on disk.

    Raises:
        ValueError: on loading, if the extra channels have another shape than the segmentation.
    """

    def __init__(self, dataset, load_extra) -> None:
        self.dataset, self.load_extra = dataset, load_extra
        self.identifiers = dataset.identifiers

    def load_case(self, identifier: str):
        data, seg, seg_prev, properties = self.dataset.load_case(identifier)
        extra = self.load_extra(identifier, tuple(seg.shape[1:]))
        if extra.shape[1:] != seg.shape[1:]:
            raise ValueError(
                f"The extra map of case {identifier} has shape {extra.shape[1:]}, but its preprocessed label has "
                f"{tuple(seg.shape[1:])}; preprocess both from files of the same geometry."
            )
        return data, StackedChannels(seg, extra), seg_prev, properties


class StackedChannels:
    """Two arrays (C, *S) and (E, *S) as one (C + E, *S), of which only what is indexed is read.

    nnU-Net's loader crops every patch out of its case with one slice per axis. Stacking the arrays themselves would
    read whole volumes from disk for each.

    Args:
        first: array, on disk or in memory, whose type the whole gets. second: integers which that type can hold.
    """

    def __init__(self, first, second) -> None:
        self.parts, self.dtype = (first, second), first.dtype
        self.shape = (first.shape[0] + second.shape[0], *first.shape[1:])
        self.ndim = len(self.shape)

    def __getitem__(self, key) -> np.ndarray:
        """Slices or numbers for the first axes, channels first; no ellipsis."""
        channels, *place = key if isinstance(key, tuple) else (key,)
        crops = [part[(slice(None), *place)] for part in self.parts]
        return np.concatenate(crops, dtype=self.dtype, casting="unsafe")[channels]
