"""Runs one function over many cases in several processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from noise_tools.errors import NoiseToolsError

_work: tuple[Callable[[Any, str], Any], Any] | None = None


def run_cases(
    function: Callable[[Any, str], Any], shared: Any, names: Sequence[str], processes: int, title: str
) -> dict[str, Any]:
    """`{name: function(shared, name)}` for all names; the first error stops the rest.

    Args:
        function: a module-level function (it is sent to the processes by name).
        shared: its first argument, sent to every process once.
        processes: 1 runs in this process.
    """
    if processes < 1:
        raise NoiseToolsError(f"-np is {processes}; give at least 1 process.")
    processes = min(processes, len(names))
    with tqdm(total=len(names), desc=title, unit="case", mininterval=0.5) as bar:
        if processes <= 1:
            results = {}
            for name in names:
                results[name] = function(shared, name)
                bar.update()
            return results
        return _run_parallel(function, shared, names, processes, bar)


def _run_parallel(function: Callable, shared: Any, names: Sequence[str], processes: int, bar: tqdm) -> dict[str, Any]:
    # spawn: SimpleITK's threads do not survive a fork.
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (function, shared))
    try:
        futures = {executor.submit(_call, name): name for name in names}
        results = {}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            bar.update()
        return results
    except BrokenProcessPool as error:
        raise NoiseToolsError(
            "A process died, perhaps for want of memory; nothing was kept, run again with a smaller -np."
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin(function: Callable, shared: Any) -> None:
    global _work
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the processes share the cores
    _work = (function, shared)


def _call(name: str) -> Any:
    function, shared = _work
    return function(shared, name)
