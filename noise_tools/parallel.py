"""Runs one function over many cases in several processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from noise_tools.errors import NoiseToolsError

_shared: Any = None


class Workers:
    """Processes that all hold one object; leaving the block ends them.

    Args:
        shared: first argument of every function that is run, sent to every process once.
        processes: 1 runs in this process.
    """

    def __init__(self, shared: Any, processes: int) -> None:
        if processes < 1:
            raise NoiseToolsError(f"-np is {processes}; give at least 1 process.")
        self._shared = shared
        # spawn: SimpleITK's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(processes, context, _begin, (shared,)) if processes > 1 else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def run(self, function: Callable[[Any, str], Any], names: Sequence[str], title: str) -> dict[str, Any]:
        """`{name: function(shared, name)}` for all names; the first error stops the rest.

        Args:
            function: a module-level function (it is sent to the processes by name).
            title: of the progress bar.
        """
        with tqdm(total=len(names), desc=title, unit="case", mininterval=0.5) as bar:
            if self._executor:
                return self._run_parallel(self._executor, function, names, bar)
            results = {}
            for name in names:
                results[name] = function(self._shared, name)
                bar.update()
            return results

    @staticmethod
    def _run_parallel(
        executor: ProcessPoolExecutor, function: Callable, names: Sequence[str], bar: tqdm
    ) -> dict[str, Any]:
        try:
            futures = {executor.submit(_call, function, name): name for name in names}
            results = {}
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                bar.update()
            return results
        except BrokenProcessPool as error:
            raise NoiseToolsError(
                "A process died, perhaps for want of memory; nothing was kept, run again with a smaller -np."
            ) from error


def run_cases(
    function: Callable[[Any, str], Any], shared: Any, names: Sequence[str], processes: int, title: str
) -> dict[str, Any]:
    """`{name: function(shared, name)}` for all names, see `Workers`."""
    with Workers(shared, min(processes, max(1, len(names)))) as workers:
        return workers.run(function, names, title)


def _begin(shared: Any) -> None:
    global _shared
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the processes share the cores
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _shared = shared


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: killed, it can end nobody itself."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(function: Callable[[Any, str], Any], name: str) -> Any:
    return function(_shared, name)
