"""Adds a configuration for machines without a GPU to the plans file of a preprocessed data set.

The new configuration inherits from a planned one (nnU-Net's own `inherits_from`), so it shares the preprocessed data
and needs no second preprocessing. It has fewer features, a batch of 2 (or what is asked for) and, where the planned
patch is too large for two cores, a smaller patch with the network topology nnU-Net would plan for it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunetv2_metadcseg.dataset_folder import preprocessed_folder

# A training step of nnU-Net's plain U-Net with 8 features took 0.6 to 1.7 microseconds per voxel of the batch (2D and
# 3D, torch on two cores), with 16 features 1.1 to 1.3: 300 000 voxels per batch keep a step near 0.3 s.
BATCH_VOXELS = 300_000
REFERENCE_FEATURES = 8
# nnU-Net plans no feature map smaller than this (UNet_featuremap_min_edge_length of its planner).
MIN_FEATURE_MAP_EDGE = 4
# One value per stage of the decoder; every other list of the network has one value per stage of the encoder.
DECODER_KEYS = ("n_conv_per_stage_decoder",)
SMALL_KEYS = {"inherits_from", "batch_size", "patch_size", "architecture", "next_stage"}  # of what is added
UNET_KEYS = ("features_per_stage", "strides", "kernel_sizes")  # lists in the plans of every planner of nnU-Net
ENCODER_KEYS = ("n_conv_per_stage", "n_blocks_per_stage")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `metadcseg small-config`."""
    parser.add_argument("-d", dest="dataset", required=True, help="data set id or name, preprocessed already")
    parser.add_argument(
        "-c", dest="configuration", default="3d_fullres", help="configuration to start from (default: %(default)s)"
    )
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier (default: %(default)s)")
    parser.add_argument("--name", help="name of the new configuration (default: CONFIGURATION_small)")
    parser.add_argument("--features", type=int, default=8, help="features of the first stage (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=2, help="patches per batch (default: %(default)s)")
    parser.add_argument(
        "--patch",
        type=int,
        nargs="+",
        metavar="EDGE",
        help="patch size in voxels, one edge per axis (default: as planned, smaller where that would be slow)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a small configuration of that name")


def run(args: argparse.Namespace) -> int:
    """Adds the configuration and prints its name, the only line on stdout (so that a script can take it)."""
    name = add_small_configuration(
        find_plans_file(args.dataset, args.plans),
        args.configuration,
        name=args.name,
        features=args.features,
        batch_size=args.batch_size,
        patch=args.patch,
        overwrite=args.overwrite,
    )
    print(name)
    return 0


def find_plans_file(dataset: str, plans_identifier: str) -> Path:
    """Path of the plans file of a data set, given by id or name.

    Raises FileNotFoundError where nnUNet_preprocessed, the data set or the plans file is missing.
    """
    plans_file = preprocessed_folder(dataset) / f"{plans_identifier}.json"
    if not plans_file.is_file():
        raise FileNotFoundError(
            f"There is no plans file {plans_file}, expected the one nnU-Net's planner writes; "
            f"run: nnUNetv2_plan_and_preprocess -d {dataset} (or give the plans identifier with -p)"
        )
    return plans_file


def add_small_configuration(
    plans_file: Path,
    parent: str,
    *,
    name: str | None = None,
    features: int = 8,
    batch_size: int = 2,
    patch: Sequence[int] | None = None,
    overwrite: bool = False,
) -> str:
    """Adds a small configuration that inherits from `parent` to a plans file and returns its name.

    A second call with the same settings changes nothing. The file is replaced as a whole or not at all.

    Raises ValueError for a broken plans file, an unknown parent, impossible settings, or a name that is taken by other
    settings.
    """
    plans = read_plans(plans_file)
    name = name or f"{parent}_small"
    configuration = small_configuration(plans, parent, features=features, batch_size=batch_size, patch=patch)
    existing = plans["configurations"].get(name)
    if existing == configuration:
        return name
    if existing is not None:
        _check_replaceable(plans, plans_file, name, parent, overwrite)
    plans["configurations"][name] = configuration
    _replace_json(plans_file, plans)
    return name


def _check_replaceable(plans: dict[str, Any], plans_file: Path, name: str, parent: str, overwrite: bool) -> None:
    """Raises ValueError where the configuration of that name must stay, or the user has not asked to replace it."""
    taken = f"The plans file {plans_file} already has a configuration {name!r} with other settings; give another --name"
    if name in ancestry(plans, parent):
        raise ValueError(f"{taken}, since {parent!r} (-c) is or inherits from it")
    if not _is_small(plans["configurations"][name]):
        raise ValueError(f"{taken}, since small-config did not make it and does not replace it")
    if not overwrite:
        raise ValueError(f"{taken}, or --overwrite to replace it (models trained with it can then not be continued)")


def _is_small(configuration: dict[str, Any]) -> bool:
    """Whether `small_configuration` made this entry: nnU-Net plans others in full, or with a previous stage."""
    return set(configuration) == SMALL_KEYS and configuration["next_stage"] is None


def read_plans(file: Path) -> dict[str, Any]:
    """Content of a plans file; raises ValueError where it is none."""
    try:
        plans = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); run nnUNetv2_plan_experiment again") from error
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    if not isinstance(configurations, dict) or not all(isinstance(c, dict) for c in configurations.values()):
        raise ValueError(
            f'{file} has no "configurations", expected a plans file of nnU-Net; run nnUNetv2_plan_experiment again'
        )
    return plans


def small_configuration(
    plans: dict[str, Any], parent: str, *, features: int = 8, batch_size: int = 2, patch: Sequence[int] | None = None
) -> dict[str, Any]:
    """The entry for `plans["configurations"]`: what differs from the configuration `parent`.

    Parameters:
        plans: content of a plans file of nnU-Net >= 2.4 (with an `architecture` entry).
        features: features of the first stage; the other stages keep the planned ratios.
        batch_size: patches per batch; at least 2, since one of them is trusted.
        patch: patch size in voxels in the plan's axis order; by default the planned one, shrunk to the voxel budget.
    """
    if batch_size < 2:
        raise ValueError(f"Got a batch size of {batch_size}, expected at least 2 (a given-label and a trusted patch)")
    if features < 2:
        raise ValueError(f"Got {features} features, expected at least 2")
    planned = resolve(plans, parent)
    if "architecture" not in planned:
        raise ValueError(
            f"The configuration {parent!r} has no 'architecture' entry, expected the plans format of nnU-Net >= 2.4; "
            "run nnUNetv2_plan_experiment again"
        )
    if planned.get("previous_stage"):
        raise ValueError(
            f"The configuration {parent!r} is the second stage of a cascade and needs predictions that "
            f"{planned['previous_stage']!r} makes for it alone; give one that stands by itself, such as 3d_fullres"
        )
    missing = sorted({"patch_size", "spacing"} - set(planned))
    if missing:
        raise ValueError(
            f"The configuration {parent!r} has no {missing[0]!r}, expected one as nnU-Net plans it; run "
            "nnUNetv2_plan_experiment again"
        )
    architecture = deepcopy(planned["architecture"])
    network = _unet_settings(parent, architecture)
    wanted = _patch_size(planned, features, batch_size, patch)
    if wanted != list(planned["patch_size"]):
        wanted = _replan_topology(network, planned["spacing"], wanted)
    network["features_per_stage"] = _scaled_features(network["features_per_stage"], features)
    # next_stage: a small low-resolution model must not write predictions for the planned cascade.
    return {
        "inherits_from": parent,
        "batch_size": batch_size,
        "patch_size": wanted,
        "architecture": architecture,
        "next_stage": None,
    }


def _unet_settings(parent: str, architecture: Any) -> dict[str, Any]:
    """The entry that is changed; raises ValueError for a network that nnU-Net's own planners do not plan."""
    network = architecture.get("arch_kwargs") if isinstance(architecture, dict) else None
    if not isinstance(network, dict) or not all(isinstance(network.get(key), list) for key in UNET_KEYS):
        name = architecture.get("network_class_name") if isinstance(architecture, dict) else architecture
        raise ValueError(
            f"The configuration {parent!r} has the network {name}, expected a U-Net with one value per stage in "
            f"{', '.join(UNET_KEYS)}, as nnU-Net's own planners write it; give the plans of one of them with -p"
        )
    return network


def ancestry(plans: dict[str, Any], name: str) -> list[str]:
    """A configuration and all that it inherits from, nearest first.

    Raises ValueError for an unknown name, or where configurations inherit in a circle.
    """
    configurations, found = plans["configurations"], []
    while True:
        if name not in configurations:
            available = ", ".join(configurations)
            raise ValueError(f"Unknown configuration {name!r}; the plans file has: {available}")
        if name in found:
            raise ValueError(
                f"The configurations {', '.join(found)} inherit from each other in a circle; mend the plans file"
            )
        found.append(name)
        if "inherits_from" not in configurations[name]:
            return found
        name = configurations[name]["inherits_from"]


def resolve(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits, as nnU-Net's PlansManager resolves it (which needs torch to import).

    Raises ValueError as `ancestry`.
    """
    resolved: dict[str, Any] = {}
    for ancestor in reversed(ancestry(plans, name)):
        resolved |= plans["configurations"][ancestor]
    return resolved


def _patch_size(planned: dict[str, Any], features: int, batch_size: int, patch: Sequence[int] | None) -> list[int]:
    planned_patch = list(planned["patch_size"])
    if patch is not None:
        if len(patch) != len(planned_patch) or min(patch) < 1:
            raise ValueError(
                f"Got --patch {' '.join(map(str, patch))}, expected {len(planned_patch)} positive edges "
                f"(the planned patch is {' '.join(map(str, planned_patch))})"
            )
        return list(patch)
    budget = BATCH_VOXELS * REFERENCE_FEATURES / max(features, REFERENCE_FEATURES) / batch_size
    return shrink_patch(planned_patch, budget)


def shrink_patch(patch: Sequence[int], max_voxels: float, step: int = 8) -> list[int]:
    """Cuts `step` voxels off the longest edge until at most `max_voxels` are left; never below 2 steps per edge."""
    patch = list(patch)
    while math.prod(patch) > max_voxels:
        longest = max(range(len(patch)), key=patch.__getitem__)
        if patch[longest] <= 2 * step:
            break
        patch[longest] -= step
    return patch


def _replan_topology(network: dict[str, Any], spacing: Sequence[float], patch: Sequence[int]) -> list[int]:
    """Fits strides, kernels and the number of stages in `network` to a patch; returns the patch padded to the strides.

    The planned strides would pool a small patch down to one voxel, where instance norm fails. Three stages are the
    least: with two, nnU-Net's deep supervision has one output, whose weight is 0 / 0.
    """
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, padded, _ = get_pool_and_conv_props(spacing, patch, MIN_FEATURE_MAP_EDGE, 999_999)
    n_stages = min(len(strides), network["n_stages"])
    if n_stages < 3:
        raise ValueError(
            f"A patch of {' '.join(map(str, patch))} voxels is too small to pool twice, expected edges of at least "
            f"{4 * MIN_FEATURE_MAP_EDGE}; give a larger --patch"
        )
    network["n_stages"] = n_stages
    network["strides"] = [list(s) for s in strides[:n_stages]]
    network["kernel_sizes"] = [list(k) for k in kernels[:n_stages]]
    network["features_per_stage"] = network["features_per_stage"][:n_stages]
    for key in ENCODER_KEYS:
        if isinstance(network.get(key), list):  # one number is for all stages
            network[key] = network[key][:n_stages]
    for key in DECODER_KEYS:
        if isinstance(network.get(key), list):
            network[key] = network[key][: n_stages - 1]
    return [int(edge) for edge in padded]


def _scaled_features(planned: Sequence[int], features: int) -> list[int]:
    return [max(1, round(width * features / planned[0])) for width in planned]


def _replace_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON as nnU-Net does (order kept, four spaces) to a sibling file and renames it over `path`."""
    mode = path.stat().st_mode
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, sort_keys=False, indent=4)
            file.write("\n")
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
