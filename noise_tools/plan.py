"""Who is who in a corruption: test cases, trusted cases, cases to corrupt and the noise of each, chosen by seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from noise_tools.errors import NoiseToolsError
from noise_tools.recipe import spread
from noise_tools.source_cases import KnownCases

if TYPE_CHECKING:
    from noise_tools.corrupt import Request
    from noise_tools.raw_dataset import RawDataset

DEFAULT_TRUSTED = 5


@dataclass(frozen=True)
class Plan:
    """Who is who: test cases, trusted cases, and the component of every case to corrupt. The rest stays clean."""

    test: tuple[str, ...]
    trusted: tuple[str, ...]
    noisy: dict[str, int]


def with_trusted(request: Request, known: KnownCases) -> Request:
    """`request` in which trusted cases are asked for: if it leaves them open, those that the source declares."""
    if request.trusted is not None:
        return request
    held_out = () if isinstance(request.test, int) else request.test
    declared = tuple(name for name in known.declared if name not in held_out)
    return replace(request, trusted=declared or DEFAULT_TRUSTED)


def make_plan(dataset: RawDataset, request: Request, known: KnownCases | None = None) -> Plan:
    """Chooses test, trusted and corrupted cases by seed.

    Cases are shuffled once; a larger `case_fraction` corrupts the same cases and more, in the same way.

    Args:
        request: as `with_trusted` makes it.
        known: what the source says about its cases; nothing if not given.
    """
    known = known or KnownCases()
    order = sorted(dataset.cases)
    generator(request.seed, "plan").shuffle(order)
    # By number, held out cases are neither those that are wrong nor those that a training needs.
    free = [name for name in order if name not in known.corrupted and name not in known.declared]
    test = _pick(order, free, request.test, "--test-cases", dataset)
    order = [name for name in order if name not in test]
    trusted = _trusted(order, request, dataset, known)
    rest = [name for name in order if name not in trusted]
    if not rest:
        raise NoiseToolsError(
            f"All {len(order)} training cases are to be trusted, which leaves none to corrupt; lower --trusted."
        )
    # A share of few cases may be less than half a case; who asks for noise gets some.
    count = max(round(request.case_fraction * len(rest)), 1 if request.case_fraction > 0 else 0)
    noisy = rest[:count]
    return Plan(test, trusted, dict(zip(noisy, spread(request.components, len(noisy)), strict=True)))


def _trusted(order: Sequence[str], request: Request, dataset: RawDataset, known: KnownCases) -> tuple[str, ...]:
    """The trusted cases: those named, or of those that may be trusted as many as asked for."""
    declared = [name for name in order if name in known.declared]
    others = [name for name in order if name not in known.declared and name not in known.corrupted]
    # Where the source says which cases were checked, nobody has checked the others, unless a manifest knows them all.
    candidates = declared + (others if known.others_clean or not known.declared else [])
    asked = request.trusted
    if asked in (0, ()):
        raise NoiseToolsError("--trusted is 0, but training needs a case known to be clean; give 1 or more.")
    if not isinstance(asked, int):
        wrong = sorted(known.corrupted.intersection(asked))
        if wrong:
            raise NoiseToolsError(
                f"--trusted-cases names {', '.join(wrong)}, which {dataset.name} has with a wrong label by its "
                "noise_manifest.json; name cases that it left clean."
            )
    elif len(candidates) < asked and known.declared:
        raise NoiseToolsError(
            f"--trusted is {asked}, but of {dataset.name} only {len(candidates)} cases that are not held out are known "
            "to be right; give fewer, or name checked ones with --trusted-cases."
        )
    return _pick(order, candidates, asked, "--trusted", dataset)


def _pick(
    order: Sequence[str], candidates: Sequence[str], asked: int | Sequence[str], flag: str, dataset: RawDataset
) -> tuple[str, ...]:
    """The cases asked for by name, or the first of `candidates`."""
    if not isinstance(asked, int):
        unknown = [name for name in asked if name not in dataset.cases]
        if unknown:
            raise NoiseToolsError(
                f"{flag} names {', '.join(unknown)}, which {dataset.name} does not have; its cases are like {order[0]}."
            )
        taken = [name for name in asked if name not in order]
        if taken:
            raise NoiseToolsError(f"{flag} names {', '.join(taken)}, a test case; a case is either test or trusted.")
        return tuple(sorted(set(asked)))
    if asked < 0:
        raise NoiseToolsError(f"{flag} is {asked}; give a number of cases, 0 or more.")
    if asked > len(candidates) or (asked == len(order) and flag == "--test-cases"):
        raise NoiseToolsError(
            f"{flag} is {asked}, but {dataset.name} has {len(candidates)} cases to choose from; give fewer."
        )
    return tuple(sorted(candidates[:asked]))


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """Random numbers that depend on the seed and on what they are for, never on the order of calls."""
    digest = hashlib.sha256("\0".join(purpose).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, dtype="<u4").tolist()])
