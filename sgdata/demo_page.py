"""The demo's page: the table of figures, then what `sgdata show` says of the build, the shards and the runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sgdata import page
from sgdata.show import build, run, samples


def write(out: Path, figures: dict[str, Any]) -> Path:
    """Write `out/page/index.html` and what it needs; returns the page."""
    folder = out / "page"
    # A picture of an earlier run must not stay beside the new page.
    shutil.rmtree(folder, ignore_errors=True)
    rows = tuple((name, value, remark) for name, value, remark in lines(figures))
    truth = {"True land cover": out / "archive" / "truth" / "land_cover.tif"}
    # Bands, classes and contract of the shards are those of the build: once is enough.
    packed = [block for block in samples.blocks(out / "shards", folder) if isinstance(block, page.Gallery)]
    return page.write(
        folder / "index.html",
        title="A simulated city, from scenes to a segmentation model",
        intro="Sentinel-2 scenes and OpenStreetMap of a city that never was, so that every figure has a truth beside "
        "it: composite, labels, patches, shards, SpectralGPT pretraining, UperNet fine-tuning.",
        # In the order of the story, the figures before everything: most readers want no more.
        blocks=[
            page.Table(title="Figures", columns=("what", "measured", "remark"), rows=rows),
            *build.blocks(out / "build", folder, truth),
            *packed,
            *run.blocks(out / "runs/pretrain", folder, "Pretraining: "),
            *run.blocks(out / "runs/segment", folder, "Fine-tuning: "),
        ],
    )


def lines(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figure, remark) for the page and for the table at the end of the command."""
    composite, segment, pretrain = figures["composite"], figures["segment"], figures["pretrain"]
    first, last = pretrain["loss_first"], pretrain["loss_last"]

    def number(value: float | None) -> str:
        return "none" if value is None else f"{value:.4f}"

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
        ("pretraining loss", f"{number(first)} -> {number(last)}", f"{pretrain['steps']} steps"),
        ("mIoU, fine-tuned", number(segment["miou"]), f"overall accuracy {number(segment['oa'])}"),
        ("mIoU, per-pixel linear", number(segment["miou_linear"]), ""),
        ("mIoU, majority class", number(segment["miou_majority"]), ""),
    ]
