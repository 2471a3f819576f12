"""The arms: what is trained on which labels.

Every arm trains for the same number of steps with the same number of patches per step; only trainer and labels differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        name: name in tables.
        trainer: trainer class, found by name as nnU-Net finds it, or in ``module``.
        sees: ``clean`` (all labels clean), ``noisy`` (the cell's labels), ``trusted`` (only the trusted cases).
        module: module of this folder that holds the class; empty for nnU-Net's own search.
        config: values that replace fields of the trainer's frozen configuration.
    """

    name: str
    trainer: str
    sees: str = "noisy"
    module: str = ""
    config: dict[str, Any] = field(default_factory=dict)


_BUILT_IN = (
    Arm("clean", "nnUNetTrainer", sees="clean"),
    Arm("noisy", "nnUNetTrainer"),
    Arm("trusted_only", "nnUNetTrainerTrustedOnly", sees="trusted"),
    Arm("mixed", "nnUNetTrainerMixed"),
    Arm("finetune", "nnUNetTrainerStudyFinetune", module="finetune"),
    Arm("l2b", "nnUNetTrainerL2B"),
    Arm("oracle_drop", "nnUNetTrainerOracleDrop", module="oracle"),
    Arm("oracle_replace", "nnUNetTrainerOracleReplace", module="oracle"),
    Arm("oracle_alpha", "nnUNetTrainerOracleAlpha", module="oracle"),
    Arm("metadcseg", "nnUNetTrainerMetaDCSeg"),
    Arm("self_trusted", "nnUNetTrainerMetaDCSegSelfTrusted"),
    Arm("no_meta", "nnUNetTrainerMetaDCSegNoMeta"),
    Arm("no_dcd", "nnUNetTrainerMetaDCSegNoDCD"),
    Arm("mean_teacher", "nnUNetTrainerMetaDCSegMeanTeacher"),
    Arm("no_given_opinion", "nnUNetTrainerMetaDCSegNoGivenOpinion"),
    Arm("head_influence", "nnUNetTrainerMetaDCSegHeadInfluence"),
    Arm("network_influence", "nnUNetTrainerMetaDCSegNetworkInfluence"),
    Arm("no_given_head", "nnUNetTrainerMetaDCSegNoGivenHead"),
    Arm("no_case_weights", "nnUNetTrainerMetaDCSegNoCaseWeights"),
    Arm("all_given_labels", "nnUNetTrainerMetaDCSegAllGivenLabels"),
    Arm(
        "late_doubt",
        "nnUNetTrainerMetaDCSeg",
        config={"start_visits": (math.inf, math.inf), "memorisation_visits": math.inf},
    ),
    Arm("no_leaving_out", "nnUNetTrainerMetaDCSegAllGivenLabels", config={"memorised_share": 0.0}),
    Arm("no_context", "nnUNetTrainerMetaDCSegNoContext"),
)
ARMS = {arm.name: arm for arm in _BUILT_IN}

# What the criterion of success compares with (tables.py).
PLAIN_ARMS = ("noisy", "trusted_only", "mixed")
ORACLE_ARMS = ("oracle_drop", "oracle_replace", "oracle_alpha")


def get_arm(name: str, variants: dict[str, dict[str, Any]] | None = None) -> Arm:
    """The built-in arm ``name``, or the variant of that name: another arm with other configuration values.

    ``variants`` maps a name to ``{arm: <name of an arm or of an earlier variant>, config: {field: value}}``.

    Raises:
        KeyError: no such arm; the message lists what there is.
    """
    if name in ARMS:
        return ARMS[name]
    variants = dict(variants or {})
    known = ", ".join([*ARMS, *variants])
    if name not in variants:
        raise KeyError(f"There is no arm {name!r}; there are {known}.")
    variant = variants.pop(name)  # a variant cannot build on itself
    base = variant.get("arm", "metadcseg")
    if base not in ARMS and base not in variants:
        raise KeyError(f"The variant {name!r} builds on the unknown arm {base!r}; choose one of {known}.")
    parent = get_arm(base, variants)
    return replace(parent, name=name, config=parent.config | (variant.get("config") or {}))
