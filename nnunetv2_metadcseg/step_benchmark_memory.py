"""Peak memory of an arm, measured in a process of its own, and what a long run does to memory and step time.

On the CPU: the highest resident set size (VmHWM of /proc; ru_maxrss where there is no /proc) minus the resident set
size once torch and nnU-Net are imported and the batches are loaded. What counts is thus what the arm itself needs:
weights, optimiser, teacher, activations, gradients. On CUDA: the peak of torch's allocator.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from nnunetv2_metadcseg.step_benchmark import Target

MIB = 2**20
MARKER = "metadcseg-memory:"


def peak_memory(arm: str, target: Target, shared: Path, cycles: int = 2) -> float:
    """Peak in MiB over `cycles` times all batches of the file `shared`."""
    return long_run(arm, target, shared, cycles)["peak_mb"]


def long_run(arm: str, target: Target, shared: Path, cycles: int) -> dict:
    """Runs the arm in a child process: {"peak_mb", "resident_mb": after every cycle, "cycle_seconds"}.

    Raises:
        OSError: the child failed, with the last line it wrote.
    """
    command = [sys.executable, "-m", __name__, arm, json.dumps(asdict(target)), str(shared), str(cycles)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(target.threads)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARKER)]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise OSError(f"Measuring the memory of {arm} ended with status {done.returncode}: {last}")
    return json.loads(lines[-1].removeprefix(MARKER))


def resident() -> int:
    """Resident set size of this process in bytes; without /proc the highest so far."""
    return _status("VmRSS")


def highest() -> int:
    """Highest resident set size so far in bytes.

    VmHWM starts anew with the program, ru_maxrss of a child is at least what its parent held when it was started.
    """
    return _status("VmHWM")


def _status(key: str) -> int:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{key}:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """The child process."""
    parser = argparse.ArgumentParser()
    for name in ("arm", "target", "shared"):
        parser.add_argument(name)
    parser.add_argument("cycles", type=int)
    args = parser.parse_args()
    print(MARKER + json.dumps(child(args.arm, Target(**json.loads(args.target)), args.shared, args.cycles)))


def child(arm: str, target: Target, shared: str, cycles: int) -> dict:
    """Builds the arm and trains; see `long_run`."""
    import torch

    from nnunetv2_metadcseg.step_benchmark_arms import build, load_weights
    from nnunetv2_metadcseg.step_benchmark_measure import batch_for, synchroniser

    torch.set_num_threads(target.threads)
    content = torch.load(shared, weights_only=False)
    on_cuda = target.device == "cuda"
    gc.collect()
    before = resident()
    trainer = build(arm, target)
    load_weights(trainer, content["weights"])
    batches = [batch_for(trainer, batch) for batch in content["batches"]]
    synchronise = synchroniser(trainer.device)
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    sizes, seconds = [], []
    for _ in range(cycles):
        start = time.perf_counter()
        for batch in batches:
            trainer.train_step(batch)
        synchronise()
        seconds.append(time.perf_counter() - start)
        sizes.append((torch.cuda.memory_reserved() if on_cuda else resident() - before) / MIB)
    peak = torch.cuda.max_memory_allocated() if on_cuda else max(0, highest() - before)
    return {"peak_mb": peak / MIB, "resident_mb": sizes, "cycle_seconds": seconds}


if __name__ == "__main__":
    main()
