"""The demo's page: maps of the build, the split, losses, reconstructions, per-class IoU, and the table of figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from sgdata import page
from sgdata.types import Array

# As wide as a screen; the files themselves lie beside for who wants every pixel.
MAP_PX = 1000
SPLIT_COLOURS = {"train": "#1f6fb2", "val": "#c8501e", "test": "#3d8f3d"}


def write(out: Path, figures: dict[str, Any]) -> Path:
    """Write `out/page/index.html` and its pictures; returns the page."""
    folder = out / "page"
    # A picture of an earlier run must not stay beside the new page.
    shutil.rmtree(folder, ignore_errors=True)
    contract = json.loads((out / "shards" / "contract.json").read_text())
    space = contract["label_space"]
    colours = dict(zip(space["ids"], space["colours"], strict=True))
    named = tuple(zip(space["colours"], space["names"], strict=True))
    rows = tuple((name, value) for name, value, _ in lines(figures))
    # In the order of the story, the figures before everything: most readers want no more.
    blocks: list[page.Block] = [
        page.Table(title="Figures", columns=("what", "measured"), rows=rows),
        *maps(out, folder, colours, named),
        split_map(out, folder),
        losses(out),
        *last_picture(
            out / "runs/pretrain",
            folder,
            "Reconstructions",
            "as they are, what the encoder saw, what the decoder made of it",
        ),
        iou(out, space),
        *last_picture(out / "runs/segment", folder, "Predictions", "image, label, prediction"),
    ]
    return page.write(
        folder / "index.html",
        title="A simulated city, from scenes to a segmentation model",
        intro="Sentinel-2 scenes and OpenStreetMap of a city that never was, so that every figure has a truth beside "
        "it: composite, labels, patches, shards, SpectralGPT pretraining, UperNet fine-tuning.",
        blocks=blocks,
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


def maps(out: Path, folder: Path, colours: dict[int, str], named: tuple[tuple[str, str], ...]) -> list[page.Picture]:
    """Composite, a single scene, labels, truth and provenance as pictures."""
    build, truth = out / "build", out / "archive" / "truth"
    image, names = decimated(build / "image.tif")
    chosen, _ = decimated(build / "provenance.tif")
    made = []

    def picture(name: str, rgb: Array, title: str, caption: str = "", keys: tuple[tuple[str, str], ...] = ()) -> None:
        page.write_png(folder / f"{name}.png", rgb)
        made.append(page.Picture(file=f"{name}.png", title=title, caption=caption, keys=keys))

    def bands(*wanted: str) -> Array:
        return page.stretch(np.stack([image[names.index(name)] for name in wanted]), low=1, high=99)

    picture("true-colour", bands("B04", "B03", "B02"), "Composite, true colour", "B04 B03 B02, stretched to 1-99 %")
    picture("false-colour", bands("B08", "B04", "B03"), "Composite, false colour", "B08 B04 B03: vegetation is red")
    picture("labels", page.paint(decimated(build / "labels.tif")[0][0], colours), "Labels", keys=named)
    picture("truth", page.paint(decimated(truth / "land_cover.tif")[0][0], colours), "True land cover", keys=named)
    # Neighbouring pixels of many dates mean that scenes alternate: seams that the composite itself does not show.
    picture("provenance", dates_coloured(chosen[0]), "Which scene each pixel came from", "one colour per scene")
    return made


def decimated(path: Path) -> tuple[Array, list[str]]:
    """Every k-th pixel of all bands of a raster, at most MAP_PX wide, and the band names."""
    # Not an overview of the file, which may be averaged: means of class or item numbers are other classes and items.
    with rasterio.open(path) as raster:
        step = max(1, -(-max(raster.shape) // MAP_PX))
        return raster.read()[:, ::step, ::step], list(raster.descriptions)


def dates_coloured(index: Array) -> Array:
    """(H, W) item index -> uint8 RGB; neighbours in the list get hues far apart, none is black."""
    import colorsys

    # Black from there on: provenance holds 65535 where no item was chosen, and no archive has 2000 items of one place.
    table = np.zeros((65536, 3), np.uint8)
    for number in range(2000):
        hue = number * 0.618034 % 1  # golden ratio: consecutive numbers land far apart
        table[number] = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.55, 0.9)]
    return table[index]


def split_map(out: Path, folder: Path) -> page.Picture:
    """Patches by split over the true-colour picture."""
    import pyarrow.parquet as pq
    from PIL import Image, ImageDraw

    columns = ["row", "col", "height", "width", "split"]
    rows = pq.read_table(out / "build" / "patches.parquet", columns=columns).to_pylist()
    with rasterio.open(out / "build" / "image.tif") as raster:
        step = max(1, -(-max(raster.shape) // MAP_PX))
    # Through grey, so that only the outlines have colour.
    picture = Image.open(folder / "true-colour.png").convert("L").convert("RGB")
    draw = ImageDraw.Draw(picture)
    for row in rows:
        left, top = row["col"] // step, row["row"] // step
        box = [left, top, left + row["width"] // step - 1, top + row["height"] // step - 1]
        draw.rectangle(box, outline=SPLIT_COLOURS[row["split"]])
    page.write_png(folder / "split.png", np.asarray(picture))
    counts = {name: sum(row["split"] == name for row in rows) for name in SPLIT_COLOURS}
    keys = tuple((colour, f"{name} ({counts[name]})") for name, colour in SPLIT_COLOURS.items() if counts[name])
    return page.Picture(
        file="split.png",
        title="Patches by split",
        caption="Whole blocks go to one split; patches in the gap between blocks are left out, so no pixel is shared.",
        keys=keys,
    )


def losses(out: Path) -> page.Lines:
    """Pretraining losses over steps."""
    steps = [json.loads(line) for line in (out / "runs/pretrain/metrics.jsonl").read_text().splitlines()]
    names = [name for name in ("loss", "loss_token", "loss_spectral") if name in steps[0]]
    series = {name: tuple((float(step["step"]), float(step[name])) for step in steps if name in step) for name in names}
    return page.Lines(title="Pretraining losses", x_label="steps", series=series)


def iou(out: Path, space: dict[str, Any]) -> page.Bars:
    """IoU per class of the fine-tuned model on the validation blocks."""
    results = json.loads((out / "runs/segment/results.json").read_text())
    per_class = results["per_class_iou"]
    # By name: a results file of ours is sorted by key, not by class.
    bars = tuple((name, colour, per_class[name]) for name, colour in zip(space["names"], space["colours"], strict=True))
    return page.Bars(title="IoU per class", bars=bars, caption="Fine-tuned model on the validation blocks.")


def last_picture(run: Path, folder: Path, title: str, shown: str) -> list[page.Picture]:
    """The newest picture of a run, copied beside the page; nothing where the run made none."""
    # Names carry the step with leading zeros: the last by name is the newest, whatever the clock of the files says.
    found = sorted((run / "pictures").glob("*.png"))[-1:]
    for path in found:
        shutil.copyfile(path, folder / f"{run.name}.png")
    return [page.Picture(file=f"{run.name}.png", title=title, caption=f"Validation patches: {shown}.") for _ in found]
