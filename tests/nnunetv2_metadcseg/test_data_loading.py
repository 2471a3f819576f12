from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_metadcseg.data_loading import ExtraSegChannels, StackedChannels, StratifiedDataLoader

GIVEN, TRUSTED = ["g0", "g1", "g2"], ["t0", "t1"]


class Dataset:
    """Cases in memory: foreground is one voxel in the corner, so that a patch tells whether it was aimed at."""

    identifiers = sorted(GIVEN + TRUSTED)
    shape = (12, 12, 12)

    def load_case(self, identifier: str):
        seg = np.zeros((1, *self.shape), np.int16)
        seg[0, 0, 0, 0] = 1
        data = np.full((1, *self.shape), float(identifier.startswith("t")), np.float32)
        return data, seg, None, {"class_locations": {1: np.array([[0, 0, 0, 0]])}}


def loader(batch_size: int = 4, share: float = 0.5, foreground: float = 0.33, **more) -> StratifiedDataLoader:
    settings = {"dataset": Dataset(), "given": GIVEN, "trusted": TRUSTED, **more}
    labels = LabelManager({"background": 0, "x": 1}, None)
    patch = settings.pop("patch", (4, 4, 4))
    return StratifiedDataLoader(
        settings.pop("dataset"),
        batch_size,
        patch,
        patch,
        labels,
        oversample_foreground_percent=foreground,
        trusted_share=share,
        **settings,
    )


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)


class TestBatches:
    @pytest.mark.parametrize(("batch_size", "num_trusted"), [(2, 1), (4, 2), (5, 1)])
    def test_given_first_then_trusted(self, batch_size, num_trusted):
        batch = next(loader(batch_size, num_trusted / batch_size))
        num_given = batch_size - num_trusted
        assert batch["num_given"] == num_given
        assert set(batch["keys"][:num_given]) <= set(GIVEN)
        assert set(batch["keys"][num_given:]) <= set(TRUSTED)
        assert batch["data"].shape == (batch_size, 1, 4, 4, 4)
        # The keys belong to the patches.
        assert batch["data"].amax((1, 2, 3, 4)).tolist() == [0.0] * num_given + [1.0] * num_trusted

    def test_every_case_is_drawn(self):
        it = loader()
        assert {key for _ in range(30) for key in it.get_indices()} == set(GIVEN + TRUSTED)

    def test_batch_of_one_draws_both_kinds(self):
        it = loader(1)
        counts = [next(it)["num_given"] for _ in range(40)]
        assert set(counts) == {0, 1}
        assert 8 < sum(counts) < 32


class TestTrustedShare:
    @pytest.mark.parametrize(("batch_size", "share"), [(2, 0.125), (2, 0.3), (8, 0.178), (5, 0.5)])
    def test_holds_in_the_mean(self, batch_size, share):
        it = loader(batch_size, share)
        counts = [it._num_trusted() for _ in range(4000)]
        assert set(counts) == {int(share * batch_size), int(share * batch_size) + 1}
        assert np.mean(counts) == pytest.approx(share * batch_size, abs=0.04)

    def test_leaves_a_given_label_patch_in_a_batch_of_several(self):
        it = loader(4, 0.99)
        assert {it._num_trusted() for _ in range(50)} == {3}

    def test_least_number_of_trusted_patches(self):
        it = loader(4, 0.01, least_trusted=1)
        assert {it._num_trusted() for _ in range(50)} == {1}

    def test_one_means_trusted_patches_only(self):
        it = loader()
        it.trusted_share = 1.0
        batch = next(it)
        assert batch["num_given"] == 0
        assert set(batch["keys"]) <= set(TRUSTED)
        it.trusted_share = 0.5
        assert next(it)["num_given"] == 2

    def test_reaches_a_worker_process(self):
        it = loader()
        changes = [partial(setattr, it, "trusted_share", value) for value in (0.5, 1.0, 0.5, 0.0)]
        changes.append(partial(setattr, it, "least_trusted", 3))
        assert given_patches_of_a_worker(it, changes) == [2, 0, 2, 4, 1]

    def test_can_be_handed_to_nnunets_augmenter(self):
        from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

        it = loader()
        augmenter = NonDetMultiThreadedAugmenter(it, None, 1, num_cached=1, seeds=None, pin_memory=False)
        try:
            assert next(augmenter)["num_given"] == 2
            it.trusted_share = 1.0
            counts = [next(augmenter)["num_given"] for _ in range(20)]  # those cached before come first
            assert counts[-1] == 0
        finally:
            augmenter._finish()


def answer(it: StratifiedDataLoader, connection) -> None:
    """A worker: loads a batch whenever asked."""
    while connection.recv() == "next":
        connection.send(next(it)["num_given"])


def given_patches_of_a_worker(it: StratifiedDataLoader, changes: Sequence[Callable[[], None]]) -> list[int]:
    """Given-label patches of a batch that a worker process loads after each of the changes made here."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    worker = context.Process(target=answer, args=(it, theirs), daemon=True)
    worker.start()
    try:
        counts = []
        for change in changes:
            change()
            ours.send("next")
            assert ours.poll(60)
            counts.append(ours.recv())
        return counts
    finally:
        ours.send("stop")
        worker.join(10)


class TestTrustedWithoutStructure:
    given, trusted = [f"g{i}" for i in range(16)], ["t0", "t1", "t2", "t3"]

    def drawn(self, empty: list[str]) -> np.ndarray:
        """How often each trusted case is drawn, as a share of the trusted patches."""
        it = loader(8, given=self.given, trusted=self.trusted, empty=empty)
        keys = [key for _ in range(1000) for key in it.get_indices()]
        counts = np.array([keys.count(case) for case in self.trusted])
        assert sum(key in self.given for key in keys) == 4000
        return counts / counts.sum()

    def test_are_drawn_as_often_as_such_cases_occur_among_all(self):
        shares = self.drawn(["t0", "t1", "t2", "g0"])
        assert shares == pytest.approx([0.2 / 3, 0.2 / 3, 0.2 / 3, 0.8], abs=0.02)

    @pytest.mark.parametrize("empty", [[], ["g0"], ["t0", *given[:7]], trusted], ids=["none", "given", "few", "all"])
    def test_otherwise_all_alike(self, empty):
        assert self.drawn(empty) == pytest.approx([0.25] * 4, abs=0.03)


class TestTrustedLater:
    """No case is trusted at first: what a trainer that chooses its trusted cases itself needs."""

    def make(self) -> StratifiedDataLoader:
        return loader(given=sorted(GIVEN + TRUSTED), trusted=[])

    def test_draws_from_all_cases_until_then(self):
        it = self.make()
        it.trusted_share = 1.0  # nothing to obey yet
        assert {key for _ in range(30) for key in it.get_indices()} == set(GIVEN + TRUSTED)
        batch = next(it)
        assert batch["undivided"] is True and batch["num_given"] == 4
        assert it.trusted == [] and it.given == sorted(GIVEN + TRUSTED)

    def test_then_as_if_made_with_them(self):
        it, other = self.make(), loader()
        it.set_trusted(TRUSTED)
        assert (it.given, it.trusted) == (GIVEN, TRUSTED)
        np.random.seed(1)
        mine = [it.get_indices() for _ in range(5)]
        np.random.seed(1)
        assert mine == [other.get_indices() for _ in range(5)]
        batch = next(it)
        assert batch["undivided"] is False and batch["num_given"] == 2

    @pytest.mark.parametrize("cases", [[], ["t0", "x"], GIVEN + TRUSTED])
    def test_what_cannot_be_trusted(self, cases):
        with pytest.raises(ValueError, match=f"Got {len(cases)} trusted cases, of which {cases.count('x')} unknown"):
            self.make().set_trusted(cases)

    def test_only_once(self):
        with pytest.raises(ValueError, match="has 2 trusted cases already"):
            loader().set_trusted(["g0"])

    def test_reaches_a_worker_process(self):
        it = self.make()
        assert given_patches_of_a_worker(it, [lambda: None, lambda: it.set_trusted(TRUSTED)]) == [4, 2]


class TestLeavingOut:
    def test_is_drawn_no_more_until_told_otherwise(self):
        subject = loader()
        subject.leave_out(["g0", "g2"])
        assert subject.given == ["g1"]
        assert {key for _ in range(20) for key in next(subject)["keys"]} == {"g1", *TRUSTED}
        subject.leave_out([])
        assert subject.given == GIVEN

    def test_without_others_all_patches_are_trusted(self):
        subject = loader()
        subject.leave_out(GIVEN)
        batch = next(subject)
        assert batch["num_given"] == 0 and set(batch["keys"]) <= set(TRUSTED)

    def test_those_that_remain_are_drawn_as_often_as_trusted_ones(self):
        subject = loader(batch_size=2, share=8 / 9)
        subject.leave_out(["g0", "g2"])
        given = np.mean([next(subject)["num_given"] for _ in range(300)]) / 2
        assert given == pytest.approx(1 / 9, abs=0.04)

    @pytest.mark.parametrize("case", ["t0", "other"])
    def test_what_cannot_be_left_out(self, case):
        with pytest.raises(ValueError, match=f"^{case} cannot be left out"):
            loader().leave_out(["g0", case])


class TestForeground:
    def rate(self, it: StratifiedDataLoader, batches: int = 150) -> np.ndarray:
        """Share of patches that were aimed at the foreground, by position in the batch."""
        return np.mean([(next(it)["target"] == 1).amax((1, 2, 3, 4)).numpy() for _ in range(batches)], 0)

    def test_both_kinds_get_their_share(self):
        # nnU-Net's fixed rule at batch size 4 and 33 %: one patch of four, the last (which would always be trusted).
        rate = self.rate(loader(4, 2))
        assert rate.mean() == pytest.approx(0.25, abs=0.08)
        assert rate.min() > 0.1

    def test_all_and_nothing(self):
        assert self.rate(loader(foreground=1.0), 5).min() == 1
        assert self.rate(loader(foreground=0.0), 20).mean() < 0.1

    def test_nnunets_own_probabilistic_rule_is_kept(self):
        it = loader(4, 2, foreground=0.6, probabilistic_oversampling=True)
        assert it.oversample_foreground_percent == 0.6


class OnDisk:
    """An array that counts how many of its voxels are read, for those which nnU-Net opens on disk."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype, self.read = values, values.shape, values.dtype, 0

    def __getitem__(self, key) -> np.ndarray:
        crop = self.values[key]
        self.read += crop.size
        return crop


class TestExtraChannels:
    def test_travel_beside_the_label(self):
        extra = ExtraSegChannels(Dataset(), lambda case, shape: np.full((1, *shape), 7, np.uint8))
        assert extra.identifiers == Dataset.identifiers
        batch = next(loader(dataset=extra))
        assert batch["target"].shape == (4, 2, 4, 4, 4)
        assert (batch["target"][:, 1] == 7).all()

    def test_wrong_shape_is_named(self):
        extra = ExtraSegChannels(Dataset(), lambda case, shape: np.zeros((1, 3, 3, 3), np.uint8))
        with pytest.raises(ValueError, match=r"extra map of case g0 has shape \(3, 3, 3\).*\(12, 12, 12\)"):
            extra.load_case("g0")

    @pytest.mark.parametrize("patch", [(4, 4, 4), (4, 4), (16, 4, 4)])
    def test_only_the_patch_is_read(self, patch):
        """For 3D patches, for 2D ones out of volumes, and for those that are larger than the volume."""
        dataset, extra = Dataset(), OnDisk(np.full((1, *Dataset.shape), 7, np.uint8))
        label = OnDisk(dataset.load_case("g0")[1])
        dataset.load_case = lambda case: (*Dataset().load_case(case)[:1], label, None, {"class_locations": {}})
        loaded = loader(1, 0, 0, dataset=ExtraSegChannels(dataset, lambda case, shape: extra), patch=patch)
        target = next(loaded)["target"]
        assert target.shape == (1, 2, *patch)
        inside = np.prod(np.minimum(patch, 12))
        assert (label.read, extra.read) == (inside, inside)
        assert (target[:, 1] == 7).sum() == inside
        assert (target == -1).sum() == 2 * (np.prod(patch) - inside)

    def test_index_as_the_stacked_arrays(self):
        random = np.random.default_rng(0)
        label, extra = random.integers(-1, 3, (2, 5, 6), np.int8), random.integers(0, 12, (1, 5, 6), np.uint8)
        stacked, expected = StackedChannels(label, extra), np.concatenate([label, extra]).astype(np.int8)
        assert (stacked.shape, stacked.ndim, stacked.dtype) == (expected.shape, 3, np.int8)
        for key in (slice(None), 2, (slice(None), slice(1, 4), slice(0, 2)), (slice(1, 3), 2), (2, 4, 5)):
            np.testing.assert_array_equal(stacked[key], expected[key])
            assert stacked[key].dtype == np.int8
