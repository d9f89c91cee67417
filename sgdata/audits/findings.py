"""The result of an audit (`audit.json`): one entry per check, with its figures and some of the samples concerned."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sgdata import files, output_names

NAME = output_names.AUDIT
# Number of sample keys to list per check; the figures have the counts.
SHOWN = 20

State = Literal["pass", "finding", "undecided", "not applicable"]
Kind = Literal["shards", "build", "raw"]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Result of one check.

    Attributes:
        name: Name of the check.
        state: Outcome.
        message: Outcome in words.
        figures: Figures that JSON can hold.
        where: Keys of at most SHOWN samples.
    """

    name: str
    state: State
    message: str
    figures: dict[str, Any] = field(default_factory=dict)
    where: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """All checks of one dataset, in a fixed order.

    Attributes:
        subject: `<dataset> <version>`.
        kind: What was audited.
        samples: Number of samples.
        checks: Results of the checks.
        findings: Number of checks with findings.
    """

    subject: str
    kind: Kind
    samples: int
    checks: tuple[CheckResult, ...]
    findings: int


def read(path: Path) -> AuditReport:
    """Read the report of an audit.

    Args:
        path: Path of an `audit.json`.

    Returns:
        The report.

    Raises:
        SettingError: The file is missing or malformed.
    """
    return files.read(AuditReport, path)
