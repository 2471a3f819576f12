from __future__ import annotations

import os

import pytest

from noise_tools.errors import NoiseToolsError
from noise_tools.parallel import run_cases


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
