from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnunetv2_metadcseg import channels_last_norm
from nnunetv2_metadcseg.channels_last_norm import QuickInstanceNorm2d, QuickInstanceNorm3d, use_channels_last_norm

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
SHAPES = [(2, 5, 6, 7), (1, 32, 8, 8), (3, 8, 4, 6, 5), (1, 3, 8, 8, 8), (2, 80, 2, 2, 1)]


def norm_for(shape: tuple[int, ...]) -> nn.Module:
    """A quick norm with random weights."""
    norm = (nn.InstanceNorm2d if len(shape) == 4 else nn.InstanceNorm3d)(shape[1], affine=True)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    use_channels_last_norm(norm)
    return norm


def reference(norm: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """torch's values and gradients in double precision and the standard memory format."""
    weight, bias = (p.detach().double().requires_grad_() for p in (norm.weight, norm.bias))
    x = x.detach().double().contiguous().requires_grad_()
    y = torch.nn.functional.instance_norm(x, weight=weight, bias=bias, eps=norm.eps)
    y.backward(dy.double().contiguous())
    return y.detach(), x.grad, weight.grad, bias.grad


def quick(norm: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    norm.zero_grad()
    y = norm(x)
    y.backward(dy)
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad


@pytest.mark.parametrize("piece", [1, 200, 1 << 17])
@pytest.mark.parametrize("mean", [0.0, 20.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_torch_in_double_precision(shape, mean, piece, monkeypatch):
    monkeypatch.setattr(channels_last_norm, "PIECE", piece)
    torch.manual_seed(0)
    norm, form = norm_for(shape), FORMATS[len(shape)]
    x, dy = ((torch.randn(shape) + shift).contiguous(memory_format=form) for shift in (mean, 0.3))
    found, expected = quick(norm, x, dy), reference(norm, x, dy)
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), right, atol=1e-5 * (1 + mean), rtol=1e-5)
    assert found[0].is_contiguous(memory_format=form)
    assert found[1].is_contiguous(memory_format=form)


def test_gradient_in_the_standard_memory_format():
    torch.manual_seed(0)
    norm, shape = norm_for((2, 8, 6, 6)), (2, 8, 6, 6)
    x, dy = torch.randn(shape).contiguous(memory_format=torch.channels_last), torch.randn(shape)
    for mine, right in zip(quick(norm, x, dy), reference(norm, x, dy), strict=True):
        torch.testing.assert_close(mine.double(), right, atol=5e-5, rtol=1e-5)


def test_many_voxels_lose_no_precision():
    torch.manual_seed(0)
    norm = norm_for((1, 2, 512, 512))
    x = (torch.randn(1, 2, 512, 512) + 10).contiguous(memory_format=torch.channels_last)
    expected = torch.nn.functional.instance_norm(x.double(), weight=norm.weight.double(), bias=norm.bias.double())
    torch.testing.assert_close(norm(x).double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 4, 5, 6),
        torch.randn(2, 4, 5, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last),
        torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last)[:, ::2],
        torch.randn(4, 5, 6),
    ],
    ids=["standard format", "double", "every other channel", "no batch axis"],
)
def test_other_input_is_left_to_torch(x):
    norm = nn.InstanceNorm2d(4, affine=True).to(x.dtype)
    plain = copy.deepcopy(norm)
    use_channels_last_norm(norm)
    assert isinstance(norm, QuickInstanceNorm2d)
    assert torch.equal(norm(x), plain(x))


def test_a_single_voxel_is_refused_as_by_torch():
    with pytest.raises(ValueError, match="more than 1"):
        norm_for((2, 4, 1, 1))(torch.randn(2, 4, 1, 1).contiguous(memory_format=torch.channels_last))


def test_network_keeps_names_parameters_and_norms_that_are_not_ours():
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3),
        nn.InstanceNorm3d(4, affine=True),
        nn.InstanceNorm3d(4),
        nn.InstanceNorm3d(4, affine=True, track_running_stats=True),
        nn.BatchNorm3d(4),
    )
    before = copy.deepcopy(network.state_dict())
    kinds = [type(module) for module in network]
    use_channels_last_norm(network)
    kinds[1] = QuickInstanceNorm3d
    assert [type(module) for module in network] == kinds
    after = copy.deepcopy(network).state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
