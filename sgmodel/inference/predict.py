"""Predict with a checkpoint: maps of whole scenes, a row per patch, or the samples of shards.

The card of the checkpoint decides the task. Segmentation and change detection write `classes.tif` with the palette and
names of the label space; classification writes a row and a pixel per patch (`patches.parquet`, `classes.tif`; with
several labels per scene `probabilities.tif`); embeddings are a vector per token (`embeddings.tif`). Shards give a row
per sample or `classes/KEY.png`. Tiles overlap and are blended. Batch size and number of threads change the last bits
of a float, so that a pixel between two equally likely classes may get either.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sgdata import files, output_lock, output_names, progress
from sgdata.errors import ExitCode, SettingError
from sgdata.rasters import grids
from sgdata.safe_names import file_name
from sgdata.shards import contracts, shard_index
from sgdata.types import TASKS, Array, Contract, Grid, LabelSpace, PixelLevel
from sgmodel import devices
from sgmodel.checkpoints import cards, checkpoint_folder
from sgmodel.data import loader, upsample, windows
from sgmodel.inference import output_files, raster_input, tiling
from sgmodel.inference import predictor as predictors
from sgmodel.inference.predictor import Predictor


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
    level: PixelLevel | Literal[""]
    accept: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PredictPaths:
    """Inputs, outputs and machine settings of a prediction.

    Attributes:
        inputs: Raster, build or shards; two of them for change detection.
        weights: Checkpoint folder.
        out: Folder of the predictions.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one operation.
    """

    inputs: tuple[Path, ...]
    weights: Path
    out: Path
    device: str = "auto"
    threads: int = 2


def main(recipe: PredictRecipe, paths: PredictPaths) -> int:
    """Predict, and write the recipe and the contract beside the answers; return the exit code.

    Raises:
        SettingError: The recipe does not fit the checkpoint or the inputs.
        SourceError: An input or the checkpoint cannot be read.
        OutputError: An output cannot be written.
    """
    if not 0 <= recipe.overlap <= 0.75:
        raise SettingError(f"overlap is {recipe.overlap}: expected 0 to 0.75 of a tile's side")
    for name, value in (("batch", recipe.batch), ("--threads", paths.threads)):
        if value < 1:
            raise SettingError(f"{name} is {value}: expected 1 or more")
    launch = devices.setup_device(paths.device, precision=recipe.precision, threads=paths.threads)
    predictor = load(paths.weights, launch, embeddings=recipe.what == "embeddings")
    is_shards = (paths.inputs[0] / output_names.INDEX).exists()
    count = 1 if is_shards else predictor.dates
    if len(paths.inputs) != count:
        expected = "--input and --after" if count == 2 else "--input alone"
        raise SettingError(f"{len(paths.inputs)} inputs for the task '{predictor.task}': expected {expected}")
    with output_lock.only_writer(paths.out, ""):
        output_files.remove_previous(paths.out)
        if is_shards:
            predict_shards(recipe, predictor, paths)
        else:
            predict_scene(recipe, predictor, paths)
        files.write(paths.out / output_names.RECIPE, files.toml(recipe))
        contracts.write(paths.out, predictor.contract)
        files.write_sums(paths.out)
    print(paths.out)
    return ExitCode.DONE


def load(weights: Path, launch: devices.Runtime, *, embeddings: bool) -> Predictor:
    """Load the model of a checkpoint folder for prediction.

    Args:
        weights: Checkpoint folder.
        launch: Device and precision.
        embeddings: Whether to return embeddings in place of classes.

    Returns:
        The predictor, with its model on the device.

    Raises:
        SettingError: The checkpoint has no contract, or no classes where they are asked for.
        SourceError: The checkpoint cannot be read.
    """
    if not weights.is_dir():
        raise SettingError(f"{weights}: has no card; expected a checkpoint folder written by training")
    card = cards.read(weights)
    contract, kind = card.contract, card.model.kind
    if contract is None or card.normalisation is None:
        raise SettingError(f"{weights}: its card has no bands or normalisation; fine-tune it first")
    if embeddings:  # independent of labels, both of the model and of the data
        contract = replace(contract, label_space=LabelSpace(name="embeddings", task="none"))
    elif kind in {"encoder", "autoencoder", "contrast"}:
        raise SettingError(
            f"{weights}: a pretrained model ({kind}) without classes; fine-tune it, or give --what embeddings"
        )
    is_scene_task, px = TASKS[contract.label_space.task].answer == "scene", card.model.px
    trained = contract.shape[1] if contract.shape else 0
    # A scene classifier was trained on scenes enlarged to its size, other models on pixels at their resolution.
    ground = windows.image_side((trained or px) if is_scene_task else px, contract)
    return Predictor(
        model=cards.load(weights).to(launch.device),
        contract=contract,
        normalisation=card.normalisation,
        launch=launch,
        ground_px=ground,
        px=px or ground,
        zoom=(card.recipe or {}).get("zoom"),
    )


# --- a scene -------------------------------------------------------------------------------


def predict_scene(recipe: PredictRecipe, predictor: Predictor, paths: PredictPaths) -> None:
    """Predict one raster, or a pair of them. Raises SgdataError."""
    stated = raster_input.InputFacts(bands=recipe.bands, level=recipe.level or None, accept=recipe.accept)
    space = predictor.contract.label_space
    with ExitStack() as stack:
        dates = [
            stack.enter_context(raster_input.open_scene(path, predictor.contract, predictor.normalisation, stated))
            for path in paths.inputs
        ]
        grid = dates[0].grid
        if differ := grids.find_differences(dates[-1].grid, grid):
            raise SettingError(
                f"--after covers other pixels than --input: {'; '.join(differ)}; warp one onto the other"
            )
        plan = tiling.plan(
            grid.shape, px=predictor.ground_px, output_shape=predictor.output_shape, overlap=recipe.overlap
        )
        rows = tiling.blend(plan, partial(_read, dates), predictor.predict, batch=recipe.batch)
        rows = itertools.chain(rows, _close_rasters(stack))
        outputs: Iterable[tiling.Row] = progress.track(rows, label="rows of tiles", total=len(plan.rows))
        coarse = replace(grid, gsd_m=grid.gsd_m * plan.unit, shape=plan.cells)
        if predictor.facts.answer == "scene":
            # One answer per patch fits in memory: a Sentinel-2 tile has some thirty thousand patches of 64 px.
            outputs = [(row, output.copy(), valid) for row, output, valid in outputs]
            patches = [patch for each in outputs for patch in _patches(space, coarse, plan.px, each)]
            output_files.write_rows(paths.out, patches)
        maps = output_files.MapFiles(
            out=paths.out,
            space=space,
            grid=coarse,
            channels=plan.channels,
            classes=predictor.facts.one_class,
            values=recipe.what != "classes" or not predictor.facts.one_class,
            tags={
                "weights_sha256": files.sha256_file(paths.weights / checkpoint_folder.WEIGHTS),
                "label_space": space.name,
            },
        )
        output_files.write_maps(maps, outputs)


def _close_rasters(stack: ExitStack) -> Iterator[tiling.Row]:
    """Yield nothing, but close the rasters, so that their cache is freed before the maps are written."""
    stack.close()
    yield from ()


def _read(dates: Sequence[raster_input.RasterScene], row: int, rows: int) -> tuple[Array, Array]:
    return _stack([date.read(row, rows) for date in dates])


def _stack(dates: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Concatenate the bands of all dates; a pixel is valid where it is valid at every date."""
    pixels, valid = zip(*dates, strict=True)
    return np.concatenate(pixels), np.logical_and.reduce(valid)


def _patches(space: LabelSpace, grid: Grid, px: int, rows: tiling.Row) -> Iterator[dict[str, Any]]:
    """Yield a row per patch with a valid pixel; bounds are in the CRS of the scene."""
    first, output, valid = rows
    for i, j in np.argwhere(valid).tolist():
        west, north = grid.origin[0] + j * grid.gsd_m, grid.origin[1] - (first + i) * grid.gsd_m
        bounds = {"west": west, "south": north - grid.gsd_m, "east": west + grid.gsd_m, "north": north}
        key = f"r{(first + i) * px:05d}-c{j * px:05d}"
        yield {"key": key, **bounds, "crs": grid.crs, **output_files.output_columns(space, output[:, i, j])}


# --- shards --------------------------------------------------------------------------------


def predict_shards(recipe: PredictRecipe, predictor: Predictor, paths: PredictPaths) -> None:
    """Predict the samples of shards: a picture of classes or a row for each. Raises SgdataError."""
    folder, space = paths.inputs[0], predictor.contract.label_space
    stored = contracts.read(folder)
    fit = raster_input.map_bands(stored, predictor.contract, predictor.normalisation, recipe.accept)
    bounds = shard_index.read_index(folder).select(["key", "split", "west", "south", "east", "north"]).to_pylist()
    # Each date of a pair may be a sample of its own.
    index = {
        f"{row['key']}{date}": {**row, "key": f"{row['key']}{date}", "crs": "EPSG:4326"}
        for row in bounds
        for date in ("", "-before", "-after")
    }
    rows: list[dict[str, Any]] = []
    members = ("image_before", "image_after") if predictor.dates == 2 else ("image",)
    for split in [recipe.split] if recipe.split else sorted(stored.splits):
        source = loader.Samples(folder, split, members)
        for batch in loader.load(source, loader.in_order(len(source), recipe.batch), threads=1):
            for key, output, valid in _outputs(recipe, predictor, batch, fit, stored):
                if predictor.facts.answer == "pixel":
                    picture = paths.out / output_files.PICTURES / f"{file_name(key)}.png"
                    output_files.write_picture(space, picture, output_files.most_likely(space, output, valid))
                else:
                    rows.append({**index[key], **output_files.output_columns(space, output.mean(axis=(1, 2)))})
    if rows:
        output_files.write_rows(paths.out, rows)


def _outputs(
    recipe: PredictRecipe, predictor: Predictor, batch: loader.Batch, fit: raster_input.BandMapping, stored: Contract
) -> Iterator[tuple[str, Array, Array]]:
    """Yield the key, output (K, h, w) and mask of valid pixels (H, W) of each sample of a batch."""
    if predictor.dates == 2:
        dates = [batch.arrays[name].numpy() for name in ("image_before", "image_after")]
    else:
        dates = [upsample.images(batch.arrays, batch.valid_size, stored, torch.device("cpu")).numpy()]
    pixels, valid = [], []
    for number, (height, width) in enumerate(batch.valid_size.tolist()):
        stacked = _stack([fit.pixels(date[number, :, :height, :width]) for date in dates])
        pixels.append(stacked[0])
        valid.append(stacked[1])
    outputs = predictors.predict_samples(
        predictor, predictor.predict, pixels, valid, overlap=recipe.overlap, batch=recipe.batch
    )
    yield from zip(batch.keys, outputs, valid, strict=True)
