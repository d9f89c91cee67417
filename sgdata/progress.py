"""Progress of long work: a bar on a terminal, a log line now and then elsewhere; `-q` silences both."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger("sgdata")
# A log file of a night's run stays readable, and a watcher still sees life.
LINE_EVERY_S = 10.0


def track(items: Iterable[T], *, label: str, total: int) -> Iterator[T]:
    """The items themselves, while telling on stderr how many of `total` have passed."""
    if not log.isEnabledFor(logging.INFO):
        yield from items
    # A bar redraws itself: in a log file that is one endless line.
    elif sys.stderr.isatty():
        yield from _bar(items, label, total)
    else:
        yield from _lines(items, label, total)


def _bar(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # transient: the bar goes away, so that stdout and stderr together end with the path and nothing else.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=label)


def _lines(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    began = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if done == total or time.monotonic() - said > LINE_EVERY_S:
            said = time.monotonic()
            left = (said - began) / done * (total - done)
            log.info("%s: %d of %d%s", label, done, total, f", {told(left)} left" if done < total else "")


def told(seconds: float) -> str:
    """A time as people say it: `40 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
