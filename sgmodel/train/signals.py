"""Defer the signals that end a run, so that it can save first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sgmodel import distributed
from sgmodel.data import tar_source


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Defer SIGTERM and SIGINT; the yielded callable returns True once either has arrived."""
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python delivers signals to the main thread only
        return

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        tar_source.STOP.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(arrived)
    except Exception:
        # torchrun sends SIGTERM to the other ranks when one ends; they must have time to print their own error.
        if distributed.world_size() > 1:
            before.pop(signal.SIGTERM)
        raise
    finally:
        tar_source.STOP.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
