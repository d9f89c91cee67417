"""A table of results as one command: run what is missing, then write the ledger.

    python -m sgmodel.recipes.reproduce recipes/ledger/city.toml --shards DIR --out DIR [--plan]

Each row combines a training recipe with seeds and starting weights; every run is a run folder of its own, made by
the same programs a user calls, so an interrupted ledger goes on where it stopped. A row whose weights are not there
is listed as not run, never with a number.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sgdata import catalog, contracts, files, page
from sgdata.errors import SettingError, SgdataError, SourceError

ABSENT = "not run: weights absent"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the ledger. `pretrain` is the recipe whose run gives the starting weights, `weights` a file that
    must be there; `published` is the figure of the paper, left out where there is none."""

    name: str
    start: Literal["random", "pretrained here", "published"]
    program: Literal["segment", "classify"]
    recipe: str
    pretrain: str | None = None
    weights: str | None = None
    published: float | None = None
    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A ledger: its rows, the key of `results.json` that it compares, the seeds of each row."""

    title: str
    metric: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training to be made: its folder, and the command that makes it."""

    folder: Path
    command: tuple[str, ...]

    @property
    def done(self) -> bool:
        """A finished run closes with its sums."""
        return (self.folder / files.SUMS).exists()


def runs(recipe: Recipe, row: Row, shards: Path, out: Path) -> list[Run]:
    """The runs of a row in the order they must be made; none where its weights are not there."""
    if row.weights is not None and not Path(row.weights).exists():
        return []
    before, weights = [], row.weights
    if row.pretrain is not None:
        folder = out / "runs" / Path(row.pretrain).stem
        # A recipe's name begins with its program's.
        before = [_run(folder.name.partition("-")[0], row.pretrain, shards, folder, ())]
        weights = str(folder / "checkpoint-last")
    start = () if weights is None else ("--weights", weights)
    changes = tuple(word for text in row.set for word in ("--set", text))
    made = []
    for seed in recipe.seeds:
        # By the row, for several rows may set different things over one recipe.
        slug = re.sub(r"\W+", "-", f"{row.program} {row.name} {row.start}").lower()
        folder = out / "runs" / f"{slug}-seed{seed}"
        seeded = (*start, *changes, "--set", f"training.seed={seed}")
        made.append(_run(row.program, row.recipe, shards, folder, seeded))
    return before + made


def _run(program: str, recipe: str, shards: Path, folder: Path, more: tuple[str, ...]) -> Run:
    path = catalog.folder("recipes") / recipe
    words = (sys.executable, "-m", f"sgmodel.recipes.{program}", str(path), "--shards", str(shards))
    return Run(folder=folder, command=(*words, "--out", str(folder), *more))


def line(recipe: Recipe, row: Row, made: list[Run], shards: Path) -> dict[str, Any]:
    """The row as it stands in `ledger.json`; the 95 % interval is Student's, over seeds."""
    figures = [
        json.loads((run.folder / "results.json").read_text())[recipe.metric] for run in made[-len(recipe.seeds) :]
    ]
    return {
        "name": row.name,
        "start": row.start,
        "state": "run" if figures else ABSENT,
        "published": row.published,
        "figures": figures,
        "mean": statistics.fmean(figures) if figures else None,
        "interval": interval(figures),
        "recipe": row.recipe,
        "recipe_sha256": files.sha256_file(catalog.folder("recipes") / row.recipe),
        "data": contracts.read(shards).fingerprint,
        "runs": [f"runs/{run.folder.name}" for run in made],
    }


def interval(figures: list[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean of `figures` (Student's t); None from fewer than two."""
    if len(figures) < 2:
        return None
    from scipy import stats

    mean = statistics.fmean(figures)
    half = float(stats.t.ppf(0.975, len(figures) - 1)) * statistics.stdev(figures) / math.sqrt(len(figures))
    return (mean - half, mean + half)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A ledger row as texts; what was not published or not run stays empty."""
    span = row["interval"]
    return (
        row["name"],
        row["start"],
        "" if row["published"] is None else f"{row['published']:.3f}",
        row["state"] if row["mean"] is None else f"{row['mean']:.3f}",
        "" if span is None else f"{span[0]:.3f} to {span[1]:.3f}",
        str(len(row["figures"])),
    )


COLUMNS = ("model", "weights", "published", "measured", "95 % interval", "seeds")


def write(out: Path, recipe: Recipe, rows: list[dict[str, Any]]) -> Path:
    """`ledger.json`, `ledger.md` and `page/index.html` in `out`; returns the JSON."""
    table = tuple(cells(row) for row in rows)
    files.write(out / "ledger.json", files.pretty_json({"title": recipe.title, "metric": recipe.metric, "rows": rows}))
    ruled = [COLUMNS, ("---",) * len(COLUMNS), *table]
    files.write(out / "ledger.md", "".join(f"| {' | '.join(line)} |\n" for line in ruled).encode())
    block = page.Table(title=recipe.metric, columns=COLUMNS, rows=table, caption="Interval: Student's t over seeds.")
    intro = "Figures measured here, each from run folders that repeat; what was not run has no number."
    page.write(out / "page" / "index.html", title=recipe.title, intro=intro, blocks=[block])
    return out / "ledger.json"


def main(recipe: Recipe, shards: Path, out: Path, *, only_plan: bool) -> Path:
    """Make every missing run, then the ledger; `only_plan` says what is missing. Raises SettingError, SourceError."""
    planned = [(row, runs(recipe, row, shards, out)) for row in recipe.rows]
    missing = {run.folder: run for _, made in planned for run in made if not run.done}
    for row, made in planned:
        left = sum(not run.done for run in made)
        print(f"{row.name}, {row.start}: {f'{left} of {len(made)} runs missing' if made else ABSENT}", file=sys.stderr)
    if only_plan:
        return out
    for number, run in enumerate(missing.values(), 1):
        print(f"run {number} of {len(missing)}: {run.folder.name}", file=sys.stderr, flush=True)
        # Spinning threads stall each other on a machine that does anything else; no result depends on it.
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
        if subprocess.run([*run.command, "-q"], env=environment, check=False).returncode:
            raise SourceError(f"run {run.folder.name} failed; its message stands above, the same command goes on")
    return write(out, recipe, [line(recipe, row, made, shards) for row, made in planned])


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sgmodel.recipes.reproduce",
        epilog="Example: python -m sgmodel.recipes.reproduce recipes/ledger/city.toml --shards out/shards",
    )
    parser.add_argument("recipe", nargs="?", type=Path, help="a ledger; without it, those that come with the package")
    parser.add_argument("--shards", type=Path, help="folder of shards")
    parser.add_argument("--out", type=Path, default=Path("out/ledger"), help="folder of the ledger")
    parser.add_argument("--plan", action="store_true", help="say what is missing, and stop")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the ledger recipe")
    return parser.parse_args(argv)


def program(argv: list[str] | None = None) -> int:
    """Entry point; the exit code."""
    options = parsed(argv)
    if options.recipe is None:
        print("\n".join(str(path) for path in sorted((catalog.folder("recipes") / "ledger").glob("*.toml"))))
        return 0
    try:
        if options.shards is None:
            raise SettingError(f"{options.recipe}: no data given; add --shards DIR")
        recipe = files.read(Recipe, options.recipe, options.set)
        print(main(recipe, options.shards, options.out, only_plan=options.plan))
    except SgdataError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(program())
