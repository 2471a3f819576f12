from __future__ import annotations

import pytest
import torch

from nnunetv2_metadcseg.targets import LabelEncoder


@pytest.fixture
def label() -> torch.Tensor:
    """(1, 1, 2, 2) with background, two classes and the value 3."""
    return torch.tensor([[[[0, 1], [2, 3]]]], dtype=torch.int16)


def test_classes_become_one_hot(label):
    target, valid = LabelEncoder(4, None, None)(label)
    assert target.dtype == valid.dtype == torch.float32
    assert target.tolist() == [[[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 1]]]]
    assert valid.tolist() == [[[[1, 1], [1, 1]]]]


def test_ignored_voxels_do_not_count_and_stay_a_distribution(label):
    target, valid = LabelEncoder(3, None, 3)(label)
    assert valid.tolist() == [[[[1, 1], [1, 0]]]]
    assert (target.sum(1) == 1).all()


def test_regions_overlap(label):
    target, valid = LabelEncoder(3, [(1, 2, 3), (2, 3), 3], None)(label)
    assert target[0, :, 0, 0].tolist() == [0, 0, 0]
    assert target[0, :, 0, 1].tolist() == [1, 0, 0]
    assert target[0, :, 1, 0].tolist() == [1, 1, 0]
    assert target[0, :, 1, 1].tolist() == [1, 1, 1]
    assert valid.min() == 1


def test_regions_with_ignore(label):
    target, valid = LabelEncoder(2, [(1, 2), 2], 3)(label)
    assert target[0, :, 1, 1].tolist() == [0, 0]
    assert valid.tolist() == [[[[1, 1], [1, 0]]]]


@pytest.mark.parametrize("dim", [2, 3])
def test_floating_point_label_maps_of_any_dimension(dim):
    label = torch.randint(0, 3, (2, 1, *[4] * dim)).float()
    target, valid = LabelEncoder(3, None, None)(label)
    assert target.shape == (2, 3, *[4] * dim)
    assert valid.shape == label.shape
    assert torch.equal(target.argmax(1, keepdim=True), label.long())


def test_equals_the_region_transform_of_nnunet():
    from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

    label = torch.randint(0, 4, (1, 1, 4, 4, 4), dtype=torch.int16)
    regions = [(1, 2), (2,)]
    theirs = ConvertSegmentationToRegionsTransform(regions=[*regions, 3], channel_in_seg=0)(segmentation=label[0])
    target, valid = LabelEncoder(2, regions, 3)(label)
    assert torch.equal(target[0].bool(), theirs["segmentation"][:2].bool() & valid[0].bool())
    assert torch.equal(valid[0].bool(), ~theirs["segmentation"][2:].bool())
