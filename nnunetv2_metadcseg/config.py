"""Every setting of MetaDCSeg with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetaDCSegConfig:
    """Settings of nnUNetTrainerMetaDCSeg.

    Fractions are of the whole training, so they hold for any number of epochs.
    """

    # Share of the patches that come from trusted cases: where label errors are all one-sided (and in the `mixed`
    # baseline), and where they cancel out: there the given labels teach too, and of more images. A batch of two or more
    # has one trusted patch at least. In the warm-up half of a batch is trusted.
    trusted_fraction: float = 0.5
    least_trusted_fraction: float = 0.25
    # At the start what predicts learns trusted patches only: the given labels would teach their bias. The start lasts
    # until the Dice on them reaches `start_dice`, but no less and no more than these shares of the training, or than so
    # many visits of every case where that is shorter: labels are learned by heart by being seen often, however long the
    # training. A visit shows the structure of a case once (class_locations.patches_per_view). Few cases are visited
    # often before a network knows anything, so visits end the start after `start_steps` at the earliest.
    start_fractions: tuple[float, float] = (0.05, 0.6)
    start_visits: tuple[float, float] = (20, 60)
    start_steps: int = 1500
    start_dice: float = 0.8
    # In its first part, the warm-up, what predicts does learn all labels as they are, until that Dice has reached this,
    # but no longer than this share of the training, or so many visits (or steps, as above). Features learned from few
    # cases alone are worse; and two layers that learn different patches from the first step on keep each other from
    # finding any.
    warm_up_dice: float = 0.5
    warm_up_fraction: float = 0.4
    warm_up_visits: float = 40
    warm_up_steps: int = 1000
    # Pseudo-labels come from the two last layers of the student, or (True) of a teacher, an average of the student
    # over time, which costs a forward pass and was never better where measured (docs/lab_notebook.md, g).
    teacher: bool = False
    # That average, and the one that training goes back to once labels are known by heart (below), reaches over this
    # share of the training, within the bounds that follow (updates).
    teacher_fraction: float = 0.05
    teacher_horizon: tuple[int, int] = (20, 1000)
    # Wrong labels begin to be known by heart (memorisation.py) when the excess disagreement of given labels, averaged
    # over this share of the training or so many visits, has fallen below that share of its highest, and by more than
    # chance and the network's own mistakes account for; 0: never looked at. Training then goes on from that average of
    # the student, without the cases whose labels disagree more than trusted ones do, unless errors are one-sided to
    # this degree: then the labels that are left are wrong in the same way.
    memorisation_fraction: float = 0.1
    memorisation_visits: float = 20
    memorised_share: float = 0.85
    most_one_sided: float = 0.5
    # Where hardly any label is not doubted, their errors get into the features by and by, though none is known by
    # heart: the longer the training, the worse it is than the trusted cases alone. So it goes back and leaves them out
    # after so many visits, too, unless errors are one-sided to this degree: then what they have in common is known and
    # avoided.
    all_doubted_visits: float = 20
    most_one_sided_alone: float = 0.75
    # "head" (closed form, almost free), "network" (one more backward and forward pass) or "none" (prior only).
    influence: str = "head"
    # Share of the influence direction that is kept per step: one step's direction is mostly noise.
    influence_momentum: float = 0.95
    # Trusted patches that such a teacher sees per step, as a share of the batch: its errors there calibrate the prior.
    calibration_share: float = 0.125
    # Meta step every k iterations.
    meta_interval: int = 1
    # Learning rate, width and pull to the prior of the meta-weight network.
    meta_learning_rate: float = 1e-3
    meta_hidden: int = 32
    meta_pull: float = 0.05
    # Show the meta-weight network how the whole case disagrees with the teacher.
    context: bool = True
    # Pseudo-labels in the mixed target: the second opinion's probabilities, or its decision. Where alpha is small but
    # not zero, soft ones drift towards the given label: the network learns its own answer plus a little of the label.
    soft_pseudo_labels: bool = False
    # Loss of a second last layer that learns the given labels as they are (given_label_head.py), times this; 0: no such
    # layer. Its learning rate (Adam, falling as nnU-Net's), and how long it remembers how one-sided their errors are.
    given_head: float = 1.0
    given_head_learning_rate: float = 1e-2
    bias_momentum: float = 0.98
    # Where errors cancel out it learns no labels of cases that disagree more than trusted ones do (doubt.py).
    skip_doubted: bool = True
    # Where label errors cancel out, that layer has a say in the pseudo-label (opinion.py).
    given_opinion: bool = True
    # After the last step what predicts is that second opinion: the last layer becomes a mixture of both, as far as
    # label errors cancel out (opinion.py).
    predict_opinion: bool = True
    # DCD: momentum, temperature and strength; strength 0 turns it off.
    center_momentum: float = 0.9
    dcd_temperature: float = 0.1
    dcd_strength: float = 1.0
    # Prior from the case's agreement with the teacher (agreement.py); False: alpha = 1/2 where they disagree.
    agreement_prior: bool = True
    # How far the teacher's own log odds of the given label at a voxel move the prior; 0: all voxels of a case alike.
    voxel_prior: float = 1.0
    # Where labels are all too large, how deep inside a label a voxel lies moves the prior too (label_depth.py). Looked
    # at where they are so to this degree at least.
    label_depth: bool = True
    least_too_large: float = 0.05
    # Weigh the structure in given labels by the belief in it where labels are all too large (weighting.py), but no less
    # than this.
    case_weighting: bool = True
    least_case_weight: float = 0.05
    # Share of what is known of a case that a patch of average structure leaves.
    case_momentum: float = 0.7
    # The mistakes of the teacher on unseen structure are those of this share of the given-label cases that agree best,
    # but at least those on trusted cases, which it has learned, and at most so many times as many.
    best_share: float = 0.2
    max_optimism: float = 1.5
    # The second opinion also errs where there is no structure: mistakes as if every patch held this share of an average
    # patch's structure more (agreement.py). Without it cases without structure were doubted for a few voxels.
    base_share: float = 0.25
