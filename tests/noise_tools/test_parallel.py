from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from noise_tools.errors import NoiseToolsError
from noise_tools.parallel import Workers, run_cases


def double(shared: int, name: str) -> tuple[str, int, int]:
    return name * 2, shared, os.getpid()


def fail(shared: int, name: str) -> None:
    raise NoiseToolsError(f"case {name} is bad")


def die(shared: int, name: str) -> None:
    os._exit(9)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_name_gets_its_result(processes):
    results = run_cases(double, 5, ["a", "b", "c"], processes, "Testing")
    assert {name: value[:2] for name, value in results.items()} == {n: (n * 2, 5) for n in "abc"}
    assert (os.getpid() in {value[2] for value in results.values()}) == (processes == 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_come_through(processes):
    with pytest.raises(NoiseToolsError, match="case a is bad"):
        run_cases(fail, 5, ["a"] * processes, processes, "Testing")


def test_a_process_that_dies_is_said():
    with pytest.raises(NoiseToolsError, match="A process died"):
        run_cases(die, 5, ["a", "b"], 2, "Testing")


def test_progress_bar_on_stderr(capsys):
    run_cases(double, 5, ["a"], 1, "Testing")
    captured = capsys.readouterr()
    assert "Testing" in captured.err and captured.out == ""


def test_several_passes_share_the_processes():
    with Workers(5, 2) as workers:
        first, second = (workers.run(double, ["a", "b", "c", "d"], "Testing") for _ in range(2))
    assert first.keys() == second.keys() and len({v[2] for r in (first, second) for v in r.values()}) <= 2


def wait(folder: Path, name: str) -> None:
    (folder / f"{name}.{os.getpid()}").touch()
    time.sleep(60)


def test_processes_end_with_a_parent_that_was_killed(tmp_path):
    code = (
        "from pathlib import Path; import sys; from tests.noise_tools.test_parallel import run_cases, wait\n"
        "if __name__ == '__main__': run_cases(wait, Path(sys.argv[1]), ['a', 'b'], 2, 'Testing')"
    )
    (tmp_path / "start.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [sys.executable, str(tmp_path / "start.py"), str(tmp_path)]
    with subprocess.Popen(started, env=environment, stderr=subprocess.DEVNULL) as parent:
        while parent.poll() is None and len(numbers := [int(p.suffix[1:]) for p in tmp_path.glob("[ab].*")]) < 2:
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(map(is_running, numbers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, numbers))


def is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{number}/stat")  # what nobody has waited for stays as a zombie
    return not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
