from __future__ import annotations

import pytest
import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad

from nnunetv2_metadcseg.collective import Collective
from nnunetv2_metadcseg.losses import weighted_soft_dice
from nnunetv2_metadcseg.meta_weights import MetaWeights
from tests.nnunetv2_metadcseg.ranks import run_ranks


def test_single_process_changes_nothing():
    collective, tensor = Collective(), torch.randn(3, 2)
    assert collective.world_size == 1
    for reduce in (collective.sum, collective.mean, collective.gather, collective.first):
        assert torch.equal(reduce(tensor), tensor)


def joint_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, targets and weights of five patches, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    logits, target = (torch.rand(5, 3, 4, 4, generator=generator) for _ in range(2))
    return logits, torch.softmax(target, 1), torch.rand(5, 1, 4, 4, generator=generator)


def reductions(rank: int) -> dict:
    collective = Collective()
    own = torch.full((2, 3), float(rank + 1))
    transposed = own.T  # not contiguous
    result = {
        "size": collective.world_size,
        "sum": collective.sum(transposed),
        "mean": collective.mean(own),
        "gather": collective.gather(own[:1]),
        "first": collective.first(own),
        "own": own,
    }
    logits, target, weight = (x[slice(0, 3) if rank == 0 else slice(3, 5)] for x in joint_batch())
    logits.requires_grad_()
    dice = weighted_soft_dice(logits, target, weight, batch_dice=True, gather=AllGatherGrad.apply)
    dice.backward()
    result["batch dice"], result["gradient"] = dice.detach(), logits.grad
    torch.manual_seed(rank)  # nnU-Net's ranks are not seeded alike
    result["meta"] = list(MetaWeights(4, collective=collective).network.parameters())
    return result


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    return run_ranks(reductions, tmp_path_factory.mktemp("ranks"))


def test_both_ranks_get_the_same(two):
    for result in two:
        assert result["size"] == 2
        assert torch.equal(result["sum"], torch.full((3, 2), 3.0))
        assert torch.equal(result["mean"], torch.full((2, 3), 1.5))
        assert torch.equal(result["gather"], torch.tensor([[1.0] * 3, [2.0] * 3]))
        assert torch.equal(result["first"], torch.ones(2, 3))


def test_batch_dice_is_that_of_the_joint_batch_though_ranks_hold_different_numbers_of_patches(two):
    """By nnU-Net's own gather, whose gradient is the sum over ranks: DDP takes their mean afterwards."""
    logits, target, weight = joint_batch()
    logits.requires_grad_()
    dice = weighted_soft_dice(logits, target, weight, batch_dice=True)
    dice.backward()
    for result in two:
        torch.testing.assert_close(result["batch dice"], dice.detach())
    torch.testing.assert_close(torch.cat([result["gradient"] for result in two]) / len(two), logits.grad)


def test_the_input_is_left_alone(two):
    assert [result["own"].mean().item() for result in two] == [1, 2]


def test_meta_networks_start_alike(two):
    assert all(torch.equal(a, b) for a, b in zip(two[0]["meta"], two[1]["meta"], strict=True))
