"""Tables of results as one command: run what is missing, then write the ledger.

    python -m sgmodel.recipes.reproduce recipes/ledger/city.toml --shards DIR --shards DIR --out DIR [--plan]

Every run is a folder of its own, made by the program a user calls, so an interrupted ledger goes on where it stopped; a
run whose recipe, data or weights have changed is made anew. A row whose data or weights are not here is listed as not
run, never with a number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sgdata import files, pool
from sgdata.errors import ExitCode
from sgdata.pages import html
from sgdata.pages import ledger as shown
from sgmodel.ledger import experiments, report
from sgmodel.ledger.experiments import LedgerPaths, LedgerRecipe, Run

TIMINGS = files.TIMINGS


def main(recipe: LedgerRecipe, paths: LedgerPaths, *, workers: int = 1, cluster: str | None = None) -> int:
    """Make every missing run, then the ledger; 0, or 3 where a run failed. Raises SettingError, OutputError.

    The runs are made by `workers` processes here, or by those of the Dask scheduler `cluster`, one at a time each.
    """
    experiments.check(recipe)
    with files.only_writer(paths.out):
        failed = perform(wanted(recipe, paths), paths.out, workers, cluster)
        write(recipe, paths)
    return ExitCode.FINDINGS if failed else ExitCode.DONE


def wanted(recipe: LedgerRecipe, paths: LedgerPaths) -> list[Run]:
    """The runs of all rows that have their data and weights, each once, those first whose weights others take."""
    rows = [(table, row) for table in recipe.tables for row in table.rows]
    made = [experiments.runs(recipe, *each, paths) for each in rows if experiments.wanting(*each, paths) is None]
    return list({run.folder: run for runs in made for last in runs for run in last.chain}.values())


def perform(runs: Sequence[Run], out: Path, workers: int, cluster: str | None) -> list[str]:
    """Make what is not done, wave by wave as their weights come; what failed. A run that cannot start has none."""
    missing = [run for run in runs if not run.done]
    failed: list[str] = []
    print(f"{len(missing)} of {len(runs)} runs missing", file=sys.stderr)
    while wave := [run for run in missing if run.after is None or run.after.done]:
        missing = [run for run in missing if run not in wave]
        # A worker needs nothing of the runs before, which it does not make.
        bare = [replace(run, after=None) for run in wave]
        made = pool.run(experiments.make, bare, workers=workers, cluster=cluster)
        for run, (seconds, error) in zip(wave, made, strict=True):
            print(f"{run.folder.name}: {error or f'{seconds:.0f} s'}", file=sys.stderr, flush=True)
            if error:
                failed.append(run.folder.name)
            with (out / TIMINGS).open("a", encoding="utf-8") as log:
                log.write(json.dumps({"run": run.folder.name, "seconds": round(seconds, 1), "error": error}) + "\n")
    return failed


def write(recipe: LedgerRecipe, paths: LedgerPaths) -> Path:
    """`ledger.json`, `ledger.md` and `page/index.html` in the folder of the ledger; returns the JSON."""
    tables = [report.table(recipe, table, paths) for table in recipe.tables]
    document = files.plain({"title": recipe.title, "tables": tables})
    files.write(paths.out / files.LEDGER, files.pretty_json(document))
    files.write(paths.out / "ledger.md", shown.markdown(document).encode())
    intro = "Figures measured here beside those published, each from run folders that repeat. No run, no number. "
    intro += shown.INTERVAL
    html.write(paths.out / "page" / "index.html", title=recipe.title, intro=intro, blocks=shown.blocks(document))
    return paths.out / files.LEDGER


# --- the plan ------------------------------------------------------------------------------


def plan(recipe: LedgerRecipe, paths: LedgerPaths, workers: int = 1) -> Iterator[str]:
    """A line per row: what is missing, how many steps, how long. Runs that several rows share count once."""
    experiments.check(recipe)
    counted: set[Path] = set()
    total = here = 0.0
    for table in recipe.tables:
        yield f"{table.name}  ({table.program} on {table.data}; {', '.join(table.metrics)})"
        for row in table.rows:
            left = {
                run.folder: run
                for last in experiments.runs(recipe, table, row, paths)
                for run in last.chain
                if not run.done and run.folder not in counted
            }
            works = [experiments.work(run, recipe, paths) for run in left.values()]
            hours = sum(recipe.start_s + work.flops / recipe.flops_per_s for work in works) / 3600
            lacking = experiments.wanting(table, row, paths)
            message = f"{len(left)} runs, {sum(work.steps for work in works):,} steps, {_spoken(hours)}"
            largest = f", up to {max(work.parameters for work in works):,} parameters" if works else ""
            yield f"  {row.name} ({row.start}): {message}{largest}{f'; not to be run: {lacking}' if lacking else ''}"
            counted |= set(left)
            total, here = total + hours, here + (0 if lacking else hours)
    yield (
        f"{_spoken(total)}, {_spoken(here)} of them for what can be run here ({_spoken(here / workers)} with --workers "
        f"{workers}, where nobody else works). A run: {recipe.start_s:g} s + operations / "
        f"{recipe.flops_per_s:.3g} FLOP/s; operations = 3 x those of one forward pass, counted on the model "
        "(about 2 x parameters x tokens) x steps x batch; 1 x under a frozen backbone"
    )


def _spoken(hours: float) -> str:
    return f"{60 * hours:.1f} min" if hours < 2 else f"{hours:,.1f} h"
