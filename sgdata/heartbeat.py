"""A small file in an output folder that says what its writer is doing, for `sgdata status`; removed at the end.

It is hidden, so that no SHA256SUMS contains it. A thread writes it every few seconds, which shows that the process is
alive also while one task takes long.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = ".progress.json"
EVERY_S = 5.0
SILENT_S = 60.0
"""Seconds without a sign of life after which a process on another machine counts as gone."""

_state: dict[str, Any] = {}


def report(stage: str, done: int, total: int, seconds_left: float | None) -> None:
    """Note what this process is doing.

    Args:
        stage: What is done.
        done: Number of items done.
        total: Number of all items.
        seconds_left: Estimated time to the end of the stage; None if not known.
    """
    left = None if seconds_left is None else round(seconds_left)
    _state.update(stage=stage, done=done, total=total, seconds_left=left)


@contextmanager
def beating(folder: Path) -> Iterator[None]:
    """Keep the file in `folder` while the context is open."""
    stopped = threading.Event()
    began = time.time()

    def beat() -> None:
        while not stopped.wait(EVERY_S):
            _write(folder, began)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    _state.clear()
    _write(folder, began)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        (folder / NAME).unlink(missing_ok=True)


def _write(folder: Path, began: float) -> None:
    state = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "began": round(began, 3),
        "updated": round(time.time(), 3),
        **_state,
    }
    temporary = folder / f".progress-{os.getpid()}.partial"
    # Not worth an error: the work itself reports a full disk.
    with suppress(OSError):
        try:
            temporary.write_text(json.dumps(state) + "\n")
            temporary.replace(folder / NAME)
        finally:
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """Last report of the writer of an output folder.

    Attributes:
        process: Number of the process.
        host: Its machine.
        began: When it began, in seconds since 1970.
        updated: When it last reported, likewise.
        stage: What it is doing; "" before the first stage with a known number of items.
        done: Number of items of the stage that are done.
        total: Number of all items of the stage.
        seconds_left: Estimated time to the end of the stage; None if not known.
    """

    process: int
    host: str
    began: float
    updated: float
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds_left: int | None = None

    @property
    def alive(self) -> bool:
        """Whether the process still runs: on this machine by its number, else by its last report."""
        if self.host != socket.gethostname():
            return time.time() - self.updated < SILENT_S
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
