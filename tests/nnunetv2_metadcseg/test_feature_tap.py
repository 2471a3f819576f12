from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_metadcseg.feature_tap import FeatureTap, last_segmentation_layer, unwrap
from tests.nnunetv2_metadcseg.networks import small_unet


def batch(dim: int = 3) -> torch.Tensor:
    return torch.randn(2, 1, *[8] * dim)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch._dynamo.reset()


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_features_give_the_full_resolution_logits(dim, residual, deep_supervision):
    network = small_unet(dim, 3, residual, deep_supervision).train()
    tap = FeatureTap(network)
    output = network(batch(dim))
    logits = output[0] if deep_supervision else output
    features = tap.pop()
    assert features.shape == (2, 4, *[8] * dim)
    assert features.requires_grad
    torch.testing.assert_close(last_segmentation_layer(network)(features), logits)


def test_features_are_let_go():
    network = small_unet().train()
    tap = FeatureTap(network)
    with pytest.raises(RuntimeError, match="saw no forward pass"):
        tap.pop()
    network(batch())
    tap.pop()
    with pytest.raises(RuntimeError, match="saw no forward pass"):
        tap.pop()


def test_validation_keeps_no_features():
    network = small_unet().eval()
    tap = FeatureTap(network)
    network(batch())
    assert tap.features is None


def test_removed_tap_sees_nothing():
    network = small_unet().train()
    tap = FeatureTap(network)
    tap.remove()
    network(batch())
    assert tap.features is None


def test_the_tap_does_not_change_the_gradients():
    network, data = small_unet().train(), batch()
    plain = torch.autograd.grad(network(data)[0].square().mean(), network.parameters(), allow_unused=True)
    FeatureTap(network)
    tapped = torch.autograd.grad(network(data)[0].square().mean(), network.parameters(), allow_unused=True)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(plain, tapped, strict=True))


def compiled_network_is_tapped(backend: str) -> None:
    network, data = small_unet().train(), batch()
    tap = FeatureTap(network)
    compiled = torch.compile(network, backend=backend)
    for _ in range(2):  # the second pass runs what the first one compiled
        logits = compiled(data)[0]
        torch.testing.assert_close(last_segmentation_layer(network)(tap.pop()), logits, atol=1e-5, rtol=1e-4)
    logits.square().mean().backward()


def test_compiled_with_aot_eager():
    compiled_network_is_tapped("aot_eager")


@pytest.mark.integration
def test_compiled_with_inductor():
    compiled_network_is_tapped("inductor")


def test_unwrap_takes_the_network_out_of_torch_compile():
    network = small_unet()
    assert unwrap(torch.compile(network, backend="eager")) is network
    assert unwrap(network) is network


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_unwrap_takes_the_network_out_of_ddp(tmp_path):
    network = small_unet()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)
        assert unwrap(wrapped) is network
        tap = FeatureTap(wrapped)
        logits = wrapped(batch())[0]
        torch.testing.assert_close(last_segmentation_layer(wrapped)(tap.pop()), logits)
    finally:
        torch.distributed.destroy_process_group()


def test_network_without_decoder_says_what_to_use_instead():
    with pytest.raises(TypeError, match="Sequential has none; use plans with a PlainConvUNet or ResidualEncoderUNet"):
        FeatureTap(nn.Sequential(nn.Conv3d(1, 2, 1)))


@torch._dynamo.config.patch(skip_nnmodule_hook_guards=True)  # torch's default; other tests have made taps
def test_compiled_networks_of_one_kind_keep_their_own_taps():
    plain = torch.compile(small_unet().train(), backend="eager")
    plain(batch())
    networks = [small_unet().train() for _ in range(2)]
    taps = [FeatureTap(network) for network in networks]
    for network, tap in zip(networks, taps, strict=True):
        torch.compile(network, backend="eager")(batch())
        tap.pop()
    plain(batch())
    assert all(tap.features is None for tap in taps)
