"""The folder of one training run: recipe, contract, logs, checkpoint; how it is resumed and how it ends.

`checkpoint-last/` holds the model and its card, the optimizer's memory (`training.safetensors`) and the place
(`training.json`). It is replaced as a whole, so a run killed at any moment has the old one or the new one.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from sgdata import files
from sgdata.errors import OutputError, SettingError, SourceError
from sgdata.shards import contracts
from sgdata.types import Contract
from sgmodel import distributed
from sgmodel.checkpoints import checkpoint_folder
from sgmodel.train import optim

if TYPE_CHECKING:
    from sgmodel.checkpoints.cards import Card
    from sgmodel.models.adapt import State
    from sgmodel.train import loop

LAST = "checkpoint-last"
BEST = "checkpoint-best"
MEMORY = "training.safetensors"
AVERAGE = "average.safetensors"
METRICS = files.METRICS
TIMINGS = files.TIMINGS
BOARD = "tensorboard"
RESULTS = files.RESULTS
CARD = "card.md"
HEADLINES = ("loss_first", "loss_last", "miou", "oa", "top1", "map_macro", "f1", "loss_token")
log = logging.getLogger("sgdata")
OWN = (
    LAST,
    BEST,
    f".{LAST}.old",
    f".{LAST}.new",
    files.RECIPE,
    files.CONTRACT,
    METRICS,
    TIMINGS,
    BOARD,
    RESULTS,
    CARD,
    files.SUMS,
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run stands: optimizer steps done. With the recipe this says which samples come next.

    `scaler` is the memory of half precision's gradient scaler; empty in other precisions."""

    steps: int
    scaler: dict[str, int | float] = field(default_factory=dict)


# --- beginning and ending ------------------------------------------------------------------


def prepare(out: Path, recipe: Any, contract: Contract, *, fresh: bool) -> int:
    """Ready `out` for `recipe` on data of `contract`; the steps already done there. `fresh` removes what it held.

    The other ranks wait for the lead. Raises OutputError, SettingError where `out` holds a run with another recipe
    or other data.
    """
    if distributed.lead():
        _prepare(out, recipe, contract, fresh=fresh)
    distributed.wait()
    return read_place(out).steps if (out / LAST).is_dir() else 0


def _prepare(out: Path, recipe: Any, contract: Contract, *, fresh: bool) -> None:
    resolved = files.toml(recipe)
    if fresh:
        clear(out)
    if (out / files.RECIPE).exists():
        _same_recipe(out, resolved)
        contracts.require(contract, contracts.read(out), "resume")
    contracts.write(out, contract)
    files.write(out / files.RECIPE, resolved)  # last of the two: it says that both are there to compare with
    # A folder with sums is a finished run; this one is about to change.
    files.mark_unfinished(out)
    _repair(out)


def clear(out: Path) -> None:
    """Remove a run of ours from `out`, and nothing else."""
    for path in [out / name for name in OWN] + sorted(out.glob("pictures/*.png")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def conclude(out: Path, title: str, card: Card, results: dict[str, Any]) -> None:
    """Write `results.json`, `card.md` and SHA256SUMS; times and TensorBoard files stand outside the sums.

    `loss_first` and `loss_last` are taken from the log. The other ranks write nothing.
    """
    if not distributed.lead():
        return
    lines = [json.loads(line) for line in (out / METRICS).read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    ends = {"loss_first": losses[0], "loss_last": losses[-1]}
    files.write(out / RESULTS, files.pretty_json({**ends, **results}))
    files.write(out / CARD, _card(title, card, {**ends, **results}).encode())
    files.write_sums(out)
    # The result in two lines; everything else stands in the card.
    shown = {name: value for name, value in {**ends, **results}.items() if name in HEADLINES}
    log.info(", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    print(out)


def _card(title: str, card: Card, results: dict[str, Any]) -> str:
    """What a reader of the checkpoint needs to know, in Markdown."""
    contract = card.contract
    assert contract is not None
    figures = [f"| {name} | {value:.6g} |" for name, value in sorted(results.items()) if isinstance(value, int | float)]
    bands = " ".join(band.name for band in contract.bands)
    data = f"{contract.level}, bands {bands}, splits {contract.splits}, fingerprint `{contract.fingerprint[:16]}`"
    return "\n".join(
        [
            f"# {title} on {contract.dataset} {contract.version}",
            "",
            f"- model: {card.model.kind}; settings in `{files.RECIPE}`, "
            f"weights in `{LAST}/{checkpoint_folder.WEIGHTS}`",
            f"- data: {data}",
            f"- normalisation: {card.normalisation.scheme if card.normalisation else 'none'}",
            f"- code: commit {card.commit or 'unknown (installed package)'}",
            "",
            "| figure | value |",
            "| --- | --- |",
            *figures,
            "",
        ]
    )


def _same_recipe(out: Path, resolved: bytes) -> None:
    import tomllib

    old, new = _flat(files.read_plain(out / files.RECIPE)), _flat(tomllib.loads(resolved.decode()))
    changed = [f"{key} is {new.get(key)!r}, was {old.get(key)!r}" for key in old | new if old.get(key) != new.get(key)]
    if changed:
        message = "; ".join(changed[:5])
        raise OutputError(
            f"{out}: holds a run with another recipe ({message}); use --fresh to replace it, or another --out"
        )


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


# --- checkpoints ---------------------------------------------------------------------------


def save(out: Path, model: nn.Module, card: Card, optimizer: Optimizer, place: Place, average: State) -> None:
    """Replace `checkpoint-last/`; `average` are weights averaged over the run, if any. All ranks call, the lead writes.

    One plain file per kind of tensor, whole ones, so that a run goes on with another number of ranks or none.
    Raises OutputError.
    """
    # Gathering is a conversation of all ranks, so it comes before the others leave.
    states = (model.state_dict(), optim.state(optimizer, model), average)
    weights, memory, average = (distributed.collect(tensors) for tensors in states)
    if average:  # what is no parameter (moving averages of a normalisation) is not averaged, but belongs to the model
        average = weights | average
    if not distributed.lead():
        return
    new, old, last = out / f".{LAST}.new", out / f".{LAST}.old", out / LAST
    for left in (new, old):  # by a run that was killed right here
        shutil.rmtree(left, ignore_errors=True)
    checkpoint_folder.write(new, weights, card)
    for name, tensors in ((MEMORY, memory), (AVERAGE, average)):
        if tensors or name == MEMORY:
            with files.replacing(new / name) as temporary:
                save_file(tensors, temporary)
    files.write(new / "training.json", files.pretty_json(place))
    try:
        if last.exists():
            last.rename(old)
        new.rename(last)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{last}: cannot be written: {error.strerror}") from error


def keep_best(out: Path, model: nn.Module, card: Card, figures: dict[str, float], *, by: str) -> None:
    """Replace `checkpoint-best/` where `figures[by]` (greater is better) beats the one kept. All ranks call."""
    weights, folder = distributed.collect(model.state_dict()), out / BEST
    if not distributed.lead():
        return
    if (folder / "figures.json").exists() and files.read_plain(folder / "figures.json")[by] >= figures[by]:
        return
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint_folder.write(folder, weights, card)
    files.write(folder / "figures.json", files.pretty_json(figures))  # last: without it the folder counts for nothing


def restore(out: Path, model: nn.Module, optimizer: Optimizer) -> State:
    """Fill model and optimizer, sharded or not, from `checkpoint-last/`; the averaged weights. Raises SourceError."""
    saved, own = _tensors(out / LAST / checkpoint_folder.WEIGHTS), model.state_dict()
    if saved.keys() != own.keys():
        differ = sorted(saved.keys() ^ own.keys())
        raise SourceError(f"{out / LAST}: weights of another model (first, {differ[0]}); start again with --fresh")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(distributed.shard_like(saved[name], tensor))
    optim.restore(optimizer, model, _tensors(out / LAST / MEMORY))
    average = out / LAST / AVERAGE
    return _tensors(average) if average.exists() else {}


def read_place(out: Path) -> Place:
    """Where the run in `out` stood when it was last saved. Raises SettingError."""
    return files.read(Place, out / LAST / "training.json")


def _repair(out: Path) -> None:
    """Undo a replacement that was cut off between its two renames."""
    old, last = out / f".{LAST}.old", out / LAST
    if old.exists() and not last.exists():
        old.rename(last)


def _tensors(path: Path) -> State:
    try:
        return load_file(files.existing(path, "part of a checkpoint"))
    except SafetensorError as error:
        raise SourceError(f"{path}: damaged ({error}); start again with --fresh") from None


# --- logs ----------------------------------------------------------------------------------


class Log:
    """Figures of a run, one JSON object a line: what was computed in one file, how long it took in another.

    Opened at step `first`, lines of that step and later are dropped: they will be written again.
    """

    def __init__(self, out: Path, first: int) -> None:
        """Raises SettingError where TensorBoard is not installed. Only the lead of several ranks writes."""
        self.lead = distributed.lead()
        if not self.lead:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingError(f"TensorBoard is missing ({error}); pip install 'sgdata[model]'") from None
        for name in (METRICS, TIMINGS):
            _cut(out / name, first)
        self.metrics = (out / METRICS).open("a", encoding="utf-8")
        self.timings = (out / TIMINGS).open("a", encoding="utf-8")
        self.board = SummaryWriter(str(out / BOARD), purge_step=first)

    def step(self, step: loop.Step, *, every: int, last: bool, speed: dict[str, float] | None = None) -> None:
        """One training step, if it is among every `every` or the last; `speed` are figures beside images/s."""
        if step.index % every and not last:
            return
        norm = {} if step.grad_norm is None else {"grad_norm": step.grad_norm}
        self.write(step.index, {**step.terms, "lr": step.lr, **norm})
        times = {"wait_s": step.wait_s, "step_s": step.total_s, "images_per_s": step.images / step.total_s}
        self.write_times(step.index, {**times, "wait_share": step.wait_s / step.total_s, **(speed or {})})

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Figures that depend on nothing but recipe and data. Raises SourceError where one is no finite number."""
        strange = {name: value for name, value in figures.items() if not math.isfinite(value)}
        if strange:
            raise SourceError(f"step {step}: {strange} not finite; look for damaged samples with sgdata audit SHARDS")
        if self.lead:
            self.metrics.write(_line(step, figures))
            self.metrics.flush()
            self._plot(step, figures)

    def write_times(self, step: int, seconds: dict[str, float]) -> None:
        """Figures that depend on the machine."""
        if self.lead:
            self.timings.write(_line(step, seconds))
            self.timings.flush()
            self._plot(step, seconds)

    def _plot(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.board.add_scalar(name, value, step)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.lead:
            self.metrics.close()
            self.timings.close()
            self.board.close()


def _line(step: int, figures: dict[str, float]) -> str:
    return json.dumps({"step": step, **figures}, allow_nan=False) + "\n"


def _cut(path: Path, first: int) -> None:
    """Keep the lines of steps before `first`. A line cut off by a kill is the last one, and goes too."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < first]
    files.write(path, "".join(f"{line}\n" for line in whole).encode())
