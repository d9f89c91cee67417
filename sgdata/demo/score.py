"""Score the composite, labels and offsets of a build against the truth of the simulated city."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sgdata.types import Array, Grid

if TYPE_CHECKING:
    from sgdata.builds.build_recipe import BuildRecipe
    from sgdata.composite.rules import Method
    from sgdata.staging.scene_staging import StagedScene

# Share of cloud and shadow from which a scene counts as cloudy.
CLOUDY = 0.05
PIXEL_M = 10


def fidelity(archive: Path, build: Path, *, scratch: Path, workers: int) -> dict[str, Any]:
    """Compute the `composite`, `labels` and `offset` parts of `summary.json` (RMSE in reflectance, shares 0-1)."""
    from sgdata import files, output_names
    from sgdata.builds import build_recipe, fetch_scenes, pipeline
    from sgdata.scenes import lock
    from sgdata.simulation import compare_truth

    recipe = files.read(build_recipe.BuildRecipe, build / output_names.RECIPE)
    built = lock.read(build / lock.NAME)
    items = [item.scene.id for item in built.items]
    paths = build_recipe.BuildPaths(out=build, stac=str(archive / "catalog.json"), workers=workers, scratch=scratch)
    # As a whole, and without their hashes: the variants below use pixels that the build need not read.
    whole = tuple(replace(item, windows={}, cells={}) for item in built.items)
    fetched, scenes = fetch_scenes.fetch_scenes(recipe, replace(built, format=lock.WHOLE_WINDOWS, items=whole), paths)

    truth = compare_truth.true_median(archive, recipe.bands)
    clouds = compare_truth.true_clouds(archive, items)
    image = compare_truth.read(build / output_names.IMAGE)
    index = compare_truth.read(build / output_names.PROVENANCE)[0]
    # Score every variant on the same pixels, or the one that omits more would look better.
    where = compare_truth.ever_clear(clouds) & (image > 0).all(axis=0)

    def variant(changed: BuildRecipe, name: str) -> Array:
        """Render the same scenes with a changed recipe; their pixels are staged already."""
        pipeline.render(changed, fetched, scenes, paths, scratch / name)
        return compare_truth.read(scratch / name / output_names.IMAGE)

    land_cover, mapped = (
        compare_truth.read(archive / "truth" / f"{name}.tif")[0] for name in ("land_cover", "osm_mapped")
    )
    by_median: Method = "median"
    unmasked = variant(replace(recipe, mask=replace(recipe.mask, method="none")), "unmasked")
    median = variant(replace(recipe, composite=replace(recipe.composite, method=by_median)), "median")
    # Two references: the median of all dates measures how well the composite represents the year; the truth on the
    # dates it chose measures the pixels alone.
    chosen = compare_truth.chosen_truth(archive, items, index, recipe.bands)
    return {
        "composite": {
            "method": recipe.composite.method,
            "rmse": compare_truth.rmse(image, truth, where),
            "rmse_chosen_date": compare_truth.rmse(image, chosen, where & (index < len(items))),
            "rmse_same_rule_unmasked": compare_truth.rmse(unmasked, truth, where),
            "rmse_median": compare_truth.rmse(median, truth, where),
            "rmse_best_cloudy_scene": best_cloudy_scene(recipe, scenes, truth, clouds),
            "residual_cloud": compare_truth.residual_cloud(index, clouds),
        },
        # Only where the simulated OpenStreetMap has features: unmapped ground is not a labelling error.
        "labels": {
            "agreement": compare_truth.label_agreement(
                compare_truth.read(build / output_names.LABELS)[0], land_cover, mapped
            )
        },
        "offset": compare_truth.offsets({i.scene.id: i.offset != 0 for i in built.items}, archive),
    }


def best_cloudy_scene(
    recipe: BuildRecipe, scenes: tuple[StagedScene, ...], truth: Array, clouds: Array
) -> float | None:
    """Return the smallest RMSE of a single cloudy scene against the truth, or None without any."""
    from sgdata.composite import tiles
    from sgdata.rasters import grids
    from sgdata.sentinel2 import MSI
    from sgdata.simulation import compare_truth

    assert isinstance(recipe.area.grid, Grid)  # the recipe beside a build is resolved
    job = tiles.CompositeJob(
        grid=recipe.area.grid, bands=recipe.bands, kernel=recipe.resampling, scenes=scenes, folder=Path(),
        settings=replace(recipe.composite, method="geomedian"),  # which looks at every band
    )  # fmt: skip
    # From the truth: the cloud cover in the catalogue is an estimate, and wrong on purpose in some items.
    cloudy = (clouds & (compare_truth.CLOUD | compare_truth.SHADOW)).astype(bool).mean(axis=(1, 2)) > CLOUDY
    # Sums over windows, since all scenes of a large city do not fit in memory.
    squares, pixels = np.zeros(len(scenes)), np.zeros(len(scenes))
    for window in grids.cut_tiles(truth.shape[1:], 256):
        stack = tiles.read_stack(job, window)
        reference = truth[(slice(None), *window.slices)].astype(np.float64)
        for number, (planes, seen) in enumerate(zip(stack.dn, stack.clear_scores > 0, strict=True)):
            squares[number] += ((planes[:, seen] - reference[:, seen]) ** 2).sum()
            pixels[number] += seen.sum() * len(planes)
    clouded = cloudy & (pixels > 0)
    return float(np.sqrt(np.min(squares[clouded] / pixels[clouded])) * MSI.scale) if clouded.any() else None


def labelled(build: Path, *, share: float, seed: int) -> dict[str, Any]:
    """Count the training patches that `training.fraction` chooses, and the ground in km2 that they cover together."""
    from sgdata import output_names, parquet_tables
    from sgdata.simulation import compare_truth
    from sgdata.splits.ground_splits import order_digest

    table = parquet_tables.read(build / output_names.PATCHES, columns=["key", "row", "col", "height", "width", "split"])
    patches = [row for row in table.to_pylist() if row["split"] == "train"]
    patches.sort(key=lambda row: order_digest(seed, row["key"]))
    chosen = patches[: max(1, int(share * len(patches) + 0.5))]
    # Patches overlap: their number alone says little about how much ground has labels.
    covered = np.zeros(compare_truth.read(build / output_names.LABELS).shape[1:], bool)
    for row in chosen:
        covered[row["row"] : row["row"] + row["height"], row["col"] : row["col"] + row["width"]] = True
    return {"patches": len(chosen), "km2": float(covered.sum()) * PIXEL_M**2 / 1e6}
