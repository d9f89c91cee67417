"""Print the longer results of commands: tables, the months of a plan, the checks of an audit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdata.errors import one_line

if TYPE_CHECKING:
    from sgdata.audits.findings import AuditReport
    from sgdata.builds.build_recipe import BuildPaths
    from sgdata.scenes.lock import Lock


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; without column names as plain lines, which are easy to copy."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns) if columns else Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    # No markup, or rich would take text in square brackets for a style and remove it.
    Console(markup=False, highlight=False).print(table)


def show_plan(planned: Lock, paths: BuildPaths, *, name: str, address: str, as_json: bool) -> str:
    """Print the area of a plan, its scenes per month, its cost and its lock; return a description of its holes."""
    from sgdata import files
    from sgdata.scenes import build_cost, coverage
    from sgdata.scenes import lock as locks

    months = coverage.count_months(planned)
    cost = build_cost.estimate_cost(planned, address, workers=paths.workers)
    holes = coverage.describe_sparse_months(months)
    ground = coverage.summarise_area(planned)
    if as_json:
        about = {"lock": paths.out / locks.NAME, "area": ground, "months": months, "cost": cost}
        about |= {"baselines": coverage.describe_baselines(planned), "dropped": planned.dropped}
        # Nothing but the document, which a program reads; it includes the holes.
        print(
            files.pretty_json(about).decode(),
            end="",
        )
        return holes
    size, where_is = "x".join(map(str, ground.pixels)), f"{ground.latitude:.4f} N {ground.longitude:.4f} E"
    print(
        f"{one_line(name)}: centre {where_is}, {ground.km2:,.2f} km2, {size} pixels, {ground.crs}, "
        f"{ground.covered:.1%} covered"
    )
    # Decimal MB, the unit in which providers meter traffic.
    rows = []
    for month in months:
        passes = f"{month.passes} hole" if month.hole else f"{month.passes}"
        megabytes = f"{month.bytes / 1e6:,.0f}"
        rows.append((month.month, passes, f"{month.expected:g}", f"{month.scenes}", megabytes))
    passed, total = sum(month.passes for month in months), sum(month.bytes for month in months)
    rows.append(("all", f"{passed}", "", f"{len(planned.items)}", f"{total / 1e6:,.0f}"))
    show_table(("month", "passes", "expected", "scenes", "MB raw"), rows)
    for dropped in planned.dropped:
        print(one_line(f"left out: {dropped.id}: {dropped.reason}"))
    print(coverage.describe_baselines(planned))
    print(
        f"about {cost.read_bytes / 1e6:,.0f} MB to read, {cost.scratch_bytes / 1e6:,.0f} MB of scratch, "
        f"about {cost.minutes} min with --workers {paths.workers}"
    )
    print(paths.out / locks.NAME)
    return holes


def show_comparison(report: Mapping[str, Any]) -> None:
    """Print the placed windows, classes and bands of a comparison with a released set."""
    show_table(
        ("class", "published %", "released %", "build %", "IoU"),
        [
            (
                row["class"],
                *(f"{100 * row[key]:.2f}" for key in ("published_share", "released_share", "build_share")),
                "" if row["iou"] is None else f"{row['iou']:.3f}",
            )
            for row in report["classes"]
        ],
    )
    keys = ("released_mean", "build_mean", "difference", "rmse", "correlation")
    rows = [(row["band"], *("" if row[key] is None else f"{row[key]}" for key in keys)) for row in report["bands"]]
    show_table(("band", "released DN", "build DN", "difference", "RMSE", "correlation"), rows)
    agreed = "" if report["agreement"] is None else f", {report['agreement']:.1%} of the pixels have the same class"
    unmapped = f", {report['unmapped_share']:.1%} are unmapped in the build"
    print(f"{report['placed']} of {report['windows']} windows placed, {report['copies']} copies{agreed}{unmapped}")


def show_audit(report: AuditReport, *, folder: Path | None, as_json: bool) -> bool:
    """Print an audit and its path, and return whether it has findings."""
    from sgdata import files

    if as_json:
        print(files.pretty_json(report).decode(), end="")
    else:
        rows = ((check.state, check.name, check.message) for check in report.checks)
        show_table(("state", "check", "result"), rows)
        print(folder or f"{report.findings} findings in {report.samples} samples")
    return report.findings > 0
