"""What the commands print at length: tables, the months of a plan, the checks of an audit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgdata.audits.findings import Report
    from sgdata.builds.build_recipe import BuildPaths
    from sgdata.scenes.lock import Lock


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their heads; without heads as plain lines, for people to copy."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns) if columns else Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    # No markup: what stands in square brackets, an id or an option, would vanish as a style.
    Console(markup=False, highlight=False).print(table)


def show_plan(planned: Lock, places: BuildPaths, *, where: str, as_json: bool) -> str:
    """Print the month table of a plan, its cost, and where its lock lies; returns its holes in words."""
    from sgdata import files
    from sgdata.scenes import coverage
    from sgdata.scenes import lock as locks

    months = coverage.months(planned)
    cost = coverage.cost(planned, where, workers=places.workers)
    holes = coverage.holes(months)
    if as_json:
        about = {"lock": places.out / locks.NAME, "months": months, "cost": cost}
        # Only the document, for a program reads it; the holes are in it.
        print(files.pretty_json(about | {"dropped": planned.dropped}).decode(), end="")
        return holes
    # Decimal MB, as providers meter traffic.
    rows = [
        (
            m.month,
            f"{m.passes} hole" if m.hole else f"{m.passes}",
            f"{m.expected:g}",
            f"{m.scenes}",
            f"{m.bytes / 1e6:,.0f}",
        )
        for m in months
    ]
    passed, total = sum(m.passes for m in months), sum(m.bytes for m in months)
    rows.append(("all", f"{passed}", "", f"{len(planned.items)}", f"{total / 1e6:,.0f}"))
    show_table(("month", "passes", "expected", "scenes", "MB raw"), rows)
    for dropped in planned.dropped:
        print(f"left out: {dropped.id}: {dropped.reason}")
    print(
        f"about {cost.read_bytes / 1e6:,.0f} MB to read, {cost.scratch_bytes / 1e6:,.0f} MB of scratch, "
        f"about {cost.minutes} min with --workers {places.workers}"
    )
    print(places.out / locks.NAME)
    return holes


def show_audit(report: Report, *, where: Path | None, as_json: bool) -> bool:
    """Print a report, and where it lies; whether it has findings."""
    from sgdata import files

    if as_json:
        print(files.pretty_json(report).decode(), end="")
    else:
        rows = ((check.state, check.name, check.told) for check in report.checks)
        show_table(("state", "check", "what was found"), rows)
        print(where or f"{report.findings} findings in {report.samples} samples")
    return report.findings > 0
