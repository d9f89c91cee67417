"""Measure the error of every composite to the known ground, and of the same rule with the true cloud masks.

python tests/bench/bench_truth.py ARCHIVE     of an archive that is there (`sgdata simulate`)
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import rasterio

from sgdata import files, package_data
from sgdata.builds import build_recipe, fetch_scenes, pipeline
from sgdata.composite import rules
from sgdata.scenes import lock
from sgdata.scenes.aoi import Area
from sgdata.simulation import archive as archives
from sgdata.simulation import compare_truth
from sgdata.types import Array

SIZE_KM, DATES, SEED = 4.0, 12, 7
MASKS = {"cloud and shadow": compare_truth.CLOUD | compare_truth.SHADOW, "and thin cloud, haze, snow": 255}


def recipe(archive: Path) -> build_recipe.BuildRecipe:
    published = files.read(build_recipe.BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    return replace(published, dates="2019-04-01/2020-03-31", area=Area(aoi=str(archive / "aoi.geojson")))


def true_masks(archive: Path, folder: Path, bits: int) -> Path:
    """Rasters for mask method external: not 0 where the sky of a scene is known to be in the way."""
    folder.mkdir(parents=True)
    for path in sorted((archive / "truth" / "clouds").glob("*.tif")):
        with rasterio.open(path) as dataset:
            profile, values = dataset.profile, dataset.read() & bits
        with rasterio.open(folder / path.name, "w", **profile) as target:
            target.write((values > 0).astype(np.uint8))
    return folder


def built(
    settings: build_recipe.BuildRecipe, places: build_recipe.BuildPaths, name: str
) -> tuple[lock.Lock, Array, Array]:
    """Build without labels and patches; return the fetched lock, the image and the index of the chosen items."""
    fetched, scenes = fetch_scenes.fetch_scenes(settings, pipeline.plan(settings, places), places)
    pipeline.render(settings, fetched, scenes, places, places.out / name)
    return fetched, *(compare_truth.read(places.out / name / file) for file in ("image.tif", "provenance.tif"))


def figures(archive: Path, scratch: Path) -> Iterator[tuple[str, str, str, str]]:
    base, places = recipe(archive), build_recipe.BuildPaths(out=scratch, stac=str(archive), osm="none")
    truth = compare_truth.true_median(archive, base.bands)
    fetched = None
    true = {words: true_masks(archive, scratch / f"masks-{bits}", bits) for words, bits in MASKS.items()}
    for method in get_args(rules.Method):
        ours = replace(base, composite=replace(base.composite, method=method))
        fetched, image, provenance = built(ours, places, method)
        ids = [item.scene.id for item in fetched.items]
        clouds = compare_truth.true_clouds(archive, ids)
        chooses = bool((provenance[0] < len(ids)).any())
        notes = []
        for words, folder in true.items():
            exact = replace(
                ours.mask, method="external", bright_target_filter=False, cloud_buffer_m=0, shadow_buffer_m=0
            )
            _, best, _ = built(replace(ours, mask=exact), replace(places, masks=folder), f"{method}-{words}")
            where = compare_truth.ever_clear(clouds) & (image > 0).all(axis=0) & (best > 0).all(axis=0)
            notes.append(
                f"{words} {compare_truth.rmse(image, truth, where) / compare_truth.rmse(best, truth, where):.2f}"
            )
        rmse = compare_truth.rmse(image, truth, where)
        residual = f", residual cloud {compare_truth.residual_cloud(provenance[0], clouds):.3%}" if chooses else ""
        words = f"{'; '.join(notes)} (RMSE {rmse:.4f}{residual})"
        yield f"truth, {method}", "same rule, true masks", "<= 1.1x", words
    assert fetched is not None
    still_in = {item.scene.id: item.offset != 0 for item in fetched.items}
    right = compare_truth.offsets(still_in, archive)
    yield "truth, offsets", "planted", "all", f"{right['right']} of {right['total']}"
    planted = json.loads((archive / "truth" / "traps.json").read_text())
    seen = {item.scene.id for item in fetched.items} | {dropped.id for dropped in fetched.dropped}
    traps = {f"{trap} {name[:18]}" for name, about in planted.items() for trap in about["traps"] if name in seen}
    left_out = "; ".join(f"{dropped.id}: {dropped.reason}" for dropped in fetched.dropped)
    yield "truth, traps", "planted in the window", "all named", f"{len(traps)} planted; left out: {left_out}"


def rows(archive: Path | None = None) -> Iterator[tuple[str, str, str, str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = archive or archives.simulate(folder / "a", seed=SEED, size_km=SIZE_KM, dates=DATES, ground="plain")
        yield from figures(archive, folder / "b")


if __name__ == "__main__":
    for row in rows(*(Path(word).resolve() for word in sys.argv[1:])):
        print(*row, sep=" | ", flush=True)
