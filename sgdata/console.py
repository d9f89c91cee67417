"""What the commands print at length: the months of a plan, the checks of an audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgdata.audit import Report
    from sgdata.datasets.segmunich import Places
    from sgdata.lock import Lock


def show_plan(planned: Lock, places: Places, *, where: str, as_json: bool) -> str:
    """Print the month table of a plan, its cost, and where its lock lies; returns its holes in words."""
    from rich.console import Console
    from rich.table import Table

    from sgdata import files, passes
    from sgdata import lock as locks

    months = passes.months(planned)
    cost = passes.cost(planned, where, workers=places.workers)
    holes = passes.holes(months)
    if as_json:
        about = {"lock": places.out / locks.NAME, "months": months, "cost": cost}
        # Only the document, for a program reads it; the holes are in it.
        print(files.pretty_json(about | {"dropped": planned.dropped}).decode(), end="")
        return holes
    # Decimal MB, as providers meter traffic.
    table = Table("month", "passes", "expected", "scenes", "MB raw")
    for m in months:
        seen = f"{m.passes} hole" if m.hole else str(m.passes)
        table.add_row(m.month, seen, f"{m.expected:g}", str(m.scenes), f"{m.bytes / 1e6:,.0f}")
    total = sum(m.bytes for m in months)
    table.add_row("all", str(sum(m.passes for m in months)), "", str(len(planned.items)), f"{total / 1e6:,.0f}")
    console = Console()
    console.print(table)
    for dropped in planned.dropped:
        # No markup: an id in square brackets would vanish as a style.
        console.print(f"left out: {dropped.id}: {dropped.reason}", highlight=False, markup=False)
    print(
        f"about {cost.read_bytes / 1e6:,.0f} MB to read, {cost.scratch_bytes / 1e6:,.0f} MB of scratch, "
        f"about {cost.minutes} min with --workers {places.workers}"
    )
    print(places.out / locks.NAME)
    return holes


def show_audit(report: Report, *, where: Path | None, as_json: bool) -> bool:
    """Print a report, and where it lies; whether it has findings."""
    from rich.console import Console
    from rich.table import Table

    from sgdata import files

    if as_json:
        print(files.pretty_json(report).decode(), end="")
    else:
        table = Table("state", "check", "what was found")
        for check in report.checks:
            table.add_row(check.state, check.name, check.told)
        Console().print(table, markup=False)
        print(where or f"{report.findings} findings in {report.samples} samples")
    return report.findings > 0
