"""Defer the signals that end a run, so that it can save first."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sgdata.errors import ExitCode
from sgdata.stop_signals import STOPPING
from sgmodel import distributed
from sgmodel.data import tar_source

log = logging.getLogger("sgdata")
_arrived: list[int] = []


def stop_code() -> ExitCode:
    """Return the exit code of a run that was stopped early: by a signal, or by its options."""
    if not _arrived:
        log.info("stopped before the last step, by --stop-after; the same command continues the run")
        return ExitCode.FINDINGS
    log.info("stopped by %s; the same command continues the run", signal.Signals(_arrived[-1]).name)
    _arrived.clear()
    return ExitCode.INTERRUPTED


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Defer SIGINT and the signals of STOPPING; the yielded callable returns True once one has arrived."""
    arrived: list[int] = []
    _arrived.clear()
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python delivers signals to the main thread only
        return

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        _arrived.append(number)
        tar_source.STOP.set()

    numbers = [each for each in (signal.SIGINT, *STOPPING) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: bool(arrived)
    except Exception:
        # torchrun sends SIGTERM to the other ranks when one ends; they must have time to print their own error.
        if distributed.world_size() > 1:
            before.pop(signal.SIGTERM, None)
        raise
    finally:
        tar_source.STOP.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
