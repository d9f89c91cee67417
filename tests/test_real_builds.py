"""Test the whole build on real pixels, without labels: the Sahara, an Alpine lake, a cloudy Irish river."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import stac_wrap
from scipy import ndimage

from sgdata import files, package_data
from sgdata.builds import pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.composite import cloud_masks
from sgdata.errors import SourceError
from sgdata.scenes import lock
from sgdata.scenes.aoi import Area
from sgdata.sentinel2 import BANDS, L2A_BANDS
from sgdata.shards import contracts
from sgdata.types import Array, Grid

ALPS = Grid(crs="EPSG:32632", origin=(580560.0, 5102120.0), gsd_m=10.0, shape=(42, 24))
IRELAND = Grid(crs="EPSG:32629", origin=(476530.0, 5867260.0), gsd_m=10.0, shape=(158, 214))
SAHARA = Grid(crs="EPSG:32629", origin=(230580.0, 2790020.0), gsd_m=100.0, shape=(515, 501))


def published(area: Grid, dates: str, size: int) -> BuildRecipe:
    recipe = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    patches = replace(recipe.patches, size=size, stride=size // 2)
    mask = replace(recipe.mask, cloud_buffer_m=0, shadow_buffer_m=0, bright_target_filter=False)
    return replace(recipe, area=Area(grid=area, gsd_m=area.gsd_m), dates=dates, patches=patches, mask=mask)


def build(recipe: BuildRecipe, archive: Path, out: Path) -> tuple[Array, Array]:
    """Build, and return the (C, H, W) image and provenance."""
    pipeline.build(recipe, BuildPaths(out=out, stac=str(archive), osm="none"))
    return pixels(out / "image.tif"), pixels(out / "provenance.tif")


def pixels(path: Path) -> Array:
    with rasterio.open(path) as dataset:
        values: Array = dataset.read()
    return values


def test_an_earth_search_item_and_its_files(real: Path, tmp_path: Path) -> None:
    archive = stac_wrap.decimated_scene(real, tmp_path / "c")
    recipe = published(SAHARA, "2020-01-01/2020-12-31", 128)
    image, provenance = build(recipe, archive, tmp_path / "b")
    home = real / "s2_scene_29RKH_stac" / "S2A_29RKH_20200219_0_L2A"
    left, top = (230580 - 199980) // 100, (2800020 - 2790020) // 100
    native = pixels(home / "B04.tif")[0, top : top + 515, left : left + 501]
    scl = np.kron(pixels(home / "SCL.tif")[0], np.ones((2, 2), np.uint8))[top : top + 515, left : left + 501]
    clear = ~np.isin(scl, recipe.mask.drop)
    np.testing.assert_array_equal(provenance[0] == 0, clear)
    np.testing.assert_array_equal(image[L2A_BANDS.index("B04")], np.where(clear, native, 0))
    # Desert sand grows brighter with wavelength.
    means = [image[L2A_BANDS.index(band)][clear].mean() for band in ("B02", "B03", "B04", "B11")]
    assert means == sorted(means)
    (item,) = lock.read(tmp_path / "b" / lock.NAME).items
    assert (item.scene.provider, item.scene.orbit, item.expected_offset, item.offset) == ("earth-search", 37, 0, 0)


def test_an_item_at_odds_with_its_decimated_files_is_refused(real: Path, tmp_path: Path) -> None:
    archive = stac_wrap.decimated_scene(real, tmp_path / "c")
    document = files.read_plain(archive)
    document["features"][0]["assets"]["nir"]["proj:shape"] = [10980, 10980]
    archive.write_bytes(files.pretty_json(document))
    with pytest.raises(SourceError, match=r"B08: shape of the file is \(1098, 1098\)"):
        build(published(SAHARA, "2020-01-01/2020-12-31", 128), archive, tmp_path / "b")


def test_an_l2a_pair_with_eleven_bands_and_a_20_m_mask(real: Path, tmp_path: Path) -> None:
    archive = stac_wrap.barbellino(real, tmp_path / "c")
    recipe = published(ALPS, "2017-01-01/2019-12-31", 8)
    recipe = replace(recipe, bands=tuple(band for band in recipe.bands if band != "B8A"))
    image, provenance = build(recipe, archive, tmp_path / "b")
    dates = [pixels(p) for p in sorted((real / "s2_pair_barbellino").glob("*BOA_10.tif"))]
    masks = [
        np.kron(pixels(p)[0], np.ones((2, 2), np.uint8)) for p in sorted((real / "s2_pair_barbellino").glob("*SCL*"))
    ]
    sure = [~np.isin(scl, (*recipe.mask.drop, 2, 7)) for scl in masks]
    # Dark and unclassified pixels count where both dates show nothing better.
    keep = [sure[n] | (np.isin(scl, (2, 7)) & ~sure[1 - n]) for n, scl in enumerate(masks)]
    # Two clear dates are equally near to their median: the first wins.
    expected = np.where(keep[0], 0, np.where(keep[1], 1, 65535))
    np.testing.assert_array_equal(provenance[0], expected)
    np.testing.assert_array_equal(provenance[1], keep[0].astype(int) + keep[1])
    chosen = np.where(expected == 0, dates[0], np.where(expected == 1, dates[1], 0))
    np.testing.assert_array_equal(image, chosen)
    assert len(contracts.read(tmp_path / "b").bands) == 11


@pytest.mark.parametrize("method", ["medoid", "median"])
def test_an_l1c_series_with_cloud_probability(real: Path, tmp_path: Path, method: Any) -> None:
    archive = stac_wrap.lahinch(real, tmp_path / "c")
    recipe = published(IRELAND, "2017-09-01/2017-12-31", 32)
    recipe = replace(
        recipe,
        bands=tuple(band.name for band in BANDS),
        source=replace(recipe.source, level="L1C"),
        mask=replace(recipe.mask, method="probability"),
        composite=replace(recipe.composite, method=method),
    )
    image, provenance = build(recipe, archive, tmp_path / "b")
    stack = np.stack([pixels(path) for path in sorted((real / "s2_series_lahinch" / "S2").glob("*.tif"))])
    border = np.isnan(stack[0, 0])
    assert border.sum() == 450
    assert not image[:, border].any()
    usable = (stack[:, 14] < 40) & ~border
    np.testing.assert_array_equal(provenance[1], usable.sum(axis=0))
    assert not (provenance[0][~border] == 4).any()  # 2017-10-18 is cloud from edge to edge
    if method == "median":
        values = np.where(usable[:, None], stack[:, :13], np.nan)[:, :, usable.any(axis=0)]
        expected = np.floor(np.nanmedian(values, axis=0) + 0.5)
        np.testing.assert_array_equal(image[:, usable.any(axis=0)], expected)
    assert contracts.read(tmp_path / "b").level == "L1C"


def test_two_small_clouds_at_one_place_are_no_roof(real: Path, tmp_path: Path) -> None:
    """The dates of 18 and 21 September have clouds on the same ground, which is clear on 26 September."""
    archive = stac_wrap.lahinch(real, tmp_path / "c")
    recipe = published(IRELAND, "2017-09-01/2017-12-31", 32)
    recipe = replace(
        recipe,
        bands=("B02", "B04", "B08"),
        source=replace(recipe.source, level="L1C"),
        mask=replace(recipe.mask, method="probability", cloud_buffer_m=60, bright_target_filter=True),
    )
    _, provenance = build(recipe, archive, tmp_path / "b")
    days = {day: np.datetime64(f"2017-09-{day}").astype(int) for day in (18, 21, 26)}
    cloudy = {day: pixels(real / "s2_series_lahinch" / "S2" / f"2017-09-{day}.tif")[14] >= 40 for day in days}
    twice = cloudy[18] & cloudy[21]
    seen = ~ndimage.binary_dilation(cloudy[26], iterations=8)
    assert (twice & seen).sum() >= 30
    assert set(np.unique(provenance[2][twice & seen])) == {days[26]}
    assert (provenance[4] == cloud_masks.PERHAPS_BRIGHT).sum() == 85  # of which houses
