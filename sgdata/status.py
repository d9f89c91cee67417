"""Say whether output folders are finished, and what the process that writes one is doing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sgdata import files, heartbeat, output_names, progress
from sgdata.errors import SettingError, SourceError

State = Literal["finished", "running", "stopped"]


@dataclass(frozen=True, kw_only=True)
class OutputStatus:
    """The state of one output folder.

    Attributes:
        folder: The folder.
        kind: Kind of output, such as "a build"; "" if none of its files say.
        state: Finished (with SHA256SUMS), running, or stopped before it was finished.
        writer: What its process last reported; None if there is none.
        age_s: Seconds since that report.
    """

    folder: Path
    kind: str
    state: State
    writer: heartbeat.Heartbeat | None = None
    age_s: int | None = None

    @property
    def line(self) -> str:
        """The state in one line."""
        subject = f"{self.folder}: {self.kind + ', ' if self.kind else ''}{self.state}"
        if self.state == "stopped":
            subject += "; the command that writes it continues it"
        if self.writer is None:
            return subject
        share = f" ({self.writer.done / self.writer.total:.0%})" if self.writer.total else ""
        stage = f"; {self.writer.stage}: {self.writer.done} of {self.writer.total}{share}" if self.writer.stage else ""
        left = self.writer.seconds_left
        rest = f", {progress.duration(left)} left" if self.state == "running" and left is not None else ""
        return f"{subject}{stage}{rest}; process {self.writer.process} on {self.writer.host}, {self.age_s} s ago"


def statuses(folder: Path) -> list[OutputStatus]:
    """Return the state of an output, or of every output below a folder of several.

    Args:
        folder: An output folder, or a folder of them.

    Raises:
        SettingError: There is no such folder, or no output in it.
    """
    if not folder.is_dir():
        raise SettingError(f"{folder}: no such folder; give the output of a command")
    if _is_output(folder):
        return [_status(folder)]
    inner = [path for path in _folders(folder) if _is_output(path)]
    if not inner:
        raise SettingError(f"{folder}: no output of sgdata or sgmodel, nor a folder of them; give one")
    return [_status(path) for path in inner]


def _is_output(folder: Path) -> bool:
    if any((folder / name).exists() for name in (output_names.SUMS, heartbeat.NAME, *output_names.KINDS)):
        return True
    # The lock of a command remains, also in a folder of releases, which is no output itself.
    return (folder / ".lock").exists() and not any(map(_is_output, _folders(folder)))


def _folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink()]


def _status(folder: Path) -> OutputStatus:
    kind = next((text for name, text in output_names.KINDS.items() if (folder / name).exists()), "")
    writer = read(folder)
    if writer is not None and writer.alive:
        age = max(round(time.time() - writer.updated), 0)
        return OutputStatus(folder=folder, kind=kind, state="running", writer=writer, age_s=age)
    if files.is_finished(folder):
        return OutputStatus(folder=folder, kind=kind, state="finished")
    age_s = None if writer is None else max(round(time.time() - writer.updated), 0)
    return OutputStatus(folder=folder, kind=kind, state="stopped", writer=writer, age_s=age_s)


def read(folder: Path) -> heartbeat.Heartbeat | None:
    """Return what the writer of a folder last reported, None if it has none. Raises SourceError."""
    path = folder / heartbeat.NAME
    try:
        document = files.parse_json(path.read_bytes())
        return files.parse(heartbeat.Heartbeat, document, str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SettingError) as error:
        raise SourceError(f"{path}: cannot be read ({error!s:.100}); remove it") from None
