"""What a ledger says of its tables: figures with intervals, their reasons and costs, and sentences computed from them.

Nothing here is measured or trained: it reads the run folders that `campaign` names.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgdata import files
from sgdata.audits import findings
from sgdata.shards import contracts
from sgmodel.ledger import experiments
from sgmodel.ledger.experiments import LedgerRecipe, Reason, Row, Run, Table

Figure = dict[str, Any]


def table(recipe: LedgerRecipe, which: Table, paths: experiments.LedgerPaths) -> dict[str, Any]:
    """A table as it stands in `ledger.json`. Raises SettingError, SourceError."""
    contract = contracts.read(paths.data[which.data]) if which.data in paths.data else None
    report = contract and audited(paths.data[which.data], f"{contract.dataset} {contract.version}")
    lines = [line(recipe, which, row, paths) for row in which.rows]
    return {
        "name": which.name,
        "program": which.program,
        "note": which.note,
        "metrics": which.metrics,
        "data": contract
        and {"dataset": contract.dataset, "version": contract.version, "fingerprint": contract.fingerprint},
        "rows": lines,
        "sentences": [verdict(lines, pair, metric) for pair in which.compare for metric in which.metrics],
        "audit": [
            {"check": check.name, "told": check.told}
            for check in (report.checks if report else ())
            if check.state == "finding"
        ],
        # Without an audit nobody has looked: that is not the same as nothing found.
        "audited": report is not None,
    }


def line(recipe: LedgerRecipe, which: Table, row: Row, paths: experiments.LedgerPaths) -> dict[str, Any]:
    """A row as it stands in `ledger.json`: no figure but of runs that are done, all seeds of them."""
    absent = experiments.wanting(which, row, paths)
    made = experiments.runs(recipe, which, row, paths)
    done = absent is None and all(run.done for run in made)
    results = [run.results for run in made] if done else []
    figures = {name: figure(results, name, row.published.get(name)) for name in which.metrics}
    return {
        "name": row.name,
        "start": row.start,
        "state": "run" if done else f"not run: {absent or 'failed'}",
        "weights": experiments.source(row.weights) if row.weights else None,
        "figures": figures,
        "reasons": [] if done else [absent or "failed"],
        **({"reasons": reasons(row, figures), "cost": cost(recipe, made, results, paths)} if done else {}),
        "runs": [told(run, done=done) for run in dict.fromkeys(each for run in made for each in run.chain)],
    }


def told(run: Run, *, done: bool) -> dict[str, Any]:
    """The folder of a run and the fingerprint of its recipe."""
    folder = f"runs/{run.folder.name}" if done else ""
    return {"folder": folder, "program": run.program, "seed": run.seed, "recipe_sha256": files.sha256(run.recipe)}


def figure(results: Sequence[dict[str, Any]], name: str, published: float | None) -> Figure:
    """One metric over the seeds: Student's interval over several, that of the run's own bootstrap beside a single."""
    values = [_at(result, name) for result in results]
    mean = statistics.fmean(values) if values else None
    single = results[0].get(f"{name}_interval") if len(results) == 1 else None
    return {
        "published": published,
        "values": values,
        "mean": mean,
        "interval": single or interval(values),
        "interval_over": "scored samples" if single else "seeds" if len(values) > 1 else None,
        "gap": None if mean is None or published is None else mean - published,
    }


def _at(result: dict[str, Any], name: str) -> float:
    value: Any = result
    for part in name.split("."):
        value = value[part]
    return float(value)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean (Student's t over seeds); None from fewer than two."""
    if len(values) < 2:
        return None
    from scipy import stats

    mean = statistics.fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return (mean - half, mean + half)


def reasons(row: Row, figures: dict[str, Figure]) -> list[Reason]:
    """What the recipe declares, and what can be found out."""
    found = list(row.reasons)
    if not any(each["published"] is not None for each in figures.values()):
        found.append("not published")
    if all(len(each["values"]) == 1 for each in figures.values()):
        found.append("one seed")
    return found


def cost(
    recipe: LedgerRecipe, made: Sequence[Run], results: Sequence[dict[str, Any]], paths: experiments.LedgerPaths
) -> dict[str, Any]:
    """Of one seed: parameters, steps, and those of the runs whose weights it started from."""
    own = experiments.work(made[0], recipe, paths)
    before = [experiments.work(run, recipe, paths) for run in made[0].chain[:-1]]
    return {
        "parameters": own.parameters,
        "steps": results[0].get("steps", own.steps),
        "steps_before": sum(each.steps for each in before),
        "flops": own.flops + sum(each.flops for each in before),
    }


# --- sentences -----------------------------------------------------------------------------


def verdict(lines: Sequence[dict[str, Any]], pair: tuple[str, str], metric: str) -> str:
    """Whether the first row of `pair` beats the second, and why it can or cannot be said."""
    first, second = pair
    rows = {each["name"]: each for each in lines}
    ours, theirs = (rows[name]["figures"][metric] for name in pair)
    for name in pair:
        if rows[name]["state"] != "run":
            return f"{first} against {second} on {metric}: undecided, because {name} was {rows[name]['state']}."
    numbers = f"{_spoken(ours)} against {_spoken(theirs)}"
    if not ours["interval"] or not theirs["interval"]:
        return f"{first} against {second} on {metric}: undecided, because one run has no interval ({numbers})."
    if ours["interval"][0] > theirs["interval"][1]:
        return f"{first} beats {second} on {metric}: {numbers}; the intervals do not overlap."
    apart = ours["interval"][1] < theirs["interval"][0]
    why = "it is worse and the intervals do not overlap" if apart else "the intervals overlap"
    return f"{first} does not beat {second} on {metric}, because {why}: {numbers}."


def _spoken(each: Figure) -> str:
    span, count = each["interval"], len(each["values"])
    inside = f" ({span[0]:.3f} to {span[1]:.3f} over {count} seeds)" if span and count > 1 else ""
    return f"{each['mean']:.3f}{inside}"


def audited(folder: Path, subject: str) -> findings.Report | None:
    """The audit of a folder of shards, which lies in it or beside it; None where nobody has looked.

    Raises SettingError.
    """
    paths = (Path(place, findings.NAME) for place in (folder, f"{folder}-audit", folder.parent / "audit"))
    reports = (findings.read(path) for path in paths if path.exists())
    # What lies beside may be of another folder there.
    return next((report for report in reports if report.subject == subject), None)
