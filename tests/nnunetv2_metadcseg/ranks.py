"""Runs a function in several `gloo` processes, as DDP does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed as dist


def run_ranks(function: Callable[[int], object], folder: Path, count: int = 2) -> list:
    """`function(rank)` of every rank, in rank order; the function must be importable."""
    torch.multiprocessing.spawn(_run, (function, str(folder), count), nprocs=count)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(count)]


def _run(rank: int, function: Callable[[int], object], folder: str, count: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    try:
        torch.save(function(rank), f"{folder}/rank{rank}.pt")
        dist.barrier()  # a group that is taken down while another rank still talks to it may abort the process
    finally:
        dist.destroy_process_group()
