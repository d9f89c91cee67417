"""Show the progress of long work: a bar on a terminal, else a log line every few seconds; `-q` silences both."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO, TypeVar

from sgdata import heartbeat, log_lines

T = TypeVar("T")
log = logging.getLogger("sgdata")
# Often enough to see that the process is alive, rarely enough to keep a log file readable.
LINE_EVERY_S = 10.0

_about: ContextVar[tuple[str, list[str]] | None] = ContextVar("about", default=None)


@contextmanager
def about(name: str) -> Iterator[list[str]]:
    """Begin the log lines of this context, and of threads that copy it, with a name; yield a list of its warnings."""
    log.addFilter(_name)  # once: adding it again changes nothing
    warnings: list[str] = []
    token = _about.set((name, warnings))
    try:
        yield warnings
    finally:
        _about.reset(token)


def _name(record: logging.LogRecord) -> bool:
    current = _about.get()
    if current is not None:
        text = record.getMessage()
        record.msg, record.args = "%s: %s", (current[0], text)
        if record.levelno == logging.WARNING:
            current[1].append(text)
    return True


def track(items: Iterable[T], *, label: str, total: int) -> Iterator[T]:
    """Yield the items unchanged, reporting on stderr, and to `sgdata status`, how many of `total` were yielded."""
    items = _reported(items, label, total)
    if not log.isEnabledFor(logging.INFO):
        yield from items
    # A bar redraws one line, which only a terminal can show.
    elif _terminal().isatty() and not log_lines.are_json():
        yield from _bar(items, label, total)
    else:
        yield from _lines(items, label, total)


def _reported(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    began = time.time()
    heartbeat.report(label, 0, total, None)
    for done, item in enumerate(items, 1):
        heartbeat.report(label, done, total, (time.time() - began) / done * (total - done))
        yield item


def _bar(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # transient: remove the bar at the end, so that the output path is the last line on the screen.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=_terminal()), transient=True) as progress:
        yield from progress.track(items, total=total, description=label)


def _terminal() -> TextIO:
    """Return stderr as it was before `terminal.clean_output`: a bar needs control characters and has no names."""
    stream: TextIO = getattr(sys.stderr, "stream", sys.stderr)
    return stream


def _lines(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    began = reported = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if done == total or time.monotonic() - reported > LINE_EVERY_S:
            reported = time.monotonic()
            left = (reported - began) / done * (total - done)
            text = f", {duration(left)} left" if done < total else ""
            facts = {"stage": label, "done": done, "total": total, "seconds_left": round(left)}
            log.info("%s: %d of %d%s", label, done, total, text, extra=facts)


def duration(seconds: float) -> str:
    """Format a duration: `40 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
