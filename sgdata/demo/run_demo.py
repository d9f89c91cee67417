"""`sgdata demo`: run every stage on a simulated city, offline, with the commands that a user would type."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdata import files, output_lock, output_names, package_data
from sgdata.errors import ExitCode, SourceError

log = logging.getLogger("sgdata")


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Size and ground of the city, and changes to the recipes of the demo.

    Attributes:
        size_km: Side of the city.
        dates: Number of acquisition dates.
        seed: Seed of the simulation.
        ground: `context` or `plain`.
        pretrain: `--set` texts of the pretraining.
        few: `--set` texts of the pretrained segmentation model, which has few labels, before those of `segment`.
        segment: `--set` texts of both segmentation models.
        linear: `--set` texts of the per-pixel linear model.
        build: `--set` texts of the build.
    """

    size_km: float = 8.0
    dates: int = 12
    seed: int = 1
    ground: str = "context"
    pretrain: tuple[str, ...] = ()
    # As many steps as with all labels.
    few: tuple[str, ...] = ("training.fraction=0.2", "training.epochs=100")
    segment: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()
    # Small blocks, or a split of a small city would lack the rare classes.
    build: tuple[str, ...] = ("split.block_px=200", "split.gap_px=32", "patches.stride=32")


# Stages that may exit with findings: small cities have pixels without a clear observation, and audit findings.
MAY_HAVE_FINDINGS = ("build", "audit", "release")
# What the pretrained segmenter, which has few labels, is compared with: title, least difference in mIoU expected.
BASELINES = {
    "linear": ("linear model with all labels", 0.10),
    "scratch": ("random weights with all labels", 0.0),
}
# Staged pixels, kept until the build is scored; hidden, so that SHA256SUMS omits them.
SCRATCH = ".scratch"


# The release is registered in its own folder: a simulated city does not belong in the catalogue of a checkout.
STAGES = """
simulate: sgdata simulate {out}/archive --size {size_km} --dates {dates} --seed {seed} --ground {ground}
  --workers {workers}
build: sgdata build segmunich --aoi {out}/archive/aoi.geojson --stac {out}/archive/catalog.json
  --osm {out}/archive/osm/city.osm --out {out}/build --scratch {out}/{scratch} --workers {workers} {build}
audit: sgdata audit {out}/build --out {out}/audit --workers {workers}
shard: sgdata shard segmunich --source {out}/build --out {out}/shards --workers {workers}
release: sgdata release demo-city 1.0 --source {out}/shards --build {out}/build --out {out}/release
  --register {out}/release --workers {workers}
pretrain: python -m sgmodel.recipes.pretrain {train}/pretrain-demo-context.toml --shards {out}/shards
  --out {out}/runs/pretrain --threads 1 {pretrain}
linear: python -m sgmodel.recipes.segment {train}/segment-demo-linear.toml --shards {out}/shards
  --out {out}/runs/linear --threads 1 --quiet {linear}
segment: python -m sgmodel.recipes.segment {train}/segment-demo-context.toml --shards {out}/shards
  --out {out}/runs/segment --weights {out}/runs/pretrain/checkpoint-last --threads 1 {few} {segment}
scratch: python -m sgmodel.recipes.segment {train}/segment-demo-context.toml --shards {out}/shards
  --out {out}/runs/scratch --threads 1 --quiet {segment}
"""
# Trainings with small batches gain little from a second thread, so that two workers train two models at once. Only one
# of them shows its progress.
TOGETHER = (("pretrain", "linear"), ("segment", "scratch"))


def commands(story: DemoSettings, out: Path, workers: int) -> dict[str, list[str]]:
    """Return the command of each stage as words, by stage name, in the order in which to run them."""
    changed = {
        name: " ".join(f"--set {shlex.quote(change)}" for change in getattr(story, name))
        for name in ("build", "pretrain", "few", "segment", "linear")
    }
    paths = {"out": shlex.quote(str(out)), "train": shlex.quote(str(package_data.folder("recipes") / "train"))}
    text = STAGES.format(**vars(story) | changed | paths, scratch=SCRATCH, workers=workers)
    stages = (line.split(": ", 1) for line in text.replace("\n  ", " ").strip().splitlines())
    return {name: shlex.split(command) for name, command in stages}


def run(out: Path, *, story: DemoSettings, workers: int) -> Path:
    """Run every stage into `out`, score it against the truth, and write the page, `summary.json` and sums.

    Returns the path of the page. Raises SourceError if a stage fails.
    """
    from sgdata.demo import score
    from sgdata.pages import output_page

    with output_lock.only_writer(out):
        seconds: dict[str, float] = {}
        # Each stage in its own process, as for a user: nothing is passed on in memory.
        words = commands(story, out, workers)
        for stages in turns(list(words), workers):
            start = time.monotonic()
            perform({stage: words[stage] for stage in stages})
            seconds[" and ".join(stages)] = round(time.monotonic() - start, 1)
            if stages == ("build",):
                start = time.monotonic()
                figures = score.fidelity(out / "archive", out / "build", scratch=out / SCRATCH, workers=workers)
                shutil.rmtree(out / SCRATCH)
                seconds["score"] = round(time.monotonic() - start, 1)
        figures |= collect_training_results(out)
        start = time.monotonic()
        page = output_page.write_demo(out, out / "page", lines(figures))
        seconds["page"] = round(time.monotonic() - start, 1)
        # figures.json has no times and is part of SHA256SUMS; summary.json adds the times and is not.
        files.write(out / "figures.json", files.pretty_json(figures))
        summary = figures | {"seconds": seconds, "page": page.relative_to(out).as_posix()}
        files.write(out / output_names.SUMMARY, files.pretty_json(summary))
        files.write_sums(out)
    return page


def turns(stages: list[str], workers: int) -> list[tuple[str, ...]]:
    """Return the stages in turns, of which each has those of `TOGETHER` that run at once if there are two workers."""
    if workers < 2:
        return [(stage,) for stage in stages]
    second = {later: first for first, later in TOGETHER}
    pairs = {first: (first, later) for first, later in TOGETHER}
    return [pairs.get(stage, (stage,)) for stage in stages if stage not in second]


def perform(stages: dict[str, list[str]]) -> None:
    """Log commands and run them at once with this Python. Raises SourceError if one fails."""
    # As a module, since `sgdata` on the PATH may be another installation.
    modules = {"sgdata": ["-m", "sgdata.cli"], "python": []}
    # OpenMP threads that spin while waiting stall each other on a shared machine: on two busy cores a training step
    # took 0.5 to 4.8 s with spinning and 0.18 s without. Results do not depend on it.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for stage, command in stages.items():
            log.info("\n[%s]\n$ %s", stage, shlex.join(command))
            words = [sys.executable, *modules[command[0]], *command[1:]]
            running[stage] = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment)
        while any(process.poll() is None for process in running.values()):
            check_ended(running)
            time.sleep(0.05)
        check_ended(running)
    finally:
        for process in running.values():  # those beside one that failed, or all if the demo is stopped
            process.kill()
            process.wait()


def check_ended(running: dict[str, subprocess.Popen[bytes]]) -> None:
    """Raise SourceError if a stage has failed; those that still run have not."""
    for stage, process in running.items():
        code = process.poll()
        if code and not (stage in MAY_HAVE_FINDINGS and code == ExitCode.FINDINGS):
            raise SourceError(f"demo: stage '{stage}' ended with exit code {code}; see its message above")


def collect_training_results(out: Path) -> dict[str, Any]:
    """Collect losses and segmentation scores of the runs with their labels, and the numbers of patches and shards."""
    from sgdata.demo import score

    steps = [json.loads(line) for line in (out / "runs/pretrain/metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    contract = files.read_plain(out / "shards/contract.json")
    results = {name: files.read_plain(out / "runs" / name / output_names.RESULTS) for name in ("segment", *BASELINES)}
    labels = {}
    for name in results:
        training = files.read_plain(out / "runs" / name / output_names.RECIPE)["training"]
        labels[name] = score.labelled(out / "build", share=training["fraction"], seed=training["fraction_seed"])
    return {
        "patches": sum(contract["splits"].values()),
        "shards": len(list((out / "shards").glob("*.tar"))),
        "pretrain": {"loss_first": losses[0], "loss_last": losses[-1], "steps": steps[-1]["step"] + 1},
        "segment": {key: results["segment"][key] for key in ("miou", "miou_majority", "oa")}
        | {f"miou_{name}": results[name]["miou"] for name in BASELINES}
        | {"labels": labels},
    }


def comparisons(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Compare the pretrained segmenter with its baselines: (name, difference in mIoU, whether it is as expected)."""
    segment, rows = figures["segment"], []
    for name, (title, least) in BASELINES.items():
        difference = segment["miou"] - segment[f"miou_{name}"]
        verdict = "reached" if difference >= least else "MISSED"
        rows.append((f"pretrained minus {title}", f"{difference:+.4f}", f"{verdict}: at least {least:+.2f} expected"))
    return rows


def lines(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Format the figures as rows (name, value, remark), for the page and for the table that the command prints."""
    composite, segment, pretrain = figures["composite"], figures["segment"], figures["pretrain"]
    first, last = pretrain["loss_first"], pretrain["loss_last"]

    def number(value: float | None) -> str:
        return "none" if value is None else f"{value:.4f}"

    def labels(name: str) -> str:
        return "{patches} patches, {km2:.1f} km2 of labels".format(**segment["labels"][name])

    return [
        (f"composite error, {composite['method']}", number(composite["rmse"]), "reflectance RMSE against the truth"),
        ("against the truth of its own dates", number(composite["rmse_chosen_date"]), ""),
        ("same rule, clouds not masked", number(composite["rmse_same_rule_unmasked"]), ""),
        ("median", number(composite["rmse_median"]), ""),
        ("best cloudy scene", number(composite["rmse_best_cloudy_scene"]), ""),
        ("residual cloud", f"{100 * composite['residual_cloud']:.3f} %", "of pixels ever clear"),
        ("label agreement", f"{100 * figures['labels']['agreement']:.2f} %", "where OpenStreetMap mapped the ground"),
        ("offset decisions right", f"{figures['offset']['right']} of {figures['offset']['total']}", ""),
        ("patches, shards", f"{figures['patches']}, {figures['shards']}", ""),
        ("pretraining loss", f"{number(first)} -> {number(last)}", f"{pretrain['steps']} steps, without labels"),
        ("mIoU, pretrained", number(segment["miou"]), f"{labels('segment')}; accuracy {number(segment['oa'])}"),
        ("mIoU, random weights", number(segment["miou_scratch"]), labels("scratch")),
        ("mIoU, linear model of single pixels", number(segment["miou_linear"]), labels("linear")),
        ("mIoU, majority class", number(segment["miou_majority"]), ""),
        *comparisons(figures),
    ]
