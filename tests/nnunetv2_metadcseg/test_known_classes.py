from __future__ import annotations

import pytest
import torch

from nnunetv2_metadcseg.known_classes import FOUND, KnownClasses


def maps(*sizes: int) -> torch.Tensor:
    """(1, K, 10), the first voxels of each head set."""
    return (torch.arange(10) < torch.tensor(sizes).view(1, -1, 1)).float()


def test_nothing_is_said_before_the_first_patch():
    assert KnownClasses()() is None


def test_is_the_recall_by_that_of_a_found_class():
    known = KnownClasses(momentum=0.0)
    known.update(maps(10, 2, 0, 5), maps(8, 8, 8, 0))
    assert known().tolist() == pytest.approx([1, 2 / 8 / FOUND, 0, 0])  # more than the label is no better; none seen


def test_patches_without_a_class_do_not_change_what_is_known_of_it():
    known = KnownClasses(momentum=0.5)
    known.update(maps(8, 2), maps(8, 8))
    before = known()
    known.update(maps(0, 0), maps(0, 0))
    known.update(torch.zeros(0, 2, 10), torch.zeros(0, 2, 10))
    torch.testing.assert_close(known(), before)
    known.update(maps(0, 8), maps(0, 8))
    assert known()[1] > before[1]


def test_a_class_is_known_however_long_it_has_not_been_seen():
    known = KnownClasses()
    for _ in range(200):
        known.update(maps(8, 2), maps(8, 8))
    before = known()
    for _ in range(5000):
        known.update(maps(8, 0), maps(8, 0))
    torch.testing.assert_close(known(), before)
    known.update(maps(8, 8), maps(8, 8))  # and soon known anew
    assert known()[1] > 0.99


class TestAbsentClasses:
    """Those that no trusted case holds: here the second of two, or of two regions."""

    @staticmethod
    def known() -> KnownClasses:
        known = KnownClasses()
        known.absent = torch.tensor([False, True])
        return known

    def test_the_other_classes_share_what_is_said_of_them(self):
        said = torch.tensor([0.1, 0.3, 0.6]).view(1, 3, 1, 1)
        torch.testing.assert_close(
            self.known().without_absent(said, False), torch.tensor([0.25, 0.75, 0]).view(1, 3, 1, 1)
        )

    def test_the_other_regions_are_as_they_were(self):
        said = torch.tensor([0.3, 0.6]).view(1, 2, 1, 1)
        assert torch.equal(self.known().without_absent(said, True), torch.tensor([0.3, 0]).view(1, 2, 1, 1))

    def test_what_is_called_by_their_name_is_not_judged(self):
        label = torch.eye(3)[None]  # a voxel of the background, one of each class
        pseudo = label.roll(1, 2)  # called by the absent class, background, the other class
        assert self.known().judged(label, label, False).tolist() == [[[1, 1, 0]]]
        assert self.known().judged(label, pseudo, False).tolist() == [[[0, 1, 0]]]
        assert self.known().judged(label[:, 1:], pseudo[:, 1:], True).tolist() == [[[1, 1, 1], [0, 1, 0]]]

    @pytest.mark.parametrize("regions", [False, True])
    def test_without_any_nothing_changes(self, regions):
        said = torch.rand(2, 3, 4)
        assert KnownClasses().without_absent(said, regions) is said
        assert KnownClasses().judged(said, said, regions) == 1
