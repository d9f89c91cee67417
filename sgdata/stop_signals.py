"""The signals that ask a command to stop: they end it as Ctrl-C does, with the exit code INTERRUPTED."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Sent by `kill`, by schedulers before the end of the time of a job, and when a terminal is closed."""


@contextmanager
def raising() -> Iterator[None]:
    """Raise KeyboardInterrupt with the name of the signal when one of STOPPING arrives while the context is open.

    A signal that is ignored, as SIGHUP is under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {each: signal.getsignal(each) for each in STOPPING}
    taken = [each for each, handler in before.items() if handler is signal.SIG_DFL]
    for each in taken:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)
