"""Measures all arms of one configuration. Imports torch and nnU-Net."""

from __future__ import annotations

import functools
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tqdm import tqdm

from nnunetv2_metadcseg.feature_tap import unwrap
from nnunetv2_metadcseg.step_benchmark import ArmCost, Effort, Result, Target, cycle_length
from nnunetv2_metadcseg.step_benchmark_arms import build, load_weights
from nnunetv2_metadcseg.step_benchmark_memory import peak_memory
from nnunetv2_metadcseg.step_benchmark_parts import PartTimer, mean_of_medians, median_parts, methods_of, watch
from nnunetv2_metadcseg.trainer import nnUNetTrainerMetaDCSeg
from nnunetv2_metadcseg.trusted_trainer import TrustedBatchTrainer, first_output

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SEED = 0


def measure(target: Target, arms: Sequence[str], effort: Effort, scratch: Path) -> Result:
    """Time of all arms, one step of each in turn, then peak memory of each in a process of its own.

    An arm that does not fit into the device's memory is left out.

    Raises:
        OSError: no arm fits.
    """
    try:
        result = _measure(target, arms, effort, scratch)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise too_large(target) from error
    if not result.costs:
        raise too_large(target)
    return result


def _measure(target: Target, arms: Sequence[str], effort: Effort, scratch: Path) -> Result:
    torch.set_num_threads(target.threads)
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(SEED)
    source = build("metadcseg_head", target)
    # As many given-label patches as MetaDCSeg ever draws, since they cost it more; `mixed` and L2B need a trusted one.
    source.train_loader.trusted_share, source.train_loader.least_trusted = source.config.least_trusted_fraction, 1
    batches = draw_batches(source, cycle_length(arms))
    effort = replace(effort, steps=effort.steps - effort.steps % len(batches))
    weights = trained_weights(target, batches, effort.warm_up)
    trainers = {arm: build(arm, target) for arm in arms}
    for trainer in trainers.values():
        load_weights(trainer, weights)
    costs = time_steps(trainers, batches, effort)
    trainers.clear()
    release_memory()  # which the processes below would lack on a GPU
    if effort.memory:
        shared = scratch / "batches.pt"
        torch.save({"batches": batches[:2] if effort.brief else batches, "weights": weights}, shared)
        cycles = 1 if effort.brief else 2
        costs = [with_memory(cost, target, shared, cycles) for cost in progress(costs, "memory")]
    size = (len(batches[0]["data"]), *source.configuration_manager.patch_size)
    share = disagreeing_share(source, weights, batches)
    return Result(target, costs, time_data(target, effort), share, size, effort.steps)


def with_memory(cost: ArmCost, target: Target, shared: Path, cycles: int) -> ArmCost:
    """The cost with its peak memory; without it, and with a line that says why, where the process failed."""
    try:
        return replace(cost, peak_mb=peak_memory(cost.arm, target, shared, cycles))
    except OSError as error:  # its time, which is measured, is not to be lost
        tqdm.write(f"{error}; its memory is left out", file=sys.stderr)
        return cost


def progress(items: Sequence, text: str):
    return tqdm(items, desc=text, leave=False)


# ---- too little memory -----------------------------------------------------------------------------------------------


def out_of_memory(error: RuntimeError) -> bool:
    """By the text: torch has a class of its own for one of the errors only that tell it."""
    return "out of memory" in str(error)


def too_large(target: Target) -> OSError:
    return OSError(
        f"The configuration {target.configuration!r} does not fit into the memory of {target.device}; "
        "measure a smaller one, such as `metadcseg small-config` adds."
    )


def fits(step: Callable[[], None]) -> bool:
    """Takes a step; False where the memory did not suffice."""
    try:
        step()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    return True


def release_memory() -> None:
    """Gives what deleted trainers held back to the device; watched ones refer to themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- the batches -----------------------------------------------------------------------------------------------------


def draw_batches(trainer: TrustedBatchTrainer, count: int) -> list[dict]:
    """Batches of our loader; `stock_target` holds the same labels as nnU-Net's own loss wants them."""
    batches = []
    for _ in range(count):
        batch = next(trainer.dataloader_train)
        batches.append({**batch, "stock_target": stock_target(trainer, batch["data"], batch["target"][:, :1])})
    return batches


def stock_target(trainer: nnUNetTrainer, data: torch.Tensor, target: torch.Tensor):
    """Regions and deep-supervision targets, made by nnU-Net's transforms as its loader makes them."""
    labels = trainer.label_manager
    transform = trainer.get_validation_transforms(
        trainer._get_deep_supervision_scales(),
        is_cascaded=False,  # the previous stage is part of `data` already
        foreground_labels=labels.foreground_labels,
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=labels.ignore_label,
    )
    samples = [transform(image=d, segmentation=t)["segmentation"] for d, t in zip(data, target, strict=True)]
    if isinstance(samples[0], list):
        return [torch.stack(level) for level in zip(*samples, strict=True)]
    return torch.stack(samples)


def batch_for(trainer: nnUNetTrainer, batch: dict) -> dict:
    """The batch as this trainer's loader would give it."""
    return batch if isinstance(trainer, TrustedBatchTrainer) else {**batch, "target": batch["stock_target"]}


def trained_weights(target: Target, batches: list[dict], steps: int) -> dict[str, torch.Tensor]:
    """Weights after a few steps of `mixed`: an untrained teacher would disagree with the labels almost everywhere."""
    trainer = build("mixed", target)
    for i in progress(range(steps), "warm-up"):
        trainer.train_step(batches[i % len(batches)])
    return {name: value.cpu().clone() for name, value in unwrap(trainer.network).state_dict().items()}


@torch.no_grad()
def disagreeing_share(trainer: nnUNetTrainerMetaDCSeg, weights: dict, batches: list[dict]) -> float:
    """Share of the given-label voxels of all batches where the label and the prediction of these weights differ."""
    from nnunetv2_metadcseg.agreement import disagreement

    load_weights(trainer, weights)
    shares = []
    for batch in batches:
        given = slice(0, batch["num_given"])
        label, valid = trainer.encoder(batch["target"][given, :1].to(trainer.device))
        with trainer.autocast():
            logits = first_output(trainer.network(trainer.to_device(batch["data"][given]))).float()
        found = disagreement(label, trainer.probabilities(logits), valid, trainer.label_manager.has_regions)
        shares.append(found.differs.float().mean().item())
    return statistics.fmean(shares)


# ---- time ------------------------------------------------------------------------------------------------------------


def synchroniser(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return torch.cuda.synchronize
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def time_steps(trainers: dict[str, nnUNetTrainer], batches: list[dict], effort: Effort) -> list[ArmCost]:
    """Rounds over all batches: one step of every arm per batch, every arm being first in turn.

    Per batch the median over the rounds, then the mean over the batches. MetaDCSeg's parts are measured in rounds of
    their own (half as many), since waiting for a GPU at every part would slow the step. An arm that does not fit into
    the memory is taken out of `trainers` and has no cost.
    """
    names, clock = list(trainers), CLOCKS[effort.clock]
    device = trainers[names[0]].device
    synchronise = synchroniser(device)
    timer = PartTimer(clock, synchronise)
    watched = [arm for arm in names if isinstance(trainers[arm], nnUNetTrainerMetaDCSeg)]
    for arm in watched:
        watch(trainers[arm], timer, methods_of(trainers[arm]))
    given = {arm: [batch_for(trainers[arm], batch) for batch in batches] for arm in names}
    rounds = effort.steps // len(batches)
    seconds = {arm: [[] for _ in batches] for arm in names}
    parts = {arm: [[] for _ in batches] for arm in watched}

    def timed(arm: str, i: int) -> None:
        synchronise()
        start = clock()
        trainers[arm].train_step(given[arm][i])
        synchronise()
        seconds[arm][i].append(clock() - start)

    def timed_parts(arm: str, i: int) -> None:
        parts[arm][i].append(timer.measure(lambda: trainers[arm].train_step(given[arm][i])))

    def leave_out(arm: str) -> None:
        for players in (names, watched):
            players[:] = [player for player in players if player != arm]
        del trainers[arm]
        release_memory()
        text = f"{arm} is left out: it does not fit into the memory of {device.type} beside the other arms"
        tqdm.write(f"{text} (alone it may: --arms {arm})", file=sys.stderr)

    def play(turns: int, players: list[str], action: Callable[[str, int], None], text: str) -> None:
        for turn in progress(range(turns), text):
            first = turn % max(1, len(players))
            for arm in players[first:] + players[:first]:
                if not fits(functools.partial(action, arm, turn % len(batches))):
                    leave_out(arm)

    cycle = len(batches)
    play(1 if effort.brief else cycle, names, lambda arm, i: trainers[arm].train_step(given[arm][i]), "first steps")
    play(rounds * cycle, names, timed, "steps")
    if not effort.brief:
        play(max(1, rounds // 2) * cycle, watched, timed_parts, "parts")
    return [ArmCost(arm, mean_of_medians(seconds[arm]), median_parts(parts.get(arm, []))) for arm in names]


def time_data(target: Target, effort: Effort, draws: int = 8) -> dict[str, float]:
    """Median seconds to draw and augment one batch in this process, stock loader and ours in turn."""
    clock = CLOCKS[effort.clock]
    loaders = {arm: build(arm, target).dataloader_train for arm in ("stock", "metadcseg_head")}
    seconds: dict[str, list[float]] = {arm: [] for arm in loaders}
    for _ in range(draws):
        for arm, loader in loaders.items():
            start = clock()
            next(loader)
            seconds[arm].append(clock() - start)
    return {arm: statistics.median(values) for arm, values in seconds.items()}
