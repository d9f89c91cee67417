"""Write, resume and finish the folder of a training run: recipe, contract, logs, checkpoints.

`checkpoint-last/` holds the model and its card, the optimizer state (`training.safetensors`) and the progress
(`training.json`). It is replaced as a whole, so that a run killed at any moment has the old one or the new one.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import nn
from torch.optim import Optimizer

from sgdata import files, output_names, recipe_settings
from sgdata.errors import OutputError, SettingError, SourceError
from sgdata.results import training_log
from sgdata.shards import contracts
from sgdata.types import Contract
from sgmodel import distributed
from sgmodel.checkpoints import checkpoint_folder
from sgmodel.train import optim

if TYPE_CHECKING:
    from sgmodel.checkpoints.cards import ModelCard
    from sgmodel.models.weight_adaptation import State
    from sgmodel.train import loop

Speed = Callable[[int, float], dict[str, float | None]]
"""A function from samples and seconds to figures of speed."""

LAST = "checkpoint-last"
BEST = "checkpoint-best"
OPTIMIZER = "training.safetensors"
EMA = "ema.safetensors"
EARLIER_EMA = "average.safetensors"  # its name in checkpoints of earlier versions
METRICS = output_names.METRICS
TIMINGS = output_names.TIMINGS
BOARD = "tensorboard"
RESULTS = output_names.RESULTS
CARD = "card.md"
CHANGES = "changes.jsonl"
SCENES = "scenes.jsonl"
EPOCHS = "training.epochs"
PATIENCE = "training.patience"
# Settings that a resumed run may change, since they decide how figures are computed or shown, but not the figures.
FREE = frozenset(
    {
        "training.log_every",
        "training.accumulate",
        "training.compile",
        "training.cuda_graphs",
        "training.recompute",
        "training.verify",
        "picture_every",
    }
)

log = logging.getLogger("sgdata")
OWN = (
    LAST,
    BEST,
    f".{LAST}.old",
    f".{LAST}.new",
    f".{BEST}.old",
    f".{BEST}.new",
    output_names.RECIPE,
    output_names.CONTRACT,
    METRICS,
    TIMINGS,
    output_names.SUMMARY,
    BOARD,
    RESULTS,
    CARD,
    CHANGES,
    SCENES,
    output_names.SCORED,
    output_names.SUMS,
)


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Progress of a run, which together with the recipe determines the next samples.

    Attributes:
        steps: Optimizer steps done.
        log_sha256: SHA-256 of the metrics of these steps; "" in checkpoints of earlier versions.
        scaler: State of the gradient scaler of half precision; empty in other precisions.
    """

    steps: int
    log_sha256: str = ""
    scaler: dict[str, int | float] = field(default_factory=dict)


# --- beginning and ending ------------------------------------------------------------------


def prepare(out: Path, recipe: Any, contract: Contract, *, fresh: bool, free: frozenset[str] = FREE) -> int:
    """Prepare the folder of a run for starting or resuming; the other ranks wait for rank 0.

    Args:
        out: Folder of the run.
        recipe: Resolved recipe.
        contract: Contract of the data.
        fresh: Whether to remove an existing run.
        free: Settings in which an existing run may differ.

    Returns:
        The number of steps already done.

    Raises:
        OutputError: `out` holds a run with another recipe, or cannot be written.
        SettingError: `out` holds a run on other data.
        SourceError: The checkpoint of the run is not as it was written.
    """
    if distributed.is_main_process():
        _prepare(out, recipe, contract, fresh=fresh, free=free)
    distributed.wait()
    return read_progress(out).steps if (out / LAST).is_dir() else 0


def _prepare(out: Path, recipe: Any, contract: Contract, *, fresh: bool, free: frozenset[str]) -> None:
    resolved = files.toml(recipe)
    if fresh:
        clear(out)
    if (out / output_names.RECIPE).exists():
        changed = _changes(out, resolved, free)
        contracts.require(contract, contracts.read(out), "resume")
        if changed:
            _record(out, changed)
    contracts.write(out, contract)
    files.write(out / output_names.RECIPE, resolved)  # after the contract: its existence implies both
    # A folder with SHA256SUMS is a finished run; this one is about to change.
    files.mark_unfinished(out)
    _repair(out)
    for folder in (out / name for name in (LAST, BEST) if (out / name).is_dir()):
        for name, digest in files.read_sums(folder).items():
            if not (folder / name).is_file() or files.sha256_file(folder / name) != digest:
                raise SourceError(f"{folder / name}: is not as it was saved; put it back, or start again with --fresh")


def clear(out: Path) -> None:
    """Remove the files of a run from `out`, and no others."""
    for path in [out / name for name in OWN] + sorted(out.glob("pictures/*.png")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _changes(out: Path, resolved: bytes, free: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Return the settings that differ from those of the run in `out`, each with its value before and now.

    Raises:
        OutputError: One of them is not `free`, or the end is earlier.
    """
    import tomllib

    written = recipe_settings.with_current_names(files.read_plain(out / output_names.RECIPE))
    old, new = _flatten(written), _flatten(tomllib.loads(resolved.decode()))
    names = [key for key in old | new if old.get(key) != new.get(key)]
    changed = {key: {"was": old.get(key), "is": new.get(key)} for key in names}
    patience = new.get(PATIENCE, 0)
    later = {EPOCHS: new.get(EPOCHS, 0) > old.get(EPOCHS, 0), PATIENCE: not patience or patience > old.get(PATIENCE, 0)}
    refused = [key for key in changed if key not in free and not later.get(key)]
    if refused:
        message = "; ".join(f"{key} is {changed[key]['is']!r}, was {changed[key]['was']!r}" for key in refused[:5])
        raise OutputError(
            f"{out}: holds a run with another recipe ({message}); use --fresh to replace it, or another --out"
        )
    return changed


def _record(out: Path, changed: dict[str, dict[str, Any]]) -> None:
    """Append a line with the step from which settings differ, and the settings, to the record of changes."""
    path = out / CHANGES
    before = path.read_bytes() if path.exists() else b""
    _repair(out)
    steps = read_progress(out).steps if (out / LAST).is_dir() else 0
    files.write(path, before + files.canonical_json({"step": steps, "settings": changed}))


def _flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# --- checkpoints ---------------------------------------------------------------------------


def save(
    out: Path, model: nn.Module, card: ModelCard, optimizer: Optimizer, progress: RunProgress, average: State
) -> None:
    """Replace `checkpoint-last/`. All ranks must call; rank 0 writes.

    Tensors are gathered and written whole, so that a run can be resumed with another number of ranks.

    Args:
        out: Folder of the run.
        model: Model, sharded or not.
        card: Card of the checkpoint.
        optimizer: Optimizer of the model.
        progress: Progress of the run.
        average: Exponential moving average of the weights; empty if there is none.

    Raises:
        OutputError: A file cannot be written.
    """
    # Gathering is collective, so that it precedes the return of the other ranks.
    states = (model.state_dict(), optim.state(optimizer, model), average)
    weights, memory, average = (distributed.collect(tensors) for tensors in states)
    if average:  # buffers (moving averages of a normalisation) are not averaged, but belong to the model
        average = weights | average
    if not distributed.is_main_process():
        return
    with replacing_folder(out / LAST) as new:
        checkpoint_folder.write(new, weights, card)
        for name, tensors in ((OPTIMIZER, memory), (EMA, average)):
            if tensors or name == OPTIMIZER:
                checkpoint_folder.write_tensors(new / name, tensors)
        files.write(new / "training.json", files.pretty_json(progress))
        files.write_sums(new)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `folder` on success, and is removed on failure.

    Args:
        folder: The folder to replace, which need not exist.

    Raises:
        OutputError: A folder cannot be renamed.
    """
    new, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    for stale in (new, old):  # by a run that was killed at this point
        shutil.rmtree(stale, ignore_errors=True)
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        files.sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written: {error.strerror}; free space, or choose another --out"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)  # half a checkpoint would take the space that a full disk lacks


def restore(out: Path, model: nn.Module, optimizer: Optimizer) -> State:
    """Load model and optimizer, sharded or not, from `checkpoint-last/`.

    Returns:
        The exponential moving average of the weights; empty if there is none.

    Raises:
        SourceError: A file is damaged or belongs to another model.
    """
    saved, state = _tensors(out / LAST / checkpoint_folder.WEIGHTS), model.state_dict()
    if saved.keys() != state.keys():
        differ = sorted(saved.keys() ^ state.keys())
        raise SourceError(f"{out / LAST}: weights of another model (first, {differ[0]}); start again with --fresh")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(distributed.shard_like(saved[name], tensor))
    optim.restore(optimizer, model, _tensors(out / LAST / OPTIMIZER))
    paths = (out / LAST / name for name in (EMA, EARLIER_EMA))
    return next((_tensors(path) for path in paths if path.exists()), {})


def read_progress(out: Path) -> RunProgress:
    """Read the progress of the run in `out` when it was last saved. Raises SettingError."""
    return files.read(RunProgress, out / LAST / "training.json")


def _repair(out: Path) -> None:
    """Undo replacements that were interrupted between their two renames."""
    for name in (LAST, BEST):
        old, folder = out / f".{name}.old", out / name
        if old.exists() and not folder.exists():
            old.rename(folder)


def _tensors(path: Path) -> State:
    try:
        return checkpoint_folder.read_tensors(path)
    except SourceError as error:
        raise SourceError(f"{error}, or start again with --fresh") from None


# --- logs ----------------------------------------------------------------------------------


class TrainingLog:
    """Log of a run, one JSON object per line, with results and times in separate files. Only rank 0 writes."""

    def __init__(self, out: Path, first: int) -> None:
        """Open the log at step `first` and drop the lines of that step and later ones.

        Raises:
            SettingError: TensorBoard is not installed.
            OutputError: A file cannot be written.
        """
        self.lead = distributed.is_main_process()
        self.recent: list[loop.Step] = []
        self.pending: list[tuple[loop.Step, dict[str, float | None]]] = []
        last = self._resume(out, first) if self.lead else []
        # Whether the step before `first` has no line of scores, which have no learning rate. All ranks must agree.
        self.lacks_score = first > 0 and bool(distributed.gather_names([""] if self.lead and all(last) else []))
        if not self.lead:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingError(f"TensorBoard is missing ({error}); pip install 'sgdata[model]'") from None
        with files.writing(out / BOARD):
            self.metrics = (out / METRICS).open("a", encoding="utf-8")
            self.timings = (out / TIMINGS).open("a", encoding="utf-8")
            self.board = SummaryWriter(str(out / BOARD), purge_step=first)

    @staticmethod
    def _resume(out: Path, first: int) -> list[bool]:
        """Cut the logs at step `first`; return for each line of the step before whether it is of training."""
        _drop_lines_from(out / TIMINGS, first)
        lines = _drop_lines_from(out / METRICS, first)
        expected = read_progress(out).log_sha256 if first else ""
        if expected and files.sha256_file(out / METRICS) != expected:
            raise SourceError(f"{out / METRICS}: not the metrics that {LAST} was saved with; start again with --fresh")
        return ["lr" in line for line in lines if line["step"] == first - 1]

    def step(self, step: loop.Step, *, every: int, last: bool, speed: Speed) -> None:
        """Log a training step whose index is a multiple of `every` or that is the last.

        Its line is written with the next step or by `flush`, so as not to wait for the device. Times are means over
        the steps since the line before.

        Args:
            step: The step.
            every: Steps between two lines.
            last: Whether this is the last step.
            speed: Computes further figures of speed.
        """
        self.flush()
        self.recent.append(step)
        if step.index % every and not last:
            return
        count, images = len(self.recent), sum(recent_step.images for recent_step in self.recent)
        wait, total = (sum(getattr(recent_step, name) for recent_step in self.recent) for name in ("wait_s", "total_s"))
        self.recent.clear()
        times = {"wait_s": wait / count, "step_s": total / count, "images_per_s": images / total}
        self.pending.append((step, {**times, "wait_share": wait / total, **speed(images, total)}))

    def flush(self) -> None:
        """Write the lines of steps that the device was still computing; raises NotFiniteError."""
        while self.pending:
            step, times = self.pending.pop(0)
            figures = step.result.read()
            norm = {} if figures.grad_norm is None else {"grad_norm": figures.grad_norm}
            self.write(step.index, {**figures.terms, "lr": step.lr, **norm})
            self.write_times(step.index, times)

    def write(self, step: int, scores: dict[str, float]) -> None:
        """Log figures that depend on recipe and data only. Raises SourceError if one is not finite."""
        self.check(step, scores)
        if self.lead:
            self._append(self.metrics, step, scores)

    def check(self, step: int, scores: dict[str, float]) -> None:
        """Raise SourceError if a figure is not finite."""
        not_finite = {name: value for name, value in scores.items() if not math.isfinite(value)}
        if not_finite:
            raise SourceError(f"step {step}: {not_finite} not finite; find damaged samples with sgdata audit SHARDS")

    def write_times(self, step: int, seconds: dict[str, float | None]) -> None:
        """Log figures that depend on the machine; None for what is not known."""
        if self.lead:
            self._append(self.timings, step, seconds)

    def _append(self, handle: TextIO, step: int, values: Mapping[str, float | None]) -> None:
        with files.writing(Path(handle.name)):
            handle.write(_line(step, values))
            handle.flush()
            for name, value in values.items():
                if value is not None:
                    self.board.add_scalar(name, value, step)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()
        if self.lead:
            with files.writing(Path(self.metrics.name)), self.metrics, self.timings:
                self.board.close()


def _line(step: int, values: Mapping[str, float | None]) -> str:
    return json.dumps({"step": step, **values}, allow_nan=False) + "\n"


def _drop_lines_from(path: Path, first: int) -> list[dict[str, Any]]:
    """Keep the lines of steps before `first`; drop a truncated last line, which a killed run leaves."""
    lines = training_log.read(path, unfinished=True) if path.exists() else []
    kept = [line for line in lines if line["step"] < first]
    files.write(path, b"".join(path.read_bytes().splitlines(keepends=True)[: len(kept)]) if kept else b"")
    return kept
