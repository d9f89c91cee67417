"""Predict with any checkpoint: maps of a whole scene without seams, or a row per patch.

    python -m sgmodel.recipes.predict --input FILE.tif|BUILD|SHARDS [--after SECOND] --weights CHECKPOINT --out DIR

What the checkpoint's card says is what is done. Segmentation and change detection give `classes.tif` with the palette
and names of the label space; classification a row and a pixel per patch (`patches.parquet`, `classes.tif`; of several
labels `probabilities.tif`); `--what embeddings` a vector per token (`embeddings.tif`); shards a row per sample, or
`classes/KEY.png`. Tiles overlap and fade into each other. How many go through the model at once, and on how many
threads, changes the last bits of a float: a pixel between two equally likely classes may fall to either side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch

from sgdata import files, progress
from sgdata.errors import ExitCode, OutputError, SettingError
from sgdata.rasters import geotiff
from sgdata.shards import contracts, tar_format
from sgdata.types import Array, Contract, Grid, LabelSpace, Level, Window
from sgmodel import devices
from sgmodel.checkpoints import cards, checkpoint_folder
from sgmodel.data import loader, upsample
from sgmodel.inference import raster_input, tiling
from sgmodel.inference.predictor import SCENES, Predictor

ROWS, CLASSES, PROBABILITIES, EMBEDDINGS = "patches.parquet", "classes.tif", "probabilities.tif", "embeddings.tif"
OWN = (ROWS, CLASSES, f"{CLASSES}.aux.xml", PROBABILITIES, EMBEDDINGS)
PALETTE = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
BLOCK = 512
ANY_PX = 128
"""Side of the tiles of a model that takes any, where its training samples had many."""


@dataclass(frozen=True, kw_only=True)
class PredictRecipe:
    """Settings that change the numbers of a prediction, besides the weights.

    Attributes:
        what: Kind of answer; probabilities come with the classes.
        overlap: Share of a tile's side that neighbouring tiles have in common, 0 to 0.75.
        batch: Tiles or samples per forward pass.
        precision: Number format of matrix products.
        split: Split of the shards; empty for all.
        bands: Bands of a GeoTIFF without band names, in its order.
        level: Processing level of a GeoTIFF without a contract, "L1C" or "L2A".
        accept: Differences from the training data that are allowed.
    """

    what: Literal["classes", "probabilities", "embeddings"]
    overlap: float
    batch: int
    precision: devices.Precision
    split: str
    bands: tuple[str, ...]
    level: Level | Literal[""]
    accept: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PredictPaths:
    """What is read (two dates of a change), where answers go, and what computes them."""

    inputs: tuple[Path, ...]
    weights: Path
    out: Path
    device: str = "auto"
    threads: int = 2


def main(recipe: PredictRecipe, paths: PredictPaths) -> int:
    """Predict, with recipe and contract beside the answers; 0. Raises SgdataError."""
    if not 0 <= recipe.overlap <= 0.75:
        raise SettingError(f"overlap is {recipe.overlap}: expected 0 to 0.75 of a tile's side")
    for name, value in (("batch", recipe.batch), ("--threads", paths.threads)):
        if value < 1:
            raise SettingError(f"{name} is {value}: expected 1 or more")
    where = devices.start(paths.device, precision=recipe.precision, threads=paths.threads)
    predictor = load(paths.weights, where, embeddings=recipe.what == "embeddings")
    packed = (paths.inputs[0] / tar_format.INDEX).exists()
    wanted = 1 if packed else predictor.dates
    if len(paths.inputs) != wanted:
        expected = "--input and --after" if wanted == 2 else "--input alone"
        raise SettingError(f"{len(paths.inputs)} inputs for the task '{predictor.task}': expected {expected}")
    with files.only_writer(paths.out, ""):
        # First the sums, which say that a folder is finished; then what another model or setting may have left, for
        # the sums of this run must not vouch for it.
        pictures = sorted(paths.out.glob("classes/*.png"))
        for path in [paths.out / name for name in (files.SUMS, *OWN)] + pictures:
            path.unlink(missing_ok=True)
        (of_shards if packed else of_scene)(recipe, predictor, paths)
        files.write(paths.out / "recipe.toml", files.toml(recipe))
        contracts.write(paths.out, predictor.contract)
        files.write_sums(paths.out)
    print(paths.out)
    return ExitCode.DONE


def load(weights: Path, where: devices.Launch, *, embeddings: bool) -> Predictor:
    """The model of a checkpoint folder. Raises SettingError, SourceError."""
    if not weights.is_dir():
        raise SettingError(f"{weights}: holds no card; expected a checkpoint folder, which training writes")
    card = cards.read(weights)
    contract, kind = card.contract, card.model.kind
    if contract is None or card.normalisation is None:
        raise SettingError(f"{weights}: its card tells neither bands nor normalisation; fine-tune it first")
    if embeddings:  # labels play no part then, neither the model's nor the data's
        contract = replace(contract, label_space=LabelSpace(name="embeddings", task="none"))
    elif kind in {"encoder", "autoencoder", "contrast"}:
        raise SettingError(f"{weights}: pretrained ({kind}), it knows no classes; fine-tune it, or --what embeddings")
    whole = contract.label_space.task in SCENES
    trained = contract.shape[1] if contract.shape else 0
    fixed = card.model.recipe.px if card.model.recipe else card.model.encoder.image_px if card.model.encoder else 0
    # A scene classifier has seen scenes enlarged to its size; any other model has seen pixels as they are.
    ground = (trained or fixed if whole else fixed or trained) or ANY_PX
    return Predictor(
        model=cards.load(weights).to(where.device),
        contract=contract,
        how=card.normalisation,
        where=where,
        ground_px=ground,
        px=fixed or ground,
        zoom=float((card.recipe or {}).get("zoom", 1.0)) if whole else 1.0,
    )


# --- a scene -------------------------------------------------------------------------------


def of_scene(recipe: PredictRecipe, predictor: Predictor, paths: PredictPaths) -> None:
    """Predict on one raster, or on a pair of them. Raises SgdataError."""
    stated = raster_input.Stated(bands=recipe.bands, level=recipe.level or None, accept=recipe.accept)
    with ExitStack() as stack:
        dates = [
            stack.enter_context(raster_input.opened(path, predictor.contract, predictor.how, stated))
            for path in paths.inputs
        ]
        grid = dates[0].grid
        if dates[-1].grid != grid:
            told = " and ".join(f"{date.grid.shape} at {date.grid.origin}" for date in dates)
            raise SettingError(f"--after covers other pixels than --input: {told}; warp one onto the other")
        plan = tiling.plan(grid.shape, px=predictor.ground_px, answer=predictor.answer, overlap=recipe.overlap)
        rows = tiling.blended(plan, partial(_read, dates), predictor.look, batch=recipe.batch)
        rows = itertools.chain(rows, _closed(stack))
        answers: Iterable[tiling.Row] = progress.track(rows, label="rows of tiles", total=len(plan.rows))
        coarse = replace(grid, gsd_m=grid.gsd_m * plan.unit, shape=plan.cells)
        if predictor.task in SCENES:
            # An answer per patch is small: a whole Sentinel-2 tile has some thirty thousand of 64 px.
            answers = [(row, answer.copy(), seen) for row, answer, seen in answers]
            _write_rows(paths.out, [row for each in answers for row in _patches(predictor, coarse, plan.px, each)])
        write_maps(recipe, predictor, paths, (coarse, plan.channels), answers)


def _closed(stack: ExitStack) -> Iterator[tiling.Row]:
    """No row: the rasters close once they are read, so that their cache and that of the map never lie side by side."""
    stack.close()
    yield from ()


def _read(dates: Sequence[raster_input.Scene], row: int, rows: int) -> tuple[Array, Array]:
    return _together([date.read(row, rows) for date in dates])


def _together(dates: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """The bands of all dates one behind the other, and what was seen in each of them."""
    pixels, seen = zip(*dates, strict=True)
    return np.concatenate(pixels), np.logical_and.reduce(seen)


def write_maps(
    recipe: PredictRecipe,
    predictor: Predictor,
    paths: PredictPaths,
    about: tuple[Grid, int],
    answers: Iterable[tiling.Row],
) -> None:
    """The answers as they are, where asked for or where several classes can be right, and the likeliest class; `about`
    is the grid of the map and how many answers each cell has."""
    (grid, channels), space = about, predictor.contract.label_space
    # Answers wait on disk: one raster is written at a time, and no map lies in memory.
    scratch = (paths.out / ".classes", paths.out / ".values")
    tags = {"weights_sha256": files.sha256_file(paths.weights / checkpoint_folder.WEIGHTS), "label_space": space.name}
    as_they_are = recipe.what != "classes" or predictor.task == "multi-label"
    try:
        with scratch[0].open("wb") as classes, scratch[1].open("wb") as values:
            for _, answer, seen in answers:
                if space.ids:
                    _put(likeliest(space, answer, seen)[None], classes)
                if as_they_are:
                    # In place: of a wide scene a row of tiles alone may take a hundred megabytes.
                    if (
                        space.ids
                    ):  # steps of a thousandth leave zeros behind, which take a quarter of the bytes of noise
                        np.rint(answer * np.float32(1024), out=answer)
                        answer /= 1024
                    answer[:, ~seen] = np.nan
                    _put(answer, values)
        if as_they_are:
            names = space.names or tuple(f"feature {number}" for number in range(channels))
            style = geotiff.Style(descriptions=names, nodata=float("nan"), dtype="float32", tags=tags)
            name = PROBABILITIES if space.ids else EMBEDDINGS
            geotiff.write_cog(paths.out / name, grid, _blocks(scratch[1], grid, style), style=style)
        if space.ids and predictor.task != "multi-label":
            style = geotiff.Style(descriptions=("classes",), nodata=space.ignore_index, dtype="uint8", overviews="mode")
            style = replace(style, classes=legend(space), tags=tags)
            geotiff.write_cog(paths.out / CLASSES, grid, _blocks(scratch[0], grid, style), style=style)
    except OSError as error:
        raise OutputError(f"{paths.out}: cannot be written: {error.strerror or error}; choose another --out") from None
    finally:
        for path in scratch:
            path.unlink(missing_ok=True)


def _put(rows: Array, scratch: BinaryIO) -> None:
    """Add rows (K, h, W) of a map: line by line, and of each line what a block of the raster takes in one piece."""
    for line, col in itertools.product(range(rows.shape[1]), range(0, rows.shape[2], BLOCK)):
        scratch.write(rows[:, line, col : col + BLOCK].tobytes())


def _blocks(scratch: Path, grid: Grid, style: geotiff.Style) -> Iterator[tuple[Window, Array]]:
    """The map that lies in `scratch`, in the blocks of its raster: each is written once, where rows of tiles would cut
    through all of them."""
    (height, width), bands, size = grid.shape, len(style.descriptions), np.dtype(style.dtype).itemsize
    for row, col in itertools.product(range(0, height, BLOCK), range(0, width, BLOCK)):
        shape = (min(BLOCK, height - row), bands, min(BLOCK, width - col))
        # Mapped anew for each, so that what has been written of the map leaves memory.
        values: Array = np.ndarray(
            shape, style.dtype, np.memmap(scratch, np.uint8, "r"), bands * size * (row * width + col),
            strides=(bands * size * width, size * shape[2], size),
        )  # fmt: skip
        yield Window(row=row, col=col, height=shape[0], width=shape[2]), values.transpose(1, 0, 2)


def likeliest(space: LabelSpace, answer: Array, seen: Array) -> Array:
    """(K, h, w) -> class values (h, w) uint8."""
    labels: Array = np.where(seen, np.array(space.ids, np.uint8)[answer.argmax(axis=0)], np.uint8(space.ignore_index))
    return labels


def legend(space: LabelSpace) -> dict[int, tuple[str, str]]:
    """Value -> name and colour; label spaces without colours get some."""
    colours = space.colours or tuple(itertools.islice(itertools.cycle(PALETTE), len(space.ids)))
    named = dict(zip(space.ids, zip(space.names, colours, strict=True), strict=True))
    return {**named, space.ignore_index: ("no data", "#ffffff")}


# --- a row per patch -----------------------------------------------------------------------


def _patches(predictor: Predictor, grid: Grid, px: int, rows: tiling.Row) -> Iterator[dict[str, Any]]:
    """A row per patch of a scene in which something was seen; bounds in the scene's own CRS."""
    first, answer, seen = rows
    for i, j in np.argwhere(seen).tolist():
        west, north = grid.origin[0] + j * grid.gsd_m, grid.origin[1] - (first + i) * grid.gsd_m
        bounds = {"west": west, "south": north - grid.gsd_m, "east": west + grid.gsd_m, "north": north}
        key = f"r{(first + i) * px:05d}-c{j * px:05d}"
        yield {"key": key, **bounds, "crs": grid.crs, **told(predictor, answer[:, i, j])}


def told(predictor: Predictor, answer: Array) -> dict[str, Any]:
    """The columns of one answer (K,): labels with their names, and the probability of each class; or an embedding."""
    if predictor.task == "none":
        return {"embedding": answer.tolist()}
    space = predictor.contract.label_space
    chosen = np.flatnonzero(answer >= 0.5) if predictor.task == "multi-label" else [int(answer.argmax())]
    labels = {"labels": [space.ids[at] for at in chosen], "label_names": [space.names[at] for at in chosen]}
    return {**labels, "probabilities": answer.tolist()}


def _write_rows(out: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.replacing(out / ROWS) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")


# --- shards --------------------------------------------------------------------------------


def of_shards(recipe: PredictRecipe, predictor: Predictor, paths: PredictPaths) -> None:
    """Predict on samples: a picture of classes each, or a row each. Raises SgdataError."""
    folder, space = paths.inputs[0], predictor.contract.label_space
    stored = contracts.read(folder)
    fit = raster_input.fit(stored, predictor.contract, predictor.how, recipe.accept)
    bounds = tar_format.read_index(folder).select(["key", "split", "west", "south", "east", "north"]).to_pylist()
    index, rows = {row["key"]: {**row, "crs": "EPSG:4326"} for row in bounds}, []
    members = ("image_before", "image_after") if predictor.dates == 2 else ("image",)
    for split in [recipe.split] if recipe.split else sorted(stored.splits):
        source = loader.Samples(folder, split, members)
        plan = loader.in_order(len(source), recipe.batch)
        for batch in loader.load(source, plan, threads=1):
            for key, answer, seen in _answers(recipe, predictor, batch, fit, stored):
                if predictor.task in {"segmentation", "change"}:
                    _write_picture(space, paths.out / "classes" / f"{key}.png", likeliest(space, answer, seen))
                else:
                    rows.append({**index[key], **told(predictor, answer.mean(axis=(1, 2)))})
    if rows:  # maps have none
        _write_rows(paths.out, rows)


def _answers(
    recipe: PredictRecipe, predictor: Predictor, batch: loader.Batch, fit: raster_input.Fit, stored: Contract
) -> Iterator[tuple[str, Array, Array]]:
    """(key, answer (K, h, w), seen (H, W)) of each sample of a batch."""
    if predictor.dates == 2:
        dates = [batch.arrays[name].numpy() for name in ("image_before", "image_after")]
    else:
        dates = [upsample.image(batch.arrays, batch.extent, stored, torch.device("cpu")).numpy()]
    pixels, seen = [], []
    for number, (height, width) in enumerate(batch.extent.tolist()):
        parts = _together([fit.pixels(date[number, :, :height, :width]) for date in dates])
        pixels.append(parts[0])
        seen.append(parts[1])
    sizes = {mask.shape for mask in seen}
    # Samples of the model's own size, and scenes that get one answer, go through in one batch.
    if len(sizes) == 1 and (predictor.task in SCENES or sizes == {(predictor.px, predictor.px)}):
        answers = list(predictor.look(np.stack(pixels)))
    elif predictor.task in SCENES:
        answers = [predictor.look(values[None])[0] for values in pixels]
    else:
        answers = [_whole(recipe, predictor, *each) for each in zip(pixels, seen, strict=True)]
    yield from zip(batch.keys, answers, seen, strict=True)


def _whole(recipe: PredictRecipe, predictor: Predictor, pixels: Array, seen: Array) -> Array:
    """A sample larger or smaller than the model's images, as a scene of its own."""
    shape = (seen.shape[0], seen.shape[1])
    plan = tiling.plan(shape, px=predictor.ground_px, answer=predictor.answer, overlap=recipe.overlap)
    rows = tiling.blended(
        plan, lambda row, n: (pixels[:, row : row + n], seen[row : row + n]), predictor.look, batch=recipe.batch
    )
    return np.concatenate([answer.copy() for _, answer, _ in rows], axis=1)


def _write_picture(space: LabelSpace, path: Path, labels: Array) -> None:
    """Classes (H, W) as a PNG with their palette: a shard knows a sample's bounds, but not its lattice."""
    from PIL import Image

    # Values stay class values; the colours are beside them, as in the GeoTIFF.
    picture, palette = Image.fromarray(labels), np.zeros((256, 3), np.uint8)
    for label, (_, colour) in legend(space).items():
        palette[label] = tuple(bytes.fromhex(colour[1:]))
    picture.putpalette(palette.tobytes())
    # Not one wait for the disk per sample: the sums, written last, say whether all are there.
    with files.replacing(path, durable=False) as temporary:
        picture.save(temporary, format="PNG")
