from __future__ import annotations

import math

import pytest
import torch

from nnunetv2_metadcseg.center_distance import CenterDistance, normalised_entropy, region_weights

SHAPE = (4, 4, 4)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def observed(features, probabilities, valid, regions=False, centers=None) -> CenterDistance:
    """Centers after one batch."""
    centers = centers or CenterDistance()
    centers.update(centers.sums(features, region_weights(probabilities, regions), valid))
    return centers


def batch(heads: int = 3, channels: int = 5, regions: bool = False, shape=SHAPE):
    logits = 2 * torch.randn(2, heads, *shape)
    probabilities = torch.sigmoid(logits) if regions else torch.softmax(logits, 1)
    return torch.randn(2, channels, *shape), probabilities, torch.ones(2, 1, *shape)


class TestMembership:
    def test_entropy_is_zero_where_sure_and_one_where_even(self):
        sure, even = torch.tensor([[1.0, 0.0, 0.0]]), torch.full((1, 3), 1 / 3)
        probabilities = torch.stack([sure, even], -1)
        torch.testing.assert_close(normalised_entropy(probabilities)[0, 0], torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)

    def test_entropy_of_regions_is_that_of_the_least_sure_one(self):
        probabilities = torch.tensor([[[0.5], [1.0]]])
        assert normalised_entropy(probabilities, regions=True).item() == pytest.approx(1.0)

    def test_memberships_of_classes_add_to_one(self):
        _, probabilities, _ = batch()
        weights = region_weights(probabilities)
        assert weights.shape == (2, 4, *SHAPE)  # two foreground classes, background, boundary
        torch.testing.assert_close(weights.sum(1), torch.ones(2, *SHAPE))

    def test_regions_have_one_center_each(self):
        _, probabilities, _ = batch(heads=3, regions=True)
        assert region_weights(probabilities, regions=True).shape == (2, 5, *SHAPE)


class TestCenters:
    @pytest.mark.parametrize("shape", [(5, 5), SHAPE])
    @pytest.mark.parametrize("regions", [False, True])
    def test_distances_against_a_loop(self, regions, shape):
        features, probabilities, valid = batch(regions=regions, shape=shape)
        valid[0, :, 0] = 0
        probabilities[1, :, -1] *= 0.1 if regions else 1  # some background, which random regions leave none of
        centers = observed(features, probabilities, valid, regions)
        weights = region_weights(probabilities, regions)
        rows = features.movedim(1, -1).reshape(-1, 5)
        mass = (weights * valid).movedim(1, -1).reshape(len(rows), -1)
        means = []
        for region in range(mass.shape[1]):
            mean = torch.zeros(5)
            for row, amount in zip(rows, mass[:, region], strict=True):
                mean = mean + amount * row / row.norm()
            means.append(mean / mean.norm())
        expected = []
        for row in rows:
            distance = [(row / row.norm() - mean).norm() for mean in means]
            expected.append(torch.stack([min(distance[:-2]), distance[-2], distance[-1]]))
        torch.testing.assert_close(centers.distances(rows), torch.stack(expected), atol=1e-4, rtol=1e-4)

    def test_features_that_are_not_finite_move_nothing_where_no_voxel_counts(self):
        dcd, weights = CenterDistance(), torch.ones(1, 3, 2, 2)
        features, valid = torch.ones(1, 2, 2, 2), torch.ones(1, 1, 2, 2)
        dcd.update(dcd.sums(features, weights, valid))
        before = dcd.centers
        dcd.update(dcd.sums(torch.full_like(features, torch.nan), weights, torch.zeros_like(valid)))
        assert torch.equal(dcd.centers, before)
        # Of two ranks one has such features, the other brings the voxels.
        broken = dcd.sums(torch.full_like(features, torch.nan), weights, torch.zeros_like(valid))
        dcd.update(broken + dcd.sums(features, weights, valid))
        assert dcd.centers.isfinite().all()

    def test_momentum(self):
        centers = CenterDistance(momentum=0.75)
        first, second = torch.rand(4, 6) + 1, torch.rand(4, 6) + 1
        centers.update(first)
        centers.update(second)
        mean = [sums[:, :-1] / sums[:, -1:] for sums in (first, second)]
        torch.testing.assert_close(centers.centers, 0.75 * mean[0] + 0.25 * mean[1])

    def test_empty_region_keeps_its_center(self):
        centers = CenterDistance(momentum=0.5)
        sums = torch.rand(4, 6) + 1
        centers.update(sums)
        before = centers.centers.clone()
        empty = torch.rand(4, 6) + 1
        empty[1] = 0
        centers.update(empty)
        assert torch.equal(centers.centers[1], before[1])
        assert not torch.equal(centers.centers[0], before[0])

    def test_class_that_the_patches_lack_keeps_its_center(self):
        """A softmax is never zero: some of every voxel belongs to the absent class."""
        features, probabilities, valid = batch()
        centers = observed(features, probabilities, valid)
        before = centers.centers.clone()
        absent = torch.cat([probabilities[:, :1], 1 - probabilities[:, :1], torch.full_like(valid, 1e-3)], 1)
        for _ in range(20):
            observed(features, absent / absent.sum(1, keepdim=True), valid, centers=centers)
        assert torch.equal(centers.centers[1], before[1])
        assert not torch.equal(centers.centers[0], before[0])

    def test_region_that_comes_late_starts_at_its_first_mean_and_attracts_nobody_before(self):
        centers = CenterDistance()
        sums = torch.rand(4, 6) + 1
        sums[:2] = 0
        centers.update(sums)
        assert (centers.distances(torch.randn(10, 5))[:, 0] == 2).all()
        late = torch.rand(4, 6) + 1
        centers.update(late)
        torch.testing.assert_close(centers.centers[0], late[0, :-1] / late[0, -1])

    def test_ignored_voxels_have_no_influence(self):
        features, probabilities, valid = batch()
        valid[:, :, 1:3] = 0
        other_features = torch.where(valid > 0, features, torch.randn_like(features))
        other = torch.where(valid > 0, probabilities, torch.softmax(torch.randn_like(probabilities), 1))
        a, b = observed(features, probabilities, valid), observed(other_features, other, valid)
        assert torch.equal(a.centers, b.centers)
        counted = (valid > 0).expand(2, 1, *SHAPE)
        torch.testing.assert_close(a.gamma(features, valid)[counted], b.gamma(other_features, valid)[counted])

    def test_length_of_the_features_makes_no_difference(self):
        features, probabilities, valid = batch()
        a, b = observed(features, probabilities, valid), observed(9 * features, probabilities, valid)
        torch.testing.assert_close(a.centers, b.centers)

    def test_before_the_first_update(self):
        with pytest.raises(RuntimeError, match="call `update` first"):
            CenterDistance().distances(torch.randn(2, 5))

    def test_state_round_trip(self):
        centers = observed(*batch())
        other = CenterDistance()
        other.load_state_dict(centers.state_dict())
        next_batch = batch()
        assert torch.equal(observed(*next_batch, centers=centers).centers, observed(*next_batch, centers=other).centers)


class TestGamma:
    @pytest.mark.parametrize("regions", [False, True])
    def test_mean_is_one_over_valid_voxels(self, regions):
        features, probabilities, valid = batch(regions=regions)
        valid[:, :, :2] = 0
        gamma = observed(features, probabilities, valid, regions).gamma(features, valid)
        assert gamma.shape == (2, 1, *SHAPE)
        assert (gamma[valid > 0].mean() - 1).abs() < 1e-5
        assert (gamma > 0).all()

    def test_boundary_voxels_weigh_more(self):
        features = torch.eye(3).repeat_interleave(4, 0).T.reshape(1, 3, 12, 1)
        sure, unsure = 1 - 1e-6, 0.5
        foreground = torch.tensor([sure] * 4 + [1 - sure] * 4 + [unsure] * 4).reshape(1, 1, 12, 1)
        probabilities = torch.cat([1 - foreground, foreground], 1)
        gamma = observed(features, probabilities, torch.ones(1, 1, 12, 1)).gamma(features, torch.ones(1, 1, 12, 1))
        assert gamma[0, 0, 8:].min() > 1.4
        assert gamma[0, 0, :8].max() < 1

    def test_strength_zero_is_one_everywhere(self):
        features, probabilities, valid = batch()
        centers = observed(features, probabilities, valid, centers=CenterDistance(strength=0.0))
        torch.testing.assert_close(centers.gamma(features, valid), torch.ones_like(valid))

    def test_nothing_valid_is_finite(self):
        features, probabilities, valid = batch()
        gamma = observed(features, probabilities, valid).gamma(features, torch.zeros_like(valid))
        assert torch.isfinite(gamma).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, r"must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"must be in \[0, 1\), got -0.1"),
        ({"temperature": 0.0}, "got 0.0 and 1.0"),
        ({"strength": -1.0}, "got 0.1 and -1.0"),
    ],
)
def test_settings_outside_their_range(settings, message):
    with pytest.raises(ValueError, match=message):
        CenterDistance(**settings)


def test_distances_lie_between_zero_and_two():
    centers = observed(*batch())
    distances = centers.distances(torch.randn(1000, 5))
    assert distances.min() >= 0
    assert distances.max() <= 2
    own = torch.nn.functional.normalize(centers.centers[-2:-1], dim=1)
    assert math.isclose(centers.distances(own)[0, 1].item(), 0, abs_tol=1e-3)
