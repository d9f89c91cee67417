"""Reproduce tables of results with one command: train the missing runs, then write the ledger.

    python -m sgmodel.recipes.reproduce recipes/ledger/city.toml --shards DIR --shards DIR --out DIR [--plan]

Every run has a folder of its own and is trained by the same program that a user calls, so that an interrupted ledger
can be resumed. A run whose recipe, data or weights have changed is trained again in a new folder. A row whose data or
weights are absent is listed as not run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sgdata import files, output_lock, output_names, pool
from sgdata.errors import ExitCode
from sgdata.pages import html
from sgdata.pages import ledger as shown
from sgmodel.ledger import costs, experiments, missing_data, report
from sgmodel.ledger.experiments import LedgerPaths, LedgerRecipe, LedgerRun

TIMINGS = output_names.TIMINGS


def main(recipe: LedgerRecipe, paths: LedgerPaths, *, workers: int = 1, cluster: str | None = None) -> int:
    """Train every missing run, then write the ledger.

    Args:
        recipe: Recipe of the ledger.
        paths: Paths and machine settings.
        workers: Runs at a time on this machine.
        cluster: Address of a Dask scheduler, whose workers train one run at a time each.

    Returns:
        The exit code: 0, or 3 if a run failed.

    Raises:
        SettingError: A recipe is invalid.
        OutputError: A file cannot be written.
    """
    experiments.check(recipe)
    paths = pool.absolute(paths) if cluster else paths
    with output_lock.only_writer(paths.out):
        files.mark_unfinished(paths.out)
        failed = train_missing_runs(possible_runs(recipe, paths), paths.out, workers, cluster)
        write(recipe, paths)
    return ExitCode.FINDINGS if failed else ExitCode.DONE


def possible_runs(recipe: LedgerRecipe, paths: LedgerPaths) -> list[LedgerRun]:
    """Return the runs of all rows whose inputs exist, each once, after the runs that it starts from."""
    runs: dict[Path, LedgerRun] = {}
    for table in recipe.tables:
        for row in table.rows:
            if experiments.missing_input(table, row, paths) is None:
                for last in experiments.plan_runs(recipe, table, row, paths):
                    runs |= {run.folder: run for run in last.chain}
    return list(runs.values())


def train_missing_runs(runs: Sequence[LedgerRun], out: Path, workers: int, cluster: str | None) -> list[str]:
    """Train the missing runs, in groups whose starting weights exist; return the names of those that failed.

    Runs that start from a failed one are skipped.
    """
    missing = [run for run in runs if not run.done]
    failed: list[str] = []
    print(f"{len(missing)} of {len(runs)} runs missing", file=sys.stderr)
    while ready := [run for run in missing if run.after is None or run.after.done]:
        missing = [run for run in missing if run not in ready]
        # A worker needs no facts of the previous runs, which are finished.
        bare = [replace(run, after=None) for run in ready]
        made = pool.run(experiments.train_run, bare, workers=workers, cluster=cluster, folder=out)
        for run, (seconds, cpu_s, error) in zip(ready, made, strict=True):
            print(f"{run.folder.name}: {error or f'{seconds:.0f} s'}", file=sys.stderr, flush=True)
            if error:
                failed.append(run.folder.name)
            with (out / TIMINGS).open("a", encoding="utf-8") as log:
                used = {"seconds": round(seconds, 1), "cpu_s": round(cpu_s, 1)}
                log.write(json.dumps({"run": run.folder.name, **used, "error": error}) + "\n")
    return failed


def write(recipe: LedgerRecipe, paths: LedgerPaths) -> Path:
    """Write `ledger.json`, `ledger.md`, `page/index.html` and SHA256SUMS; return the path of the JSON."""
    tables = [report.table(recipe, table, paths) for table in recipe.tables]
    document = files.to_plain({"title": recipe.title, "tables": tables})
    files.write(paths.out / output_names.LEDGER, files.pretty_json(document))
    files.write(paths.out / "ledger.md", shown.markdown(document).encode())
    intro = "Figures measured here beside published ones. Rows that were not run have no figures. "
    intro += shown.INTERVAL
    html.write(paths.out / "page" / "index.html", title=recipe.title, intro=intro, blocks=shown.build_blocks(document))
    files.write_sums(paths.out, _sums_of_runs(paths.out))
    return paths.out / output_names.LEDGER


def _sums_of_runs(out: Path) -> dict[str, str]:
    """Return the hashes that finished runs have of their files, which are not read again, by the path in `out`."""
    known = {}
    for folder in sorted((out / "runs").glob("*")):
        if files.is_finished(folder):
            for name, digest in files.read_sums(folder).items():
                known[f"runs/{folder.name}/{name}"] = digest
    return known


# --- the plan ------------------------------------------------------------------------------


def plan(recipe: LedgerRecipe, paths: LedgerPaths, workers: int = 1) -> Iterator[str]:
    """Yield a line per row with the missing runs, their steps and hours, then commands for the rows that cannot run.

    Runs that several rows share count once. Shards in the default folders count as given.
    """
    from sgmodel.ledger import gpu_batch_sizes

    experiments.check(recipe)
    given, found = paths, missing_data.on_disk(recipe, paths.data)
    paths = replace(given, data={**given.data, **found})
    counted: set[Path] = set()
    total = here = 0.0
    possible = 0
    for table in recipe.tables:
        yield f"{table.name}  ({table.program} on {table.data}; {', '.join(table.metrics)})"
        for row in table.rows:
            left: dict[Path, LedgerRun] = {}
            wanted = experiments.plan_runs(recipe, table, row, paths)
            for last in wanted:
                left |= {run.folder: run for run in last.chain if not run.done and run.folder not in counted}
            works = [costs.work(run, recipe, paths) for run in left.values()]
            hours = sum(recipe.start_s + work.flops / recipe.flops_per_s for work in works) / 3600
            absent = experiments.missing_input(table, row, paths)
            message = f"{len(left)} runs, {sum(work.steps for work in works):,} steps, {_format_hours(hours)}"
            if works:
                message += f", up to {max(work.parameters for work in works):,} parameters, "
                message += gpu_batch_sizes.describe(max(costs.peak_memory(run, recipe, paths) for run in left.values()))
            if absent:
                message += f"; not to be run: {absent}"
            else:
                here += hours
                possible += 1
            if differences := experiments.differences(table, row, wanted[0], paths):
                message += f"; {row.protocol or table.protocol}: {', '.join(differences)}"
            yield f"  {row.name} ({row.start}): {message}"
            counted |= set(left)
            total += hours
    rows = sum(len(table.rows) for table in recipe.tables)
    yield f"{possible} of {rows} rows can be run with what is here"
    yield (
        f"{_format_hours(total)}, {_format_hours(here)} of them for rows whose inputs exist "
        f"({_format_hours(here / workers)} with --workers {workers} on an idle machine). "
        f"A run: {recipe.start_s:g} s + operations / {recipe.flops_per_s:.3g} FLOP/s; operations = 3 x those of one "
        "forward pass (about 2 x parameters x tokens) x steps x batch; 1 x for a frozen backbone. Memory: at most, on "
        "one GPU at the batch and precision of the recipe; 'sgmodel sizes' has other batches, precisions and shards"
    )
    yield from missing_data.commands(recipe, given, found)


def _format_hours(hours: float) -> str:
    return f"{60 * hours:.1f} min" if hours < 2 else f"{hours:,.1f} h"
