"""Build the page blocks of a training run: losses, pictures, scores."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sgdata import files, output_names
from sgdata.errors import SourceError
from sgdata.pages import charts, html
from sgdata.results import other_split, scores_by_distance, training_log
from sgdata.results.training_log import is_number
from sgdata.safe_names import file_name
from sgdata.shards import contracts

log = logging.getLogger("sgdata")
METRICS, RESULTS, LEDGER = output_names.METRICS, output_names.RESULTS, output_names.LEDGER
PICTURES = {
    "autoencoder": ("Reconstructions", "as it is, what the encoder saw, what the decoder made of it"),
    "segmenter": ("Predictions", "image, label, prediction"),
}
"""Title and caption of the pictures of a run, by the kind of the model on the card of its checkpoint."""
UNKNOWN_PICTURES = ("Pictures", "as the training program drew them")
CHECKPOINT_CARD = "checkpoint-last/card.json"
Steps = Sequence[dict[str, Any]]


def build_blocks(run: Path, folder: Path, prefix: str = "") -> list[html.Block]:
    """Return the blocks of one run, with titles that begin with `prefix`; copy its newest picture into `folder`."""
    unfinished = not files.is_finished(run)
    if unfinished:
        log.warning("%s: the run is under way or was stopped; its page shows the steps so far", run)
        prefix = f"{prefix}Unfinished: "
    steps = training_log.read(run / METRICS, unfinished=unfinished)
    # A dict, for the order of the log: a set has none.
    names = {name: None for step in steps for name in step}
    parts = [*_charts(steps, names), *_band_losses(steps, names)]
    parts += [*_results(run), *last_picture(run, folder, *PICTURES.get(_model_kind(run), UNKNOWN_PICTURES))]
    return [replace(block, title=prefix + block.title) for block in parts]


def _model_kind(run: Path) -> str:
    """Return the kind of model of the last checkpoint; empty before there is one. Raises SettingError."""
    card = run / CHECKPOINT_CARD
    model = files.read_plain(card).get("model") if card.is_file() else None
    return str(model.get("kind", "")) if isinstance(model, dict) else ""


def build_speed(run: Path) -> list[html.Block]:
    """Return the table of a run's speed, which depends on the machine; empty for a run without times."""
    path = run / output_names.TIMINGS
    lines = training_log.read(path, unfinished=True) if path.exists() else []
    if not lines:
        return []
    rows = tuple(training_log.describe(training_log.pace(lines)).items())
    return [html.Table(title="Speed", columns=("figure", "value"), rows=rows)]


def _charts(steps: Steps, names: Iterable[str]) -> list[html.Block]:
    """Chart losses, validation scores and the learning rate, each over the steps."""
    parts: list[html.Block] = []
    for kind, title in (("loss", "Loss"), ("validation", "Validation"), ("lr", "Learning rate")):
        series = {name: _series(steps, name) for name in names if _kind(name) == kind}
        # One point makes no line; the last figures are in the table below.
        series = {name: points for name, points in series.items() if len(points) > 1}
        if series:
            keys = tuple(zip(charts.SERIES, series, strict=False))
            figure = charts.lines(series, "step")
            parts.append(html.Chart(title=title, figure=figure, label=chart_summary(title, series), keys=keys))
    return parts


def _band_losses(steps: Steps, names: Iterable[str]) -> list[html.Block]:
    """List the first and the last loss of each band: twelve lines in one chart cannot be distinguished."""
    rows = []
    for name in names:
        points = _series(steps, name) if _kind(name) == "band" else []
        if points:
            rows.append((name.removeprefix("loss_"), f"{points[0][1]:.4f}", f"{points[-1][1]:.4f}"))
    return [html.Table(title="Loss per band", columns=("band", "first", "last"), rows=tuple(rows))] if rows else []


def _kind(name: str) -> str:
    if re.fullmatch(r"loss_B\w\w", name):
        return "band"
    if name in {"step", "epoch", "grad_norm"}:
        return "none"
    return name if name == "lr" else "loss" if name.startswith("loss") else "validation"


def _series(steps: Steps, name: str) -> list[tuple[float, float]]:
    return [(step["step"], step[name]) for step in steps if step.get(name) is not None]


def chart_summary(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Describe a chart in words, for screen readers."""
    ends = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in series.items())
    last = max(points[-1][0] for points in series.values())
    return f"{title} over {last:g} steps: {ends}"


def _results(run: Path) -> list[html.Block]:
    """Return the scores of `results.json`: single figures, figures per class, the confusion matrix."""
    if not (run / RESULTS).exists():
        return []
    results, space = files.read_plain(run / RESULTS), contracts.read(run).label_space
    colours = dict(zip(space.names, space.palette.values(), strict=True))
    plain = {name: scores_by_distance.text(value) for name, value in results.items() if name != "confusion"}
    figures = tuple((name, text) for name, text in plain.items() if text)
    parts: list[html.Block] = [html.Table(title="Figures", columns=("figure", "value"), rows=figures)]
    if rows := scores_by_distance.rows(results):
        parts.append(html.Table(title=scores_by_distance.TITLE, columns=scores_by_distance.columns(results), rows=rows))
    if rows := other_split.rows(results):
        parts.append(html.Table(title=other_split.TITLE, columns=other_split.columns(results), rows=rows))
    for name, values in results.items():
        if isinstance(values, dict) and all(isinstance(value, int | float | None) for value in values.values()):
            # In the order of the label space: a document of ours is sorted by name.
            order = [*(key for key in space.names if key in values), *(key for key in values if key not in colours)]
            bars = tuple((key, colours.get(key, charts.SERIES[0]), (values[key],)) for key in order)
            parts.append(html.Bars(title=name.replace("_", " "), columns=("",), bars=bars))
    if "confusion" in results:
        # Numbers where the model's classes are not those of the data, as after remapping.
        counts = tuple(tuple(row) for row in _square(results["confusion"], run / RESULTS))
        names = space.names if len(space.names) == len(counts) else tuple(str(n) for n in range(len(counts)))
        caption = "A row per true class, a column per predicted one; percent of the row, counts on hovering."
        parts.append(html.Matrix(title="Confusion matrix", names=names, counts=counts, caption=caption))
    return parts


def _square(counts: Any, path: Path) -> list[list[int]]:
    """Return a confusion matrix. Raises SourceError where it is no square of numbers."""
    rows = counts if isinstance(counts, list) else []
    whole = all(isinstance(row, list) and len(row) == len(rows) and all(map(is_number, row)) for row in rows)
    if not rows or not whole or min(map(min, rows)) < 0:
        raise SourceError(f"{path}: 'confusion' is {counts!r:.80}, expected a square of counts; run the training again")
    return rows


def last_picture(run: Path, folder: Path, title: str, shown: str) -> list[html.Picture]:
    """Copy the newest picture of a run next to the page and return its block; empty without pictures."""
    # File names contain the step with leading zeros, so that the last name is the newest picture.
    pictures = sorted((run / "pictures").glob("*.png"))
    if not pictures:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    file = f"{file_name(run.name)}.png"
    shutil.copyfile(pictures[-1], folder / file)
    caption = f"Validation samples, one a row: {shown}."
    return [html.Picture(file=file, title=title, caption=caption, alt=caption)]
