"""Write log messages to stderr, as text for people or as one JSON object a line for programs (`--log-format json`)."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from typing import Literal, TextIO

from sgdata import urls

LogFormat = Literal["text", "json"]

FIELDS = ("stage", "done", "total", "seconds_left", "exit_code")
"""Further members of a line, by their names in `extra`."""


class JsonLines(logging.Formatter):
    """Formats a record as one line: time (UTC), level, message and, of progress, stage, done, total, seconds_left."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        time = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": urls.redact(record.getMessage())}
        line |= {name: getattr(record, name) for name in FIELDS if getattr(record, name, None) is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when a record is written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)


def configure(form: LogFormat) -> None:
    """Send log messages of this process to stderr in a format; a later call changes it."""
    root = logging.getLogger()
    handlers = [each for each in root.handlers if isinstance(each, StderrHandler)]
    if not handlers and (form == "json" or not root.handlers):
        handlers = [StderrHandler()]
        root.addHandler(handlers[0])
    for handler in handlers:
        handler.setFormatter(JsonLines() if form == "json" else logging.Formatter("%(message)s"))


def are_json() -> bool:
    """Return whether log messages are written as JSON."""
    return any(isinstance(each.formatter, JsonLines) for each in logging.getLogger().handlers)


def listen(quiet: bool) -> None:
    """Send progress and log messages to stderr; if `quiet`, warnings only."""
    # stdout carries the result alone, so that OUT=$(sgdata build ...) works. Other libraries log from warnings up.
    if not are_json():
        configure("text")
    logging.getLogger("sgdata").setLevel(logging.WARNING if quiet else logging.INFO)
