"""What an audit says (`audit.json`): one line per check, with its figures and the samples that it points at."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sgdata import files

NAME = "audit.json"
# A leak of a thousand samples is shown by its first ones: the list is for looking, the figures are for counting.
SHOWN = 20

State = Literal["pass", "finding", "undecided", "not applicable"]
Kind = Literal["shards", "build", "raw"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question and its answer: `told` in words, `figures` as JSON, `where` at most SHOWN sample keys."""

    name: str
    state: State
    told: str
    figures: dict[str, Any] = field(default_factory=dict)
    where: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """All checks of one subject (`<dataset> <version>`), in a fixed order; `findings` is how many are findings."""

    subject: str
    kind: Kind
    samples: int
    checks: tuple[Check, ...]
    findings: int


def read(path: Path) -> Report:
    """The report in an `audit.json`. Raises SettingError."""
    return files.read(Report, path)
