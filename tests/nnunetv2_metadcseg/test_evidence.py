from __future__ import annotations

import pytest
import torch

from nnunetv2_metadcseg.agreement import NUM_DIRECTIONS, disagreement, hard_labels
from nnunetv2_metadcseg.center_distance import CenterDistance, normalised_entropy, region_weights
from nnunetv2_metadcseg.evidence import NUM_VOXEL_INPUTS, at_decisions, at_voxels, collect, decision_probability
from nnunetv2_metadcseg.patches import Patches

SHAPE = (3, 4, 5)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_probability_of_a_decision():
    probabilities, decision = torch.tensor([[[0.7], [0.3]]]), torch.tensor([[[0.0], [1.0]]])
    assert decision_probability(probabilities, decision, False).flatten().tolist() == pytest.approx([0.3])
    assert decision_probability(probabilities, decision, True).flatten().tolist() == pytest.approx([0.3, 0.3])


def test_gathering_against_indexing():
    tensor = torch.randn(2, 3, *SHAPE)
    mask = torch.rand(2, 3, *SHAPE) > 0.7
    where = mask.nonzero(as_tuple=True)
    assert torch.equal(at_decisions(tensor, where), tensor[mask])
    assert torch.equal(at_decisions(tensor[:, :1], where), tensor[:, :1].expand_as(tensor)[mask])
    assert torch.equal(at_voxels(tensor, where)[5], tensor[where[0][5], :, where[2][5], where[3][5], where[4][5]])


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("shape", [(6, 7), SHAPE])
def test_inputs_of_disagreeing_decisions(shape, regions, context):
    heads, channels = 3, 5
    squash = torch.sigmoid if regions else lambda z: torch.softmax(z, 1)
    student, teacher = (squash(torch.randn(2, heads, *shape)) for _ in range(2))
    label = hard_labels(squash(torch.randn(2, heads, *shape)), regions)
    features, valid = torch.randn(2, channels, *shape), torch.ones(2, 1, *shape)
    centers = CenterDistance()
    centers.update(centers.sums(features, region_weights(student, regions), valid))
    found = disagreement(label, teacher, valid, regions)
    rates = torch.rand(2, NUM_DIRECTIONS) if context else None
    where = found.differs.nonzero(as_tuple=True)
    patches = Patches(features, student, teacher, label, valid, torch.arange(2))
    evidence = collect(patches, found, where, centers, rates, regions)
    differs = found.differs
    assert torch.equal(found.pseudo, hard_labels(teacher, regions))
    count = int(differs.sum())
    assert evidence.inputs.shape == (count, NUM_VOXEL_INPUTS + (NUM_DIRECTIONS if context else 0))
    assert evidence.features.shape == (count, channels)
    assert torch.isfinite(evidence.inputs).all()
    torch.testing.assert_close(evidence.inputs[:, 0], decision_probability(student, label, regions)[differs])
    entropy = normalised_entropy(teacher, regions).expand(-1, differs.shape[1], *shape)
    torch.testing.assert_close(evidence.inputs[:, 5], entropy[differs])
    if context:
        torch.testing.assert_close(evidence.inputs[:, -NUM_DIRECTIONS:], rates[differs.nonzero()[:, 0]])


def test_no_disagreement_gives_no_rows():
    label = torch.nn.functional.one_hot(torch.randint(0, 2, (1, 4, 4)), 2).movedim(-1, 1).float()
    features, valid = torch.randn(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    centers = CenterDistance()
    centers.update(centers.sums(features, region_weights(label), valid))
    found = disagreement(label, label, valid, False)
    patches = Patches(features, label, label, label, valid, torch.zeros(1, dtype=torch.int64))
    evidence = collect(patches, found, found.differs.nonzero(as_tuple=True), centers, None, False)
    assert evidence.inputs.shape == (0, NUM_VOXEL_INPUTS)
