"""What all tests need: none sees the nnU-Net folders or settings of the machine it runs on."""

from __future__ import annotations

import os
import signal
import sys

import pytest


def pytest_configure(config) -> None:
    """Unsets nnU-Net's variables once, before any fixture sets its own; figures need no display."""
    for name in [name for name in os.environ if name.startswith("nnUNet_")]:
        del os.environ[name]
    os.environ["MPLBACKEND"] = "Agg"
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start, see below


class FailuresAtOnce:
    """Prints every failure when it happens: the output of a run that is cut off says why, too."""

    def __init__(self, terminal) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.terminal.write_line(f"\n{report.nodeid} ({report.when})\n{report.longreprtext}")


def pytest_sessionstart(session) -> None:
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        session.config.pluginmanager.register(FailuresAtOnce(terminal))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """What tests compute is tiny: on a busy machine, threads that wait for each other make it ten times slower."""
    if "torch" in sys.modules:  # some of what tests call sets another number
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def hangups_are_heard():
    """Child processes do not ignore SIGHUP, even where the tests do (`nohup make test`)."""
    earlier = signal.signal(signal.SIGHUP, lambda *_: None)  # a handler is not inherited, to ignore is
    yield
    signal.signal(signal.SIGHUP, earlier)
