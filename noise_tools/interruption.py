"""What both command lines do when they are ended from outside. Nothing heavy is imported here."""

from __future__ import annotations

import signal
import sys
import threading


def clean_up_when_ended() -> None:
    """Let SIGTERM (of a batch system) and SIGHUP (of a closed terminal) end the command as exceptions.

    So nothing half written stays. What ignores SIGHUP (nohup) goes on doing so.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may set it
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: sys.exit(128 + received))
