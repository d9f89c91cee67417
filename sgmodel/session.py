"""Training against the clock and the machine: save now and then, and stop cleanly when told to."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from sgmodel import loop

STOPPED = 3
"""Exit code of a program that stopped before its end: the same command goes on."""


def watched(
    steps: Iterable[loop.Step], save: Callable[[int], None], *, minutes: float, stop_after: int | None
) -> Iterator[loop.Step]:
    """The steps themselves. `save(done)` is called every `minutes`, and before the iteration ends, for whatever
    reason: the last step, SIGTERM or SIGINT, or `stop_after` steps."""
    done, saved = 0, time.monotonic()
    with told_to_stop() as told:
        for count, step in enumerate(steps, 1):
            yield step
            done = step.index + 1
            if told() or count == stop_after:
                break
            if time.monotonic() - saved > 60 * minutes:
                save(done)
                saved = time.monotonic()
        if done:
            save(done)


@contextmanager
def told_to_stop() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM and SIGINT end nothing, but make the yielded function answer True."""
    told: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
