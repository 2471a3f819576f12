from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from nnunetv2_metadcseg.agreement import EXTRA, Disagreement, disagreement, hard_labels
from nnunetv2_metadcseg.config import MetaDCSegConfig
from nnunetv2_metadcseg.label_depth import DEPTHS, depths
from nnunetv2_metadcseg.losses import WeightedDiceCELoss
from nnunetv2_metadcseg.patches import Patches
from nnunetv2_metadcseg.weighting import LabelWeighting
from tests.nnunetv2_metadcseg.ranks import run_ranks

CASES, CHANNELS = 6, 5
TRUSTED = torch.tensor([False, False, False, False, True, True])


class Batch:
    """Two given-label and two trusted patches: what the trainer hands over.

    Args:
        seed: of its random numbers. ignore: share of the voxels that are ignored.
    """

    def __init__(self, seed: int, regions: bool = False, dim: int = 3, ignore: float = 0.0, size: int = 4) -> None:
        random = torch.Generator().manual_seed(seed)
        shape, heads = [6] * dim, 3
        self.regions = regions
        self.cases = torch.cat([torch.randperm(4, generator=random)[: size // 2], torch.tensor([4, 5])[: size // 2]])
        self.features = torch.randn(size, CHANNELS, *shape, generator=random)
        self.logits = torch.randn(size, heads, *shape, generator=random)
        squash = torch.sigmoid if regions else partial(torch.softmax, dim=1)
        self.student = squash(self.logits)
        self.teacher = squash(2 * torch.randn(size, heads, *shape, generator=random))
        self.label = hard_labels(squash(torch.randn(size, heads, *shape, generator=random)), regions)
        self.valid = (torch.rand(size, 1, *shape, generator=random) >= ignore).float()

    def patches(self) -> Patches:
        return Patches(self.features, self.student, self.teacher, self.label, self.valid, self.cases)

    def half(self, rank: int) -> Batch:
        """One given-label and one trusted patch: what one of two ranks sees."""
        part = copy.copy(self)
        for name in ("cases", "features", "logits", "student", "teacher", "label", "valid"):
            setattr(part, name, getattr(self, name)[rank::2])
        return part

    def with_other_ignored_voxels(self) -> Batch:
        """The same where valid, anything else where ignored."""
        other, result = Batch(99, self.regions, self.label.ndim - 2), copy.copy(self)
        for name in ("features", "logits", "student", "teacher", "label"):
            mine = getattr(self, name)
            setattr(result, name, torch.where(self.valid > 0, mine, getattr(other, name)))
        return result


def disagreeing(batch: Batch) -> Disagreement:
    """Of the given-label patches."""
    return disagreement(batch.label[:2], batch.teacher[:2], batch.valid[:2], batch.regions)


def structure(label: torch.Tensor, regions: bool) -> torch.Tensor:
    """Where a label or a decision (B, K, *S) has it, per decision."""
    return label > 0.5 if regions else label[:, :1] < 0.5


def new(regions: bool = False, **settings) -> LabelWeighting:
    torch.manual_seed(0)
    config = replace(MetaDCSegConfig(), meta_learning_rate=1e-2, **settings)
    return LabelWeighting(config, regions, TRUSTED)


def decide(weighting: LabelWeighting, batch: Batch, **settings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Alpha, target and weight of the given-label patches."""
    patches = batch.patches()[: len(batch.cases) // 2]
    return weighting.targets(patches, compare(weighting, patches), **settings)


def compare(weighting: LabelWeighting, patches: Patches) -> Disagreement:
    return weighting.compare(patches.teacher, patches.label, patches.valid)


def observe(weighting: LabelWeighting, batch: Batch, loss=None) -> None:
    weighting.observe(batch.patches(), batch.logits, loss, len(batch.cases) // 2)


def step(weighting: LabelWeighting, batch: Batch, learn: float | None = 1.0, trust=None):
    """One iteration as the trainer does it: alpha, target and weight of the given-label patches."""
    observe(weighting, batch, WeightedDiceCELoss(batch.regions).single)
    return decide(weighting, batch, learn=learn, trust=trust)


def state(weighting: LabelWeighting) -> dict[str, torch.Tensor]:
    """Everything that was learned, by name."""
    meta = weighting.state_dict()["meta"]["network"]
    learned = {f"meta.{name}": value for name, value in meta.items()}
    learned |= {"centers": weighting.centers.centers, "direction": weighting.direction.direction}
    learned["rates"] = weighting.agreement.rates()
    return {name: value.detach().clone() for name, value in learned.items()}


def assert_same(a: dict, b: dict, tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("regions", [False, True])
class TestTargets:
    def test_labels_stay_where_they_agree_with_the_teacher(self, regions, dim):
        weighting, batch = new(regions, soft_pseudo_labels=False), Batch(0, regions, dim)
        alpha, target, weight = step(weighting, batch)
        label = batch.label[:2]
        differs = disagreement(label, batch.teacher[:2], batch.valid[:2], regions).differs
        assert alpha.shape == differs.shape
        assert (alpha[~differs] == 1).all()
        assert ((alpha[differs] > 0) & (alpha[differs] < 1)).all()
        kept = (~differs).expand_as(label)
        assert torch.equal(target[kept], label[kept])
        assert weight.shape == (2, 3 if regions else 1, *label.shape[2:])
        assert target.shape == label.shape

    def test_targets_are_probabilities(self, regions, dim):
        _, target, _ = step(new(regions), Batch(0, regions, dim))
        assert target.min() >= 0
        assert target.max() <= 1 + 1e-6
        if not regions:
            torch.testing.assert_close(target.sum(1), torch.ones_like(target[:, 0]))

    def test_mean_weight_of_valid_voxels_is_one(self, regions, dim):
        batch = Batch(0, regions, dim, ignore=0.3)
        _, _, weight = step(new(regions, case_weighting=False), batch)
        valid = batch.valid[:2].expand_as(weight)
        assert weight[valid > 0].mean().item() == pytest.approx(1, abs=1e-4)


class TestIgnoredVoxels:
    @pytest.mark.parametrize("regions", [False, True])
    def test_weigh_nothing(self, regions):
        batch = Batch(0, regions, ignore=0.3)
        alpha, _, weight = step(new(regions), batch)
        ignored = batch.valid[:2] == 0
        assert (weight[ignored.expand_as(weight)] == 0).all()
        assert (alpha[ignored.expand_as(alpha)] == 1).all()

    @pytest.mark.parametrize("regions", [False, True])
    def test_what_lies_there_changes_nothing(self, regions):
        plain, changed = new(regions), new(regions)
        loss = WeightedDiceCELoss(regions)
        for seed in range(3):
            batch = Batch(seed, regions, ignore=0.3)
            other = batch.with_other_ignored_voxels()
            assert not torch.equal(batch.label, other.label)
            (alpha, target, weight), (alpha2, target2, weight2) = step(plain, batch), step(changed, other)
            torch.testing.assert_close(alpha, alpha2)
            torch.testing.assert_close(weight, weight2)
            torch.testing.assert_close(loss(batch.logits[:2], target, weight), loss(other.logits[:2], target2, weight2))
        assert_same(state(plain), state(changed), 1e-6)


class TestSettings:
    def test_no_influence_keeps_the_prior_alone(self):
        weighting, batch = new(influence="none"), Batch(0)
        before = copy.deepcopy(weighting.state_dict()["meta"]["network"])
        alpha, _, _ = step(weighting, batch)
        found = disagreeing(batch)
        belief = weighting.agreement.label_belief(batch.cases[:2], weighting.label_bias.sides())
        expected = belief.gather(1, found.direction.flatten(1)).reshape(found.direction.shape)
        torch.testing.assert_close(alpha[found.differs], expected[found.differs])
        after = weighting.state_dict()["meta"]["network"]
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_without_agreement_prior_both_are_believed_alike(self):
        weighting, batch = new(influence="none", agreement_prior=False, soft_pseudo_labels=True), Batch(0)
        alpha, target, _ = step(weighting, batch)
        differs = disagreeing(batch).differs
        assert (alpha[differs] == 0.5).all()
        where = differs.expand_as(target)
        torch.testing.assert_close(target[where], (0.5 * (batch.label[:2] + batch.teacher[:2]))[where])

    @pytest.mark.parametrize("regions", [False, True])
    def test_teachers_odds_move_the_prior_unless_errors_are_one_sided(self, regions):
        batch = Batch(0, regions)
        plain, one_sided, two_sided = (new(regions, influence="none", voxel_prior=v) for v in (0.0, 1.0, 1.0))
        two_sided.label_bias.set_counts(torch.ones(1, 3))  # as much too much as too little
        flat, same, moved = (step(weighting, batch)[0] for weighting in (plain, one_sided, two_sided))
        assert torch.equal(flat, same)
        differs = flat < 1
        change = torch.logit(moved[differs]) - torch.logit(flat[differs])
        assert change.mean().abs() < 1e-3  # a case is believed as before, on average
        odds = batch.teacher[:2] * batch.label[:2]
        odds = (odds + (1 - batch.teacher[:2]) * (1 - batch.label[:2]) if regions else odds.sum(1, keepdim=True))[
            differs
        ]
        assert torch.corrcoef(torch.stack([change, odds]))[0, 1] > 0.7

    def test_without_context_the_case_is_hidden(self):
        weighting = new(context=False, agreement_prior=False)
        batch, other = Batch(0), Batch(0)
        step(weighting, batch)
        other.cases = torch.tensor([3, 2, 4, 5])
        a, b = (decide(weighting, x)[0] for x in (batch, other))
        assert torch.equal(a, b)

    @pytest.mark.parametrize("regions", [False, True])
    def test_labels_that_are_too_large_lose_weight_where_they_have_structure(self, regions):
        weighting, batch = new(regions, dcd_strength=0.0), Batch(0, regions)
        alpha, _, weight = step(weighting, batch)
        of_case = weighting.agreement.case_beliefs()[batch.cases[:2]].view(2, 1, 1, 1, 1)
        assert (of_case < 1).all()
        belief = torch.where(disagreeing(batch).differs, alpha, of_case).square().clamp_min(0.05)
        expected = torch.where(structure(batch.label[:2], regions), belief, 1.0)
        torch.testing.assert_close(weight, expected)

    @pytest.mark.parametrize(("regions", "ignore"), [(False, 0.0), (True, 0.0), (False, 0.3)])
    def test_depth_moves_the_prior_where_labels_have_structure_too_much(self, regions, ignore):
        batch = Batch(0, regions, ignore=ignore)
        flat, moved = (new(regions, influence="none", label_depth=on) for on in (False, True))
        moved.label_depth.counts = torch.tensor([[100.0] + [0] * (DEPTHS - 1), [0.0] + [100] * (DEPTHS - 1)])
        before, after = (step(weighting, batch)[0] for weighting in (flat, moved))
        unlabelled = batch.valid[:2] == 0  # no border of the label
        found, depth = disagreeing(batch), depths(structure(batch.label[:2], regions) | unlabelled)
        extra = found.differs & (found.direction == EXTRA)
        rim, inside = extra & (depth == 0), extra & (depth > 0)
        assert (after[rim] < before[rim]).all() and (after[inside] > before[inside]).all()
        assert torch.equal(after[~extra], before[~extra])

    @pytest.mark.parametrize("regions", [False, True])
    def test_labels_of_classes_that_are_not_found_yet_are_believed(self, regions):
        batch = Batch(0, regions)
        usual, weighting = new(regions, influence="none"), new(regions, influence="none")
        heads = 3 if regions else 2
        weighting.known_classes.counts = torch.tensor([[8.0, 8.0]] * (heads - 1) + [[0.0, 8.0]])
        before, after = (step(w, batch)[0] for w in (usual, weighting))
        of_last = disagreeing(batch).differs & (batch.label[:2, -1:] > 0.5)
        if regions:
            of_last[:, :-1] = False
        assert of_last.any() and (after[of_last] == 0.98).all()
        assert torch.equal(after[~of_last], before[~of_last])

    @pytest.mark.parametrize("regions", [False, True])
    def test_labels_of_absent_classes_are_no_evidence_against_a_case(self, regions):
        batch, weighting = Batch(0, regions), new(regions)
        absent = [False] * (2 if regions else 1) + [True]
        weighting.known_classes.absent = torch.tensor(absent)
        observe(weighting, batch)
        # As if these voxels, or these decisions of regions, were ignored.
        named = torch.maximum(batch.label, hard_labels(batch.teacher, regions)) * torch.tensor(
            ([] if regions else [False]) + absent
        ).view(1, 3, 1, 1, 1)
        judged = 1 - (named if regions else named.amax(1, keepdim=True))
        found = disagreement(batch.label, batch.teacher, judged, regions)
        torch.testing.assert_close(weighting.agreement.counts[batch.cases], found.counts())
        assert found.counts().sum() < compare(weighting, batch.patches()).counts().sum()

    @pytest.mark.parametrize("regions", [False, True])
    def test_absent_classes_have_no_say_in_the_belief_in_other_labels(self, regions):
        """However sure the second opinion is where a label names one."""
        batch, surer = Batch(0, regions), Batch(0, regions)
        of_absent = batch.label[:, -1:] > 0.5
        decided = 0.02 + 0.94 * hard_labels(batch.teacher, regions)
        if regions:
            of_absent = torch.cat([torch.zeros_like(batch.label[:, :-1]) > 0, of_absent], 1)
        surer.teacher = torch.where(of_absent, decided, batch.teacher)
        learned = []
        for one in (batch, surer):
            weighting = new(regions)
            weighting.known_classes.absent = torch.tensor([False] * (2 if regions else 1) + [True])
            weighting.label_bias.set_counts(torch.tensor([[5.0, 5.0, 10.0]]))
            observe(weighting, one, WeightedDiceCELoss(regions).single)
            decide(weighting, one, gain=torch.where(of_absent[:2], 1e3, 1.0), learn=0.0)
            learned.append((weighting.mean_odds, weighting.agreement.beliefs, weighting.meta.scale))
        for one, other in zip(*learned, strict=True):
            torch.testing.assert_close(one, other)
        assert weighting.meta.scale < 10

    @pytest.mark.parametrize("regions", [False, True])
    def test_labels_are_believed_where_an_absent_class_is_named(self, regions):
        batch, weighting = Batch(0, regions), new(regions, influence="none")
        weighting.known_classes.absent = torch.tensor([False] * (2 if regions else 1) + [True])
        observe(weighting, batch)
        alpha, _, _ = decide(weighting, batch)
        found = disagreeing(batch)
        named = torch.maximum(batch.label[:2], found.pseudo)[:, -1:] > 0.5
        if regions:
            named = torch.cat([torch.zeros_like(found.differs[:, :-1]), named], 1)
        assert (alpha[named & found.differs] == 0.98).all() and (alpha[found.differs & ~named] < 0.98).any()
        assert (found.pseudo[:, -1:] > 0.5)[found.differs[:, -1:]].any()

    @pytest.mark.parametrize("regions", [False, True])
    def test_absent_classes_in_place_of_others_are_no_label_errors(self, regions):
        batch, weighting = Batch(0, regions), new(regions, bias_momentum=0.0)
        weighting.known_classes.absent = torch.tensor([False] * (2 if regions else 1) + [True])
        label = batch.label.clone()
        label[:, -1:] = 0  # trusted labels do not hold it
        if not regions:
            label[:, :1] += batch.label[:, -1:]
        said = label.clone() * 0.4
        said[:, -1:] = 0.6  # but it is said everywhere
        weighting.observe_bias(said, label, label, batch.valid)
        decided, probable = weighting.label_bias.counts
        assert decided[:, 0].sum() == 0 and probable[:, 0].sum() == 0
        if not regions:
            assert weighting.label_bias.counts[..., :2].sum() == 0

    def test_state_holds_which_classes_are_known(self):
        weighting, batch, other = new(), Batch(0), new()
        weighting.observe_bias(batch.teacher, batch.student, batch.label, batch.valid)
        other.load_state_dict(weighting.state_dict())
        assert torch.equal(other.known_classes(), weighting.known_classes())

    def test_state_holds_which_classes_are_absent(self):
        weighting, other = new(), new()
        weighting.known_classes.absent = torch.tensor([False, True])
        other.load_state_dict(weighting.state_dict())
        assert torch.equal(other.known_classes.absent, weighting.known_classes.absent)
        older = weighting.state_dict()
        del older["absent_classes"]
        other.load_state_dict(older)
        assert other.known_classes.absent.tolist() == [False, True]

    @pytest.mark.parametrize("counts", [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    def test_depth_is_looked_at_only_where_labels_are_too_large(self, counts):
        weighting, batch = new(), Batch(0)
        assert weighting.looks_at_depth
        weighting.label_bias.set_counts(torch.tensor([counts]))
        weighting.note_one_sidedness()
        weighting.observe_bias(batch.teacher, batch.student, batch.label, batch.valid)
        assert weighting.label_depth.counts.sum() == 0

    @pytest.mark.parametrize("regions", [False, True])
    def test_depths_are_counted_where_the_predicting_layer_is_right(self, regions):
        batch = Batch(0, regions, ignore=0.3)
        weighting = new(regions, bias_momentum=0.0)
        weighting.observe_bias(batch.teacher, batch.student, batch.label, batch.valid)
        maps = (hard_labels(batch.teacher, regions), hard_labels(batch.student, regions), batch.label)
        said, decision, label = (structure(m, regions) for m in maps)
        counted = said & (decision == label) & (batch.valid > 0)
        assert weighting.label_depth.counts.sum(1).tolist() == [(counted & (label == r)).sum() for r in (False, True)]

    def test_labels_that_are_too_small_keep_their_weight(self):
        weighting = new(dcd_strength=0.0)
        weighting.label_bias.set_counts(torch.tensor([[0.0, 5.0, 10.0]]))
        _, _, weight = step(weighting, Batch(0))
        torch.testing.assert_close(weight, torch.ones_like(weight))

    def test_ignored_voxels_say_nothing_about_one_sidedness(self):
        label = torch.zeros(1, 1, 2, 10)
        label[..., 0, :] = 1
        said = label.clone()
        said[..., 0, :6], said[..., 1, :6] = 0, 1  # six too little, six too much
        valid = torch.ones_like(label)
        valid[..., 0, :6] = 0
        weighting = new(regions=True)
        weighting.observe_bias(said, label, label, valid)
        assert weighting.label_bias.counts[:, 0].tolist() == 2 * [pytest.approx([0.02 * 6, 0, 0.02 * 4])]

    def test_dcd_off_leaves_unit_weights(self):
        _, _, weight = step(new(dcd_strength=0.0, case_weighting=False), Batch(0))
        torch.testing.assert_close(weight, torch.ones_like(weight))

    def test_dcd_on_weighs_voxels_differently(self):
        _, _, weight = step(new(dcd_strength=1.0), Batch(0))
        assert weight.std() > 0.01

    def test_alpha_alone_is_what_targets_are_made_of(self):
        weighting, batch = new(), Batch(0)
        step(weighting, batch)
        patches = batch.patches()[:2]
        before = copy.deepcopy(state(weighting))
        alpha = weighting.alpha(patches, compare(weighting, patches))
        assert torch.equal(alpha, decide(weighting, batch)[0])
        assert_same(before, state(weighting))

    def test_learns_also_under_no_grad(self):
        weighting = new()
        before = copy.deepcopy(weighting.state_dict()["meta"]["network"])
        with torch.no_grad():
            step(weighting, Batch(0))
        after = weighting.state_dict()["meta"]["network"]
        assert not all(torch.equal(before[name], after[name]) for name in before)

    def test_no_meta_step_without_a_rate(self):
        weighting = new()
        step(weighting, Batch(0))
        before = copy.deepcopy(state(weighting))
        step(weighting, Batch(1), learn=None)
        after = state(weighting)
        assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("meta."))
        assert not torch.equal(before["direction"], after["direction"])

    def test_first_step_before_any_influence_keeps_the_prior(self):
        weighting, batch = new(), Batch(0)
        observe(weighting, batch)
        before = copy.deepcopy(weighting.state_dict()["meta"]["network"])
        decide(weighting, batch, learn=1.0)
        after = weighting.state_dict()["meta"]["network"]
        assert all(torch.equal(before[name], after[name]) for name in before)

    @pytest.mark.parametrize("regions", [False, True])
    def test_gain_from_outside_drives_the_meta_step(self, regions):
        alphas = []
        for sign in (1.0, -1.0):
            weighting, batch = new(regions, meta_pull=0.0), Batch(0, regions)
            observe(weighting, batch)
            differs = disagreeing(batch).differs
            for _ in range(30):
                alpha, _, _ = decide(weighting, batch, gain=torch.full(differs.shape, sign), learn=1.0)
            alphas.append(alpha[differs].mean())
        assert alphas[0] > alphas[1] + 0.02


class TestTrust:
    def test_lost_trust_is_lost_weight(self):
        batch = Batch(0)
        trust = torch.ones(2, 1, 6, 6, 6)
        trust[:, :, :3] = 0.25
        plain, mapped = (new(dcd_strength=0.0, case_weighting=False) for _ in range(2))
        alpha, _, _ = step(plain, batch)
        _, target, weight = step(mapped, batch, trust=trust)
        torch.testing.assert_close(weight, alpha * trust + 1 - alpha)
        agree = (alpha == 1)[:, :, :3]
        torch.testing.assert_close(weight[:, :, :3][agree], torch.full_like(weight[:, :, :3][agree], 0.25))
        torch.testing.assert_close(target.sum(1), torch.ones(2, 6, 6, 6))

    def test_trust_one_changes_nothing_and_trust_zero_leaves_the_pseudo_label(self):
        batch = Batch(0)
        _, target, weight = step(new(), batch)
        _, same_target, same_weight = step(new(), batch, trust=torch.ones(2, 1, 6, 6, 6))
        assert torch.equal(target, same_target)
        assert torch.equal(weight, same_weight)
        alpha, target, weight = step(new(), batch, trust=torch.zeros(2, 1, 6, 6, 6))
        assert (weight[alpha == 1] == 0).all()
        where = (alpha < 1).expand_as(target)
        torch.testing.assert_close(target[where], hard_labels(batch.teacher[:2], False)[where])


class TestState:
    @pytest.mark.parametrize("regions", [False, True])
    def test_round_trip_goes_on_as_if_never_stopped(self, regions):
        weighting, other = new(regions), new(regions)
        for seed in range(3):
            step(weighting, Batch(seed, regions))
        other.load_state_dict(copy.deepcopy(weighting.state_dict()))
        results = [step(each, Batch(7, regions)) for each in (weighting, other)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        assert_same(state(weighting), state(other))

    def test_a_checkpoint_with_other_rates_begins_the_watch_anew(self):
        weighting = new()
        step(weighting, Batch(0))
        state = copy.deepcopy(weighting.state_dict())
        state["agreement"].pop("usual")  # as before 2026-11-29, when the watch followed one number
        state["memorisation"] |= {"mean": torch.tensor(0.3), "highest": torch.tensor(0.3)}
        other = new()
        other.load_state_dict(state)
        assert other.memorisation.updates == 0 and not other.memorisation.highest.any()
        step(other, Batch(1))
        assert other.memorisation.updates == 1 and other.memorisation.mean.isfinite().all()

    def test_spacing_comes_with_the_state(self):
        flat, thick = (LabelWeighting(MetaDCSegConfig(), False, TRUSTED, spacing=s) for s in (None, (4.0, 1.0, 1.0)))
        mask = torch.ones(1, 1, 6, 6, 6, dtype=torch.bool)
        mask[:, :, 0] = False
        before = flat.label_depth.of(mask)
        flat.load_state_dict(copy.deepcopy(thick.state_dict()))
        after = flat.label_depth.of(mask)
        assert torch.equal(after, thick.label_depth.of(mask)) and not torch.equal(after, before)

    def test_fresh_state_round_trip(self):
        new().load_state_dict(copy.deepcopy(new().state_dict()))

    def test_it_is_plain(self):
        weighting = new()
        step(weighting, Batch(0))

        def plain(value) -> bool:
            if isinstance(value, dict):
                return all(plain(v) for v in value.values())
            if isinstance(value, (list, tuple)):
                return all(plain(v) for v in value)
            return value is None or isinstance(value, (torch.Tensor, str, int, float, bool))

        assert plain(weighting.state_dict())


def several_steps(rank: int | None) -> dict:
    """What is learned from four batches, by one of two ranks or (None) by a single process."""
    weighting = new()
    for seed in range(4):
        batch = Batch(seed)
        step(weighting, batch if rank is None else batch.half(rank))
    return state(weighting)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_ranks_learn_what_one_process_learns_from_the_joint_batch(tmp_path):
    one = several_steps(None)
    two = run_ranks(several_steps, tmp_path)
    assert_same(two[0], two[1])
    assert_same(one, two[0], 1e-5)
    assert not torch.equal(one["meta.layers.4.weight"], torch.zeros_like(one["meta.layers.4.weight"]))


def test_statistics_of_an_epoch():
    weighting = new()
    for seed in range(2):
        step(weighting, Batch(seed))
    means = weighting.statistics.means()
    assert set(means) == {"boundary", "disagreeing", "alpha", "beta", "case_weight", "excess"}
    assert all(0 < value < 1 for value in means.values())
    assert means["alpha"] + means["beta"] == pytest.approx(1)
