"""Recipes of ledgers, and the runs that they need: settings, starting weights and data.

A run is identified by a hash of its resolved recipe, the contract of its data and its starting weights, which is part
of the name of its folder: changed runs get a new folder; runs shared by two tables are trained once.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import environ
from pathlib import Path
from typing import Any, Literal

from sgdata import files, output_names, package_data
from sgdata.errors import SettingError
from sgdata.safe_names import file_name
from sgdata.shards import contracts
from sgmodel.data import subset
from sgmodel.ledger import published_figures
from sgmodel.train.program import Loaders, ProgramName

Start = Literal["random", "pretrained here", "published"]
Reason = (
    Literal[
        "smaller model",
        "smaller images",
        "other initial weights",
        "fewer epochs",
        "one seed",
        "not published",
        "weights absent",
        "data absent",
        "failed",
    ]
    | published_figures.Difference
)
"""Why a figure differs from the published one, or is missing. From "one seed" on they are computed, not declared."""


@dataclass(frozen=True, kw_only=True)
class PrecedingRun:
    """A run that provides the starting weights of the next one.

    Attributes:
        recipe: Recipe file, relative to the folder of recipes.
        program: Training program.
        data: Dataset; empty for that of the table.
        set: Overrides of the recipe.
    """

    recipe: str
    program: ProgramName = "pretrain"
    data: str = ""
    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One row of a table.

    Attributes:
        name: Name, unique in the table.
        start: Where the starting weights come from.
        recipe: Recipe file; empty for that of the table.
        before: Runs that are trained first, each from the weights of the one before.
        weights: Published weights by their name in the fact table `published_weights`.
        set: Overrides of the recipe, after those of the table; `{seed}` stands for the seed of a run.
        seeds: Seeds; empty for those of the table.
        data: Datasets, each with a run per seed, such as several draws of a split; empty for that of the table.
        published: Model of the published figures, as in the fact table `published_figures`.
        protocol: Protocol of these figures; empty for that of the table.
        reasons: Known reasons for a difference from the published figures.
    """

    name: str
    start: Start
    recipe: str = ""
    before: tuple[PrecedingRun, ...] = ()
    weights: str = ""
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    data: tuple[str, ...] = ()
    published: str = ""
    protocol: str = ""
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LedgerTable:
    """Comparable rows: one training program and one dataset.

    Attributes:
        name: Title of the table.
        program: Training program.
        recipe: Recipe file, relative to the folder of recipes.
        data: Dataset, named as in its contract or by `--shards NAME=DIR`.
        metrics: Figures of results.json, one column each; a dot selects inside a table.
        rows: The rows.
        set: Overrides of the recipe for all rows.
        seeds: Seeds; empty for those of the ledger.
        protocol: Protocol of the published figures of this table, as in the fact table `published_protocols`.
        quoted: Protocols whose figures are listed below the rows, beside which nothing is run.
        compare: Pairs of row names; the ledger says of each pair whether the first is better.
        block_m: Side in metres of the blocks of ground that the interval of such a difference draws; unset for samples.
        beside: Table with rows of the same names on another split, such as the published one, whose figures are shown
            beside these.
        note: Text below the table.
    """

    name: str
    program: ProgramName
    recipe: str
    data: str
    metrics: tuple[str, ...]
    rows: tuple[LedgerRow, ...]
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    protocol: str = ""
    quoted: tuple[str, ...] = ()
    compare: tuple[tuple[str, str], ...] = ()
    block_m: float | None = None
    beside: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetSize:
    """Size of a dataset, for the cost estimate while its shards are absent.

    Attributes:
        train: Number of training samples (windows in change detection).
        classes: Number of classes.
    """

    train: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class LedgerRecipe:
    """Settings of a ledger.

    Attributes:
        title: Title of the ledger.
        seeds: Seeds of every run.
        flops_per_s: Floating-point operations per second that training reaches, for the cost estimate.
        start_s: Seconds that a run takes besides training, for the cost estimate.
        tables: Tables of results.
        data: Sizes of datasets whose shards are absent.
    """

    title: str
    seeds: tuple[int, ...]
    flops_per_s: float
    start_s: float
    tables: tuple[LedgerTable, ...]
    data: dict[str, DatasetSize] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LedgerPaths:
    """Paths and machine settings of a ledger.

    Attributes:
        data: Folders of shards by the name of their dataset.
        out: Folder of the ledger.
        programs: The training programs.
        weights: Folder of published weights.
        launcher: Words that start a module, in place of `python -m`.
        options: Further options of every program.
    """

    data: Mapping[str, Path]
    out: Path
    programs: Loaders
    weights: Path = Path("weights")
    launcher: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LedgerRun:
    """One training run.

    Attributes:
        folder: Folder of the run.
        command: Command that trains it.
        program: Training program.
        recipe: Resolved recipe as TOML.
        data: Name of the dataset.
        seed: Seed of the recipe.
        after: Run that provides the starting weights, if any.
    """

    folder: Path
    command: tuple[str, ...]
    program: ProgramName
    recipe: bytes
    data: str
    seed: int
    after: LedgerRun | None = None

    @property
    def done(self) -> bool:
        """Return whether the run is finished, that is has SHA256SUMS."""
        return files.is_finished(self.folder)

    @property
    def results(self) -> dict[str, Any]:
        """Read the figures of a finished run. Raises SettingError."""
        return files.read_plain(self.folder / output_names.RESULTS)

    @property
    def chain(self) -> tuple[LedgerRun, ...]:
        """Return the runs that this one needs, in order, followed by itself."""
        return (*(self.after.chain if self.after else ()), self)


# --- runs of a ledger ----------------------------------------------------------------------


def check(recipe: LedgerRecipe) -> None:
    """Refuse tables with wrong row names, unknown weights, or without metrics or seeds. Raises SettingError."""
    for table in recipe.tables:
        if not table.metrics or not all(row.seeds or table.seeds or recipe.seeds for row in table.rows):
            lacking = "seeds" if table.metrics else "metrics"
            raise SettingError(f"table '{table.name}': {lacking} are empty, expected one or more; add them")
        names = [row.name for row in table.rows]
        repeated = {name for name in names if names.count(name) > 1}
        missing = {name for pair in table.compare for name in pair} - set(names)
        if repeated or missing:
            message = f"two rows {sorted(repeated)}" if repeated else f"compare names {sorted(missing)}, not a row"
            raise SettingError(f"table '{table.name}': {message}; give each row a name of its own")
        if table.beside and table.beside not in {each.name for each in recipe.tables}:
            raise SettingError(
                f"table '{table.name}': beside = '{table.beside}' is no table of this ledger; correct it"
            )
        for name in table.quoted:
            published_figures.figures(name)
        for row in table.rows:
            if row.weights:
                source(row.weights)
            figures_of(table, row)


def figures_of(table: LedgerTable, row: LedgerRow) -> dict[str, published_figures.PublishedFigure]:
    """Return the published figures of a row by metric; none if it has none. Raises SettingError."""
    if not row.published:
        return {}
    protocol = row.protocol or table.protocol
    if not protocol:
        raise SettingError(f"table '{table.name}', row '{row.name}': published without a protocol; add protocol = NAME")
    return published_figures.of_model(protocol, row.published)


def differences(
    table: LedgerTable, row: LedgerRow, run: LedgerRun, paths: LedgerPaths
) -> list[published_figures.Difference]:
    """Return how the data and settings of a row differ from those of its published figures; none without figures."""
    if not row.published or run.data not in paths.data:
        return []
    folder, recipe = paths.data[run.data], tomllib.loads(run.recipe.decode())
    contract, used = contracts.read(folder), recipe["training"]
    of_budget = 1.0
    if used.get("budget"):
        of_budget = len(subset.within_budget(folder, used["split"], used["budget"])) / contract.splits[used["split"]]
    return published_figures.differences(
        published_figures.protocol(row.protocol or table.protocol),
        contract,
        folder,
        labels=used["fraction"] * of_budget,
        mode=recipe.get("mode", ""),
    )


def source(name: str) -> dict[str, str]:
    """Return where published weights are available, and their licence. Raises SettingError."""
    for row in package_data.table("published_weights"):
        if row["name"] == name:
            return {key: row[key] for key in ("name", "where", "licence", "checksum")}
    raise SettingError(f"weights '{name}' are not in the fact table; 'sgdata catalog weights' lists those that are")


def missing_input(table: LedgerTable, row: LedgerRow, paths: LedgerPaths) -> Reason | None:
    """Return which input of a row is absent, None if it can be run."""
    if row.weights and not (paths.weights / row.weights).exists():
        return "weights absent"
    needed = {*datasets(table, row), *(before.data or table.data for before in row.before)}
    return None if needed <= set(paths.data) else "data absent"


def plan_runs(recipe: LedgerRecipe, table: LedgerTable, row: LedgerRow, paths: LedgerPaths) -> tuple[LedgerRun, ...]:
    """Return the runs of a row, one per dataset and seed. Raises SettingError if a recipe cannot be read."""
    after: LedgerRun | None = None
    file = paths.weights / row.weights if row.weights else None
    for before in row.before:
        after = _run(before.program, before.recipe, before.set, before.data or table.data, file, after, paths)
    made = []
    for data in datasets(table, row):
        for seed in row.seeds or table.seeds or recipe.seeds:
            texts = (text.replace("{seed}", str(seed)) for text in (*table.set, *row.set))
            changes = (*texts, f"training.seed={seed}")
            made.append(_run(table.program, row.recipe or table.recipe, changes, data, file, after, paths))
    return tuple(made)


def datasets(table: LedgerTable, row: LedgerRow) -> tuple[str, ...]:
    """Return the names of the datasets of a row."""
    return row.data or (table.data,)


def _run(
    program: ProgramName,
    name: str,
    changes: tuple[str, ...],
    data: str,
    file: Path | None,
    after: LedgerRun | None,
    paths: LedgerPaths,
) -> LedgerRun:
    path = package_data.folder("recipes") / name
    # Read here too, so that an invalid recipe is refused before the first run.
    recipe: Any = files.read(paths.programs[program]().recipe, path, changes)
    weights = str(after.folder / "checkpoint-last") if after else str(file) if file else None
    shards = paths.data.get(data, Path(data))
    known = {
        "program": program,
        "recipe": recipe,
        "data": contracts.read(shards) if data in paths.data else data,
        "weights": after.folder.name if after else file and _digest(file),
    }
    identity = files.sha256(files.canonical_json(known))[:12]
    model = files.to_plain(recipe.model).get("backbone", "spectralgpt").replace(":", "-")
    folder = paths.out / "runs" / file_name(f"{program}-{model}-seed{recipe.training.seed}-{identity}")
    start = paths.launcher or (sys.executable, "-m")
    words = [*start, f"sgmodel.recipes.{program}", str(path), "--shards", str(shards), "--out", str(folder)]
    if weights:
        words += ["--weights", weights]
    for text in changes:
        words += ["--set", text]
    return LedgerRun(
        folder=folder,
        command=(*words, *paths.options),
        program=program,
        recipe=files.toml(recipe),
        data=data,
        seed=recipe.training.seed,
        after=after,
    )


def _digest(path: Path) -> str:
    """Return the SHA-256 of a weight file or checkpoint folder; the file name if it does not exist."""
    if path.is_dir():
        return files.sha256(files.compute_sums(path))
    return files.sha256_file(path) if path.exists() else path.name


# --- training ------------------------------------------------------------------------------


def train_run(run: LedgerRun) -> tuple[float, float, str]:
    """Train or resume a run in a process of its own, with a log beside its folder.

    Returns:
        Seconds, seconds of processor time, and the error, empty if there was none.
    """
    begun, used = time.monotonic(), _cpu_s()
    # Threads that wait actively slow each other on a busy machine; results do not depend on this.
    environment = {"OMP_WAIT_POLICY": "passive", **environ}
    log = run.folder.parent / f"{run.folder.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("ab") as output,
        subprocess.Popen([*run.command, "-q"], env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            code = process.wait()
        except BaseException:
            # SIGTERM, on which it saves a checkpoint.
            process.terminate()
            raise
    last = log.read_text("utf-8", errors="replace").splitlines()[-1:]
    return time.monotonic() - begun, _cpu_s() - used, "" if code == 0 else f"exit {code}: {''.join(last):.300}"


def _cpu_s() -> float:
    """Return the processor time of the finished children of this process, which are runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
