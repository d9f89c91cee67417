"""Conclude a training run: results, the card in Markdown, the speed, and SHA256SUMS."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdata import files, output_names
from sgdata.display import markdown
from sgdata.display.markdown import escape
from sgdata.results import other_split, scores_by_distance, training_log
from sgmodel import devices, distributed
from sgmodel.checkpoints import checkpoint_folder
from sgmodel.train import run_folder

if TYPE_CHECKING:
    from sgmodel.checkpoints.cards import ModelCard

log = logging.getLogger("sgdata")


def write_results(
    out: Path,
    title: str,
    card: ModelCard,
    results: dict[str, Any],
    headlines: tuple[str, ...],
    meter: devices.SpeedMeter | None = None,
) -> None:
    """Write `results.json`, `card.md`, `summary.json` and SHA256SUMS, which leaves out times and TensorBoard files.

    `loss_first` and `loss_last` are read from the log. Only rank 0 writes.

    Args:
        out: Folder of the run.
        title: Title of the card.
        card: Card of the checkpoints.
        results: Figures of the run.
        headlines: Names of those that the last line of the log shows beside the losses.
        meter: Meter of the training, whose speed goes to `summary.json`; None if nothing was trained.
    """
    if not distributed.is_main_process():
        return
    lines = training_log.read(out / output_names.METRICS) if (out / output_names.METRICS).exists() else []
    losses = [line["loss"] for line in lines if "loss" in line]
    ends = {"loss_first": losses[0], "loss_last": losses[-1]} if losses else {}
    files.write(out / output_names.RESULTS, files.pretty_json({**ends, **results}))
    files.write(out / run_folder.CARD, _card(title, card, {**ends, **results}, meter).encode())
    # The main results in two lines; the card has all of them.
    shown = {**ends, **{name: value for name, value in results.items() if name in headlines}}
    log.info(", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    if meter is not None:
        log.info(_write_speed(out, meter))
    files.write_sums(out)
    print(out)


def _write_speed(out: Path, meter: devices.SpeedMeter) -> str:
    """Write `summary.json`, and return the speed in one line."""
    pace = training_log.pace(training_log.read(out / output_names.TIMINGS))
    machine = {
        "device": devices.name(meter.launch.device),
        "peak_tflops": meter.peak,
        "precision": meter.launch.precision,
        "processes": distributed.world_size(),
        "flops_per_sample": meter.flops,
    }
    files.write(out / output_names.SUMMARY, files.pretty_json({**machine, **pace}))
    return f"{machine['device']}: " + ", ".join(f"{name} {text}" for name, text in training_log.describe(pace).items())


def _card(title: str, card: ModelCard, results: dict[str, Any], meter: devices.SpeedMeter | None) -> str:
    """Return the model card in Markdown, which has no times, so that equal runs have equal cards."""
    contract = card.contract
    assert contract is not None
    score_rows = [
        f"| {escape(name)} | {value:.6g} |" for name, value in sorted(results.items()) if isinstance(value, int | float)
    ]
    bands = " ".join(band.name for band in contract.bands)
    fingerprint = escape(contract.fingerprint[:16])
    data = f"{contract.level}, bands {escape(bands)}, splits {escape(contract.splits)}, fingerprint `{fingerprint}`"
    work = []
    if meter is not None:
        flops = "unknown" if meter.flops is None else f"{meter.flops / 1e9:.6g} GFLOP"
        work = [
            f"- work: {flops} a sample, forward and backward; images/s, MFU and data wait in `{output_names.SUMMARY}`"
        ]
    return "\n".join(
        [
            f"# {title} on {escape(contract.dataset)} {escape(contract.version)}",
            "",
            f"- model: {card.model.kind}; settings in `{output_names.RECIPE}`, "
            f"weights in `{run_folder.LAST}/{checkpoint_folder.WEIGHTS}`",
            f"- data: {data}",
            f"- normalisation: {card.normalisation.scheme if card.normalisation else 'none'}",
            f"- code: commit {card.commit or 'unknown (installed package)'}",
            *work,
            "",
            "| figure | value |",
            "| --- | --- |",
            *score_rows,
            "",
            *_distance_table(results),
            *_other_split_table(results),
        ]
    )


def _distance_table(results: dict[str, Any]) -> list[str]:
    """Return the scores by distance to the training samples as Markdown, if there are any."""
    rows = scores_by_distance.rows(results)
    if not rows:
        return []
    return [f"## {scores_by_distance.TITLE}\n\n{markdown.table(scores_by_distance.columns(results), rows)}"]


def _other_split_table(results: dict[str, Any]) -> list[str]:
    """Return the score beside that of a run on another split as Markdown, if one was given."""
    rows = other_split.rows(results)
    return [f"## {other_split.TITLE}\n\n{markdown.table(other_split.columns(results), rows)}"] if rows else []
