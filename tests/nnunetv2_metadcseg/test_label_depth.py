"""How deep in labels their errors lie: depths, and what is counted of them."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_cdt

from nnunetv2_metadcseg.collective import Collective
from nnunetv2_metadcseg.label_depth import BOUNDS, DEPTHS, LabelDepth, depths
from tests.nnunetv2_metadcseg.ranks import run_ranks


def box(size: int, radius: int) -> torch.Tensor:
    """(1, 1, size, size) with a square of this radius in the middle."""
    away = (torch.arange(size) - size // 2).abs()
    return (torch.maximum(away[:, None], away[None]) <= radius)[None, None]


class TestDepths:
    @pytest.mark.parametrize("dim", [2, 3])
    def test_they_are_chessboard_distances(self, dim):
        structure = torch.ones(2, 1, *[36] * dim, dtype=torch.bool)
        structure[0, 0, 5], structure[1, 0, 10:12] = False, False
        structure[0, 0, ..., 34] = False
        for mask, depth in zip(structure[:, 0], depths(structure)[:, 0], strict=True):
            distance = torch.from_numpy(distance_transform_cdt(mask.numpy(), "chessboard"))
            assert torch.equal(depth, sum((distance > bound).long() for bound in BOUNDS))

    @pytest.mark.parametrize("spacing", [(0.8, 0.79, 0.79), (3.6, 0.62, 0.62), (1.0, 1.0, 2.0), (5.0, 1.6, 1.6)])
    def test_coarse_axes_are_shrunk_by_as_many_voxels_as_the_distance_has(self, spacing):
        structure = torch.rand(1, 1, 14, 30, 30, generator=torch.Generator().manual_seed(0)) > 1e-3
        expected = structure[0, 0].long()
        for bound in BOUNDS:
            size = [1 + 2 * round(bound * min(spacing) / s) for s in spacing]
            expected += torch.from_numpy(binary_erosion(structure[0, 0].numpy(), torch.ones(size), border_value=1))
        assert torch.equal(depths(structure, spacing)[0, 0], expected - structure[0, 0].long())
        assert len(expected.unique()) > 4

    def test_the_edge_of_the_patch_is_no_border(self):
        assert (depths(torch.ones(1, 1, 5, 5, dtype=torch.bool)) == DEPTHS - 1).all()
        assert depths(torch.ones(1, 1, 1, 1, dtype=torch.bool)).item() == DEPTHS - 1

    def test_leaves_its_input(self):
        structure = box(9, 2)
        depths(structure)
        assert torch.equal(structure, box(9, 2))


def counted(said: torch.Tensor, label: torch.Tensor, **settings) -> LabelDepth:
    result = LabelDepth(**settings)
    result.update(said, label, torch.ones_like(said))
    return result


class TestLabelDepth:
    def test_counts_right_and_wrong_structure(self):
        wrong, right = counted(box(21, 4), box(21, 2), momentum=0.0).counts.tolist()
        assert wrong[:3] == [81 - 49, 49 - 25, 0] and right[:6] == [0, 0, 25 - 9, 9 - 1, 1, 0]

    def test_a_rim_that_is_wrong_is_doubted_and_what_lies_deeper_believed(self):
        found = counted(box(21, 4), box(21, 2)).log_ratio().tolist()
        assert max(found[:2]) < -2 and min(found[2:5]) > 2
        assert found[5:] == [0, 0, 0]  # none lies so deep

    def test_says_nothing_before_it_knows(self):
        nothing = [0.0] * DEPTHS
        assert LabelDepth().log_ratio().tolist() == nothing
        assert counted(box(21, 4), box(21, 4)).log_ratio().tolist() == nothing  # no error
        assert counted(box(21, 4), box(21, 4) & False).log_ratio().tolist() == nothing  # nothing but errors

    def test_forgets_and_leaves_out_what_does_not_count(self):
        labels = counted(box(21, 4), box(21, 2), momentum=0.5)
        before = labels.counts.clone()
        labels.update(box(21, 4), box(21, 2), torch.zeros(1, 1, 21, 21, dtype=torch.bool))
        torch.testing.assert_close(labels.counts, before / 2)

    def test_no_trusted_patch(self):
        assert counted(box(21, 4)[:0], box(21, 2)[:0]).counts.sum() == 0

    def test_ranks_count_together(self, tmp_path):
        expected = counted(torch.cat([box(9, 3), box(9, 1)]), torch.cat([box(9, 2), box(9, 2)])).counts
        for counts in run_ranks(count_own_half, tmp_path):
            torch.testing.assert_close(counts, expected)


def count_own_half(rank: int) -> torch.Tensor:
    return counted(box(9, 3 if rank == 0 else 1), box(9, 2), collective=Collective()).counts
