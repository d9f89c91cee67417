"""Report the tables of a ledger: figures with intervals, reasons, costs, and verdicts computed from them.

Everything is read from the run folders that `experiments` names.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files
from sgdata.audits import findings
from sgdata.errors import SettingError
from sgdata.results import scores_by_distance
from sgdata.shards import contracts, shard_index
from sgdata.splits import ground_distance, ground_splits
from sgmodel.ledger import costs, experiments, paired_bootstrap, published_figures
from sgmodel.ledger.experiments import LedgerRecipe, LedgerRow, LedgerRun, LedgerTable, Reason
from sgmodel.ledger.published_figures import PublishedFigure

Figure = dict[str, Any]


def table(recipe: LedgerRecipe, which: LedgerTable, paths: experiments.LedgerPaths) -> dict[str, Any]:
    """Return a table of `ledger.json`. Raises SettingError, SourceError."""
    contract = contracts.read(paths.data[which.data]) if which.data in paths.data else None
    data, audit = None, None
    if contract is not None:
        data = {"dataset": contract.dataset, "version": contract.version, "fingerprint": contract.fingerprint}
        audit = find_audit(paths.data[which.data], f"{contract.dataset} {contract.version}")
    lines = [line(recipe, which, row, paths) for row in which.rows]
    checks = audit.checks if audit else ()
    return {
        "name": which.name,
        "program": which.program,
        "note": which.note,
        "metrics": which.metrics,
        "data": data,
        "rows": [*lines, *quoted(which)],
        "protocols": [
            {
                "name": name,
                "subject": published_figures.protocol(name).subject,
                "about": published_figures.protocol(name).about,
            }
            for name in dict.fromkeys(line["protocol"] for line in (*lines, *quoted(which)) if line["protocol"])
        ],
        "sentences": [
            verdict(lines, pair, metric, paired_difference(recipe, which, pair, metric, paths))
            for pair in which.compare
            for metric in which.metrics
        ],
        "beside": which.beside,
        "audit": [{"check": check.name, "message": check.message} for check in checks if check.state == "finding"],
        # Distinguishes data without an audit from an audit without findings.
        "audited": audit is not None,
    }


def line(recipe: LedgerRecipe, which: LedgerTable, row: LedgerRow, paths: experiments.LedgerPaths) -> dict[str, Any]:
    """Return a row of `ledger.json`, which has figures only if the runs of all seeds are done."""
    absent = experiments.missing_input(which, row, paths)
    runs = experiments.plan_runs(recipe, which, row, paths)
    done = absent is None and all(run.done for run in runs)
    results = [run.results for run in runs] if done else []
    known = experiments.figures_of(which, row)
    figures = {name: figure(results, name, known.get(name)) for name in which.metrics}
    differences = experiments.differences(which, row, runs[0], paths)
    document: dict[str, Any] = {
        "name": row.name,
        "start": row.start,
        "state": "run" if done else f"not run: {absent or 'failed'}",
        "weights": experiments.source(row.weights) if row.weights else None,
        "figures": figures,
        "protocol": row.protocol or which.protocol if row.published else None,
        "reasons": list(dict.fromkeys([*(reasons(row, figures) if done else [absent or "failed"]), *differences])),
    }
    if done:
        document["cost"] = cost(recipe, runs, results, paths)
        document["by_distance"] = by_distance(results)
    chains = dict.fromkeys(each for run in runs for each in run.chain)
    document["runs"] = [describe(run, done=done) for run in chains]
    return document


def quoted(which: LedgerTable) -> list[dict[str, Any]]:
    """Return the rows of figures beside which nothing is run."""
    return [
        {
            "name": model,
            "start": "quoted",
            "state": "quoted",
            "weights": None,
            "figures": {name: figure([], name, figures.get(name)) for name in which.metrics},
            "protocol": protocol,
            "reasons": [],
            "runs": [],
        }
        for protocol in which.quoted
        for model, figures in published_figures.figures(protocol).items()
    ]


def describe(run: LedgerRun, *, done: bool) -> dict[str, Any]:
    """Return the folder of a run and the fingerprint of its recipe."""
    folder = f"runs/{run.folder.name}" if done else ""
    return {"folder": folder, "program": run.program, "seed": run.seed, "recipe_sha256": files.sha256(run.recipe)}


def figure(results: Sequence[dict[str, Any]], name: str, known: PublishedFigure | None) -> Figure:
    """Return one metric with its interval: Student's over several seeds, the bootstrap's of the run for one."""
    values = [_at(result, name) for result in results]
    mean = statistics.fmean(values) if values else None
    single = results[0].get(f"{name}_interval") if len(results) == 1 else None
    return {
        "published": known.value if known else None,
        "source": known.source if known else None,
        "values": values,
        "mean": mean,
        "interval": single or interval(values),
        "interval_over": "scored samples" if single else "seeds" if len(values) > 1 else None,
        "gap": None if mean is None or known is None else mean - known.value,
    }


def by_distance(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the main figure of runs by band of distance to the training samples; none for runs without.

    Of each band: name, mean number of samples, mean of the runs that have samples in it, and the interval of `figure`.
    """
    runs = [{each["band"]: each for each in result.get(scores_by_distance.KEY) or ()} for result in results]
    bands = []
    for name in (name for _, name in (*scores_by_distance.METRES, *scores_by_distance.LIKENESS)):
        having = [run[name] for run in runs if name in run]
        if having:
            main = scores_by_distance.figure(having)
            values = [each[main] for each in having]
            single = having[0][f"{main}_interval"] if len(having) == 1 else None
            samples = round(statistics.fmean(each["samples"] for each in having))
            mean = statistics.fmean(values)
            bands.append({"band": name, "samples": samples, "mean": mean, "interval": single or interval(values)})
    return bands


def _at(result: dict[str, Any], name: str) -> float:
    value: Any = result
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, int | float):
        known = ", ".join(key for key in sorted(result) if isinstance(result[key], int | float))
        raise SettingError(f"metric '{name}': no figure of this name among {known}; correct metrics of the ledger")
    return float(value)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Compute the 95 % confidence interval of the mean (Student's t over seeds); None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy import stats

    mean = statistics.fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return (mean - half, mean + half)


def reasons(row: LedgerRow, figures: dict[str, Figure]) -> list[Reason]:
    """Return the reasons that the recipe declares, and those that follow from the figures."""
    known = list(row.reasons)
    if not any(each["published"] is not None for each in figures.values()):
        known.append("not published")
    if all(len(each["values"]) == 1 for each in figures.values()):
        known.append("one seed")
    return known


def cost(
    recipe: LedgerRecipe, runs: Sequence[LedgerRun], results: Sequence[dict[str, Any]], paths: experiments.LedgerPaths
) -> dict[str, Any]:
    """Return the cost of the first seed: parameters, steps and operations, including runs that it starts from."""
    own = costs.work(runs[0], recipe, paths)
    before = [costs.work(run, recipe, paths) for run in runs[0].chain[:-1]]
    return {
        "parameters": own.parameters,
        "steps": results[0].get("steps", own.steps),
        "steps_before": sum(each.steps for each in before),
        "flops": own.flops + sum(each.flops for each in before),
    }


# --- verdicts ------------------------------------------------------------------------------


def paired_difference(
    recipe: LedgerRecipe, which: LedgerTable, pair: tuple[str, str], metric: str, paths: experiments.LedgerPaths
) -> paired_bootstrap.PairedDifference | None:
    """Return how two rows differ sample by sample; None if one was not run, or has no scores of single samples."""
    rows = {row.name: row for row in which.rows}
    ours, theirs = (experiments.plan_runs(recipe, which, rows[name], paths) for name in pair)
    if not all(run.done for run in (*ours, *theirs)):
        return None
    blocks = blocks_of_ground(paths.data[ours[0].data], which.block_m) if which.block_m else None
    return paired_bootstrap.compare([run.folder for run in ours], [run.folder for run in theirs], metric, blocks)


def blocks_of_ground(folder: Path, block_m: float) -> dict[str, object]:
    """Return the block of ground of each sample of shards by key, a sample without a place its own key.

    Args:
        folder: Folder of shards.
        block_m: Side of a block in metres.
    """
    index = shard_index.read_index(folder)
    keys = index["key"].to_pylist()
    boxes = np.array([index[side].to_pylist() for side in ("west", "south", "east", "north")], float).T
    known = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    where = ground_distance.from_boxes(boxes[known], np.ones((len(known), 2)), 1.0, np.zeros(len(known), bool))
    places = map(tuple, ground_splits.block_indices(where, block_m).tolist())
    return {**{key: key for key in keys}, **{keys[at]: place for at, place in zip(known, places, strict=True)}}


def verdict(
    lines: Sequence[dict[str, Any]],
    pair: tuple[str, str],
    metric: str,
    found: paired_bootstrap.PairedDifference | None = None,
) -> str:
    """Return a sentence that says whether the first row of `pair` beats the second, and why.

    Args:
        lines: Rows of `ledger.json`.
        pair: Names of two of them.
        metric: Name of the figure.
        found: Their difference sample by sample, which decides where it is known.
    """
    first, second = pair
    rows = {each["name"]: each for each in lines}
    ours, theirs = (rows[name]["figures"][metric] for name in pair)
    for name in pair:
        if rows[name]["state"] != "run":
            return f"{first} against {second} on {metric}: undecided, because {name} was {rows[name]['state']}."
    numbers = f"{_format(ours)} against {_format(theirs)}"
    if found is not None:
        low, high = found.interval
        units = f"{found.samples} samples" + (f" in {found.blocks} blocks" if found.blocks else "")
        span = f"{found.difference:+.3f} ({low:+.3f} to {high:+.3f}, paired over {units})"
        beats = f"{first} beats {second}" if low > 0 else f"{first} does not beat {second}"
        why = "" if low > 0 else "it is worse, " if high < 0 else "the interval of the difference includes zero, "
        return f"{beats} on {metric}{', because ' if why else ': '}{why}{span}: {numbers}."
    if not ours["interval"] or not theirs["interval"]:
        return f"{first} against {second} on {metric}: undecided, because one run has no interval ({numbers})."
    if ours["interval"][0] > theirs["interval"][1]:
        return f"{first} beats {second} on {metric}: {numbers}; the intervals do not overlap."
    apart = ours["interval"][1] < theirs["interval"][0]
    why = "it is worse and the intervals do not overlap" if apart else "the intervals overlap"
    return f"{first} does not beat {second} on {metric}, because {why}: {numbers}."


def _format(each: Figure) -> str:
    limits, count = each["interval"], len(each["values"])
    interval = f" ({limits[0]:.3f} to {limits[1]:.3f} over {count} seeds)" if limits and count > 1 else ""
    return f"{each['mean']:.3f}{interval}"


def find_audit(folder: Path, subject: str) -> findings.AuditReport | None:
    """Return the audit of a folder of shards, which is in it or beside it; None if there is none.

    Raises:
        SettingError: An audit cannot be read.
    """
    for parent in (folder, Path(f"{folder}-audit"), folder.parent / "audit"):
        if (parent / findings.NAME).exists():
            report = findings.read(parent / findings.NAME)
            if report.subject == subject:  # an audit beside the folder may be that of another dataset
                return report
    return None
