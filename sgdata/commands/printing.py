"""Print the longer results of commands: tables, the months of a plan, the checks of an audit."""

from __future__ import annotations

import sys
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


def show_folder(folder: Path, findings: Iterable[str]) -> None:
    """Print the folder of an output on stdout, and findings on stderr."""
    print(folder)
    for text in findings:
        print(text, file=sys.stderr)


def describe_plan(planned: Lock, paths: BuildPaths, *, address: str) -> dict[str, Any]:
    """Return the area of a plan, its scenes per month, its cost and its lock as a document."""
    from sgdata.builds import build_cost, plan_summary
    from sgdata.scenes import lock as locks

    return {
        "lock": paths.out / locks.NAME,
        "area": plan_summary.summarise_area(planned),
        "months": plan_summary.count_months(planned),
        "cost": build_cost.estimate_cost(planned, address, workers=paths.workers),
        "baselines": plan_summary.describe_baselines(planned),
        "dropped": planned.dropped,
    }


def show_plan(planned: Lock, paths: BuildPaths, *, name: str, address: str) -> None:
    """Print the area of a plan, its scenes per month, its cost and its lock."""
    from sgdata.builds import build_cost, plan_summary
    from sgdata.scenes import lock as locks

    months = plan_summary.count_months(planned)
    cost = build_cost.estimate_cost(planned, address, workers=paths.workers)
    ground = plan_summary.summarise_area(planned)
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
    print(plan_summary.describe_baselines(planned))
    print(
        f"about {cost.read_bytes / 1e6:,.0f} MB to read, {cost.scratch_bytes / 1e6:,.0f} MB of scratch, "
        f"about {cost.minutes} min with --workers {paths.workers}"
    )
    print(paths.out / locks.NAME)


def show_comparison(report: Mapping[str, Any]) -> None:
    """Print the placed windows, classes and bands of a comparison with a released set."""
    placed = f"{report['placed']} of {report['windows']} windows placed, {report['copies']} copies"
    if not report["placed"]:
        best = max(place["correlation"] for place in report["places"])
        print(
            f"{placed}; the highest correlation is {best:.2f}, expected {report['least_correlation']:g} or more; "
            "build the ground of the windows, or lower --least"
        )
        return
    if report["agreement"] is not None:  # else the windows have no labels
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
        placed += f", {report['agreement']:.1%} of the pixels have the same class"
        placed += f", {report['unmapped_share']:.1%} are unmapped in the build"
    keys = ("released_mean", "build_mean", "difference", "rmse", "correlation")
    rows = [(row["band"], *("" if row[key] is None else f"{row[key]}" for key in keys)) for row in report["bands"]]
    show_table(("band", "released DN", "build DN", "difference", "RMSE", "correlation"), rows)
    print(placed)


def show_audit(report: AuditReport, *, folder: Path | None) -> None:
    """Print an audit and its path."""
    show_table(("state", "check", "result"), ((check.state, check.name, check.message) for check in report.checks))
    print(folder or f"{report.findings} findings in {report.samples} samples")
