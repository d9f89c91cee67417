"""Test the Python API behind the commands: from area, recipe and paths to a build, shards and an xarray.Dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

import sgdata
from sgdata import verification
from sgdata.errors import SettingError

SMALL = ("patches.size=64", "split.block_px=100", "split.gap_px=0", "composite.method=median")


@pytest.mark.slow
def test_from_an_area_to_shards(city: Path, tmp_path: Path) -> None:
    recipe = sgdata.build_recipe("segmunich", {"aoi": city / "aoi.geojson", "composite": "median"}, SMALL)
    out = sgdata.build(
        recipe, sgdata.BuildPaths(out=tmp_path / "build", stac=f"{city}/catalog.json", osm=f"{city}/osm/city.osm")
    )
    build = sgdata.open_build(out)
    assert build.rio.crs.to_epsg() == 32632
    assert build.image.dims == ("band", "y", "x")
    assert build.image.sel(band="B8A").dtype == "uint16"
    assert build.labels.shape == build.image.shape[1:]
    packed = sgdata.shard("segmunich", source=out, out=tmp_path / "shards")
    assert packed.complete
    assert verification.verify(packed.folder) == []


def test_dates_move_the_day_of_the_labels() -> None:
    recipe = sgdata.build_recipe("segmunich", {"dates": "2021-04-01/2021-09-30", "bbox": (11.5, 48.1, 11.6, 48.2)})
    assert (recipe.osm_date, recipe.area.bbox) == ("2021-09-30", (11.5, 48.1, 11.6, 48.2))
    recipe = sgdata.build_recipe("segmunich", {"dates": "2021-04-01/2021-09-30", "osm_date": "2022-01-01"})
    assert recipe.osm_date == "2022-01-01"


def test_names_that_are_not_there() -> None:
    with pytest.raises(SettingError, match="known: segmunich"):
        sgdata.build_recipe("munich")
    with pytest.raises(AttributeError, match="open_build"):
        _ = sgdata.open_bild
