"""The oracle everywhere: exact double backward through one look-ahead step.

The voxel weights start at zero, so the look-ahead step ends where it starts and its derivative is the hypergradient
at theta: dL_T(theta') / dw_v = -<grad CE_v, grad L_T> for a step of size one.
"""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from nnunetv2_metadcseg.influence import HeadInfluence, flatten_voxels, logit_gradient, network_influence
from nnunetv2_metadcseg.losses import voxel_cross_entropy, weighted_cross_entropy, weighted_soft_dice
from tests.nnunetv2_metadcseg.networks import small_unet


def random_target(shape, regions: bool, dtype) -> torch.Tensor:
    if regions:
        return (torch.rand(shape) > 0.5).to(dtype)
    label = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    return torch.nn.functional.one_hot(label, shape[1]).movedim(-1, 1).to(dtype)


def trusted_loss(logits, target, regions):
    weight = torch.ones_like(target[:, :1])
    return weighted_cross_entropy(logits, target, weight, regions) - weighted_soft_dice(logits, target, weight, regions)


def exact_influence(forward, parameters, given, trusted, regions) -> torch.Tensor:
    """-dL_T(theta') / dw at w = 0: (B, H, *S).

    Args:
        forward: maps parameters (a dict) and data to logits. given, trusted: (data, target).
    """
    parameters = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    losses = voxel_cross_entropy(forward(parameters, given[0]), given[1], regions)
    weight = torch.zeros_like(losses, requires_grad=True)
    step = torch.autograd.grad((weight * losses).sum(), list(parameters.values()), create_graph=True, allow_unused=True)
    ahead = {
        name: value if gradient is None else value - gradient
        for (name, value), gradient in zip(parameters.items(), step, strict=True)
    }
    (gradient,) = torch.autograd.grad(trusted_loss(forward(ahead, trusted[0]), trusted[1], regions), weight)
    return -gradient


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class TestHead:
    @staticmethod
    def problem(dim: int, regions: bool, heads: int = 3, channels: int = 5):
        """Features of given-label and trusted patches, their targets, and a last layer."""
        shape = [6] * dim
        given, trusted = (torch.randn(2, channels, *shape, dtype=torch.float64) for _ in range(2))
        targets = [random_target((2, heads, *shape), regions, torch.float64) for _ in range(2)]
        layer = {
            "weight": torch.randn(heads, channels, dtype=torch.float64),
            "bias": torch.randn(heads, dtype=torch.float64),
        }
        return layer, (given, targets[0]), (trusted, targets[1])

    @staticmethod
    def forward(parameters, features):
        return (features.movedim(1, -1) @ parameters["weight"].T + parameters["bias"]).movedim(-1, 1)

    @pytest.mark.parametrize("regions", [False, True])
    @pytest.mark.parametrize("dim", [2, 3])
    def test_equals_exact_double_backward(self, dim, regions):
        layer, given, trusted = self.problem(dim, regions)
        exact = exact_influence(self.forward, layer, given, trusted, regions)
        influence = HeadInfluence(momentum=0.0)
        gradient = logit_gradient(lambda z: trusted_loss(z, trusted[1], regions), self.forward(layer, trusted[0]))
        influence.update(influence.step_direction(trusted[0], gradient))
        logits = self.forward(layer, given[0])
        probabilities = torch.sigmoid(logits) if regions else torch.softmax(logits, 1)
        ours = influence(*(flatten_voxels(x.float()) for x in (given[0], probabilities, given[1])))
        ours = ours if regions else ours.sum(1, keepdim=True)
        # The module computes in fp32, the oracle in fp64.
        torch.testing.assert_close(ours.double(), flatten_voxels(exact), atol=1e-6, rtol=1e-5)
        assert exact.abs().max() > 1e-2

    def test_positive_for_a_voxel_that_agrees_with_the_trusted_patches(self):
        features = torch.randn(1, 4, 6, 6, 6)
        target = torch.cat([features[:, :1] > 0, features[:, :1] <= 0], 1).float()
        logits = torch.zeros(1, 2, 6, 6, 6)
        influence = HeadInfluence(momentum=0.0)
        gradient = logit_gradient(lambda z: trusted_loss(z, target, False), logits)
        influence.update(influence.step_direction(features, gradient))
        rows = [flatten_voxels(x) for x in (features, torch.softmax(logits, 1), target)]
        right = influence(*rows).sum(1)
        wrong = influence(rows[0], rows[1], 1 - rows[2]).sum(1)
        assert (right > 0).float().mean() > 0.9
        torch.testing.assert_close(right, -wrong)

    def test_momentum_averages_directions(self):
        influence = HeadInfluence(momentum=0.75)
        first, second = torch.randn(3, 6), torch.randn(3, 6)
        influence.update(first)
        assert torch.equal(influence.direction, first)
        influence.update(second)
        torch.testing.assert_close(influence.direction, 0.75 * first + 0.25 * second)

    def test_an_update_does_not_write_into_its_input(self):
        influence = HeadInfluence(momentum=0.5)
        first = torch.ones(2, 3)
        influence.update(first)
        influence.update(torch.zeros(2, 3))
        assert torch.equal(first, torch.ones(2, 3))

    def test_patches_add_up(self):
        features, gradient = torch.randn(3, 4, 5, 5), torch.randn(3, 2, 5, 5)
        whole = HeadInfluence.step_direction(features, gradient)
        parts = [HeadInfluence.step_direction(features[i : i + 1], gradient[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(whole, torch.stack(parts).sum(0))

    def test_empty_direction(self):
        with pytest.raises(RuntimeError, match="call `update` with a trusted patch first"):
            HeadInfluence().directional(torch.zeros(1, 4))

    @pytest.mark.parametrize("first", [False, True])
    def test_what_is_not_finite_is_left_out(self, first):
        influence = HeadInfluence(momentum=0.5)
        if not first:
            influence.update(torch.ones(2, 3))
        influence.update(torch.full((2, 3), torch.nan))
        assert torch.equal(influence.direction, torch.full((2, 3), 0.0 if first else 1.0))

    @pytest.mark.parametrize("momentum", [-0.1, 1.0])
    def test_momentum_outside_its_range(self, momentum):
        with pytest.raises(ValueError, match=rf"must be in \[0, 1\), got {momentum}"):
            HeadInfluence(momentum)


class TestNetwork:
    @staticmethod
    def problem(regions: bool, dtype, heads: int = 3):
        network = small_unet(3, heads).to(dtype).train()
        given, trusted = (torch.randn(2, 1, 8, 8, 8, dtype=dtype) for _ in range(2))
        targets = [random_target((2, heads, 8, 8, 8), regions, dtype) for _ in range(2)]
        return network, (given, targets[0]), (trusted, targets[1])

    @staticmethod
    def exact(network, given, trusted, regions):
        """The oracle in float64, whatever the network's type."""
        double = small_unet(3, given[1].shape[1]).double().train()
        double.load_state_dict(network.state_dict())
        parameters = dict(double.named_parameters())
        pairs = [tuple(x.double() for x in pair) for pair in (given, trusted)]
        return exact_influence(lambda p, data: functional_call(double, p, (data,))[0], parameters, *pairs, regions)

    @pytest.mark.parametrize("regions", [False, True])
    @pytest.mark.parametrize(("dtype", "radius"), [(torch.float64, 1e-3), (torch.float32, 1e-3)])
    def test_direction_of_exact_double_backward(self, dtype, radius, regions):
        network, given, trusted = self.problem(regions, dtype)
        names, parameters = zip(*network.named_parameters(), strict=True)
        loss = trusted_loss(network(trusted[0])[0], trusted[1], regions)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        direction = {n: g for n, g in zip(names, gradients, strict=True) if g is not None}
        ours = network_influence(
            network,
            direction,
            given[0],
            lambda z: voxel_cross_entropy(z, given[1].float(), regions),
            network(given[0])[0],
            radius,
        )
        exact = self.exact(network, given, trusted, regions)
        assert ours.shape == exact.shape
        assert cosine(ours, exact) >= 0.99
        # Not only the direction: the finite difference is the derivative itself.
        assert ours.double().norm().item() == pytest.approx(exact.norm().item(), rel=0.05)

    def test_network_and_gradients_are_left_alone(self):
        network, given, _ = self.problem(False, torch.float32)
        before = {name: value.detach().clone() for name, value in network.named_parameters()}
        direction = {name: torch.randn_like(value) for name, value in before.items()}
        logits = network(given[0])[0]
        influence = network_influence(
            network, direction, given[0], lambda z: voxel_cross_entropy(z, given[1]), logits, 1e-3
        )
        assert not influence.requires_grad
        assert all(torch.equal(before[name], value) for name, value in network.named_parameters())
        assert all(value.grad is None for value in network.parameters())

    def test_missing_names_count_as_zero(self):
        network, given, _ = self.problem(False, torch.float32)
        some = {"decoder.seg_layers.1.bias": torch.ones(3)}
        every = {name: some.get(name, torch.zeros_like(value)) for name, value in network.named_parameters()}
        logits = network(given[0])[0]

        def loss(z):
            return voxel_cross_entropy(z, given[1])

        a, b = (network_influence(network, u, given[0], loss, logits, 1e-2) for u in (some, every))
        torch.testing.assert_close(a, b)
        assert a.abs().max() > 0

    def test_direction_of_length_zero_gives_no_influence(self):
        network, given, _ = self.problem(False, torch.float32)
        direction = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
        logits = network(given[0])[0]
        influence = network_influence(
            network, direction, given[0], lambda z: voxel_cross_entropy(z, given[1]), logits, 1e-3
        )
        assert torch.isfinite(influence).all()
        assert influence.abs().max() == 0

    @pytest.mark.parametrize("radius", [0.0, -1e-3])
    def test_radius_must_be_positive(self, radius):
        network, given, _ = self.problem(False, torch.float32)
        with pytest.raises(ValueError, match=f"must be positive, got {radius}"):
            network_influence(network, {}, given[0], lambda z: z, torch.zeros(2, 3, 8, 8, 8), radius)


def test_logit_gradient_runs_in_fp32_and_without_the_network():
    logits = torch.randn(1, 2, 4, 4, dtype=torch.float16, requires_grad=True)
    with torch.no_grad():
        gradient = logit_gradient(lambda z: z.square().sum(), logits)
    torch.testing.assert_close(gradient, 2 * logits.detach().float())
    assert logits.grad is None


def test_flatten_voxels_keeps_patches_together():
    tensor = torch.arange(2 * 3 * 4).reshape(2, 3, 2, 2)
    flat = flatten_voxels(tensor)
    assert flat.shape == (8, 3)
    assert torch.equal(flat[5], tensor[1, :, 0, 1])
