"""Test the composite against independent code: odc-stac on the same archive, and numpy's median."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
from stac_wrap import wrap
from test_segmunich import GRID, ground, pixels, recipe, run, scene

from sgdata.builds.build_recipe import BuildRecipe
from sgdata.scenes.parse_items import asset_keys
from sgdata.sentinel2 import L2A_BANDS

__all__ = ["recipe"]


@pytest.mark.parametrize("kernel", ["nearest", "bilinear", "cubic"])
def test_odc_stac_has_the_same_median_of_the_same_pixels(tmp_path: Path, recipe: BuildRecipe, kernel: Any) -> None:
    odc = pytest.importorskip("odc.stac", reason="odc-stac is not installed: pip install 'sgdata[peers]'")
    rng = np.random.Generator(np.random.Philox(key=10))
    skies = [rng.choice([4, 5, 5, 9], (90, 90)).astype(np.uint8) for _ in range(5)]
    archive = wrap(tmp_path / "a", [scene(f"2019-0{n + 4}-01", ground(n), scl=scl) for n, scl in enumerate(skies)])
    mask = replace(recipe.mask, cloud_buffer_m=0, shadow_buffer_m=0, bright_target_filter=False)
    recipe = replace(recipe, resampling=kernel, mask=mask, composite=replace(recipe.composite, method="median"))
    image = pixels(run(recipe, archive, tmp_path / "b") / "image.tif")

    keys = [asset_keys()["earth-search"][band] for band in L2A_BANDS]
    west, south, east, north = GRID.bounds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own making
        items = list(pystac.Catalog.from_file(str(archive / "catalog.json")).get_items(recursive=True))
        area = {"crs": GRID.crs, "resolution": 10, "x": (west, east), "y": (south, north)}
        resampling = {"*": kernel, "scl": "nearest"}
        data = odc.load(items, bands=[*keys, "scl"], resampling=resampling, **area)
        clear = ~data["scl"].isin(mask.drop)
        theirs = data[keys].where(clear & (data[keys] > 0)).median("time").fillna(0)
        expected = np.stack([theirs[key].to_numpy() for key in keys])
    assert expected.shape == image.shape
    # Half a DN between two middle values is rounded up here and kept there.
    away = np.abs(image - np.floor(expected + 0.5))
    if kernel == "nearest":
        np.testing.assert_array_equal(away, 0)
    else:
        # GDAL interpolates in floating point. The files end 60 m outside the area, within reach of a 60 m cubic: there
        # the last value repeats here, while GDAL weighs what is left.
        assert away[:, 12:-12, 12:-12].max() <= 1
        assert np.median(away) == 0
