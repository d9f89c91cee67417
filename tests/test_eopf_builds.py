"""Build from EOPF products and from GeoTIFFs of the same simulated archive: equal images, labels and provenance."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from sgdata import files
from sgdata.builds import build_recipe, pipeline
from sgdata.builds.build_recipe import BuildPaths
from sgdata.errors import SourceError
from sgdata.scenes import lock
from sgdata.simulation import archive
from tests import served, zarr_stores


def build(city: Path, where: str, out: Path) -> lock.Lock:
    # Without the pixel test, which needs more clear ground than a small city has: metadata of GeoTIFFs alone do not
    # determine their origin, those of a product do.
    settings = ["patches.size=64", "patches.stride=64", "offset.source=metadata"]
    chosen = {"dates": "2019-04-01/2020-03-31", "aoi": city / "aoi.geojson"}
    recipe = build_recipe.recipe_for("segmunich", chosen, settings)
    paths = BuildPaths(out=out, stac=where, osm=str(city / "osm" / "city.osm"))
    return lock.read(pipeline.build(recipe, paths) / lock.NAME)


@pytest.mark.slow
def test_products_give_the_build_of_geotiffs(tmp_path: Path) -> None:
    tiffs, stores = (
        archive.simulate(tmp_path / layout, size_km=2, dates=3, layout=layout) for layout in ("cdse", "eopf")
    )
    expected = build(tiffs, str(tiffs), tmp_path / "files")
    windows = {item.scene.id: item.windows for item in expected.items}
    found = {}
    with ExitStack() as stack:
        for kind in zarr_stores.KINDS:
            city = shutil.copytree(stores, tmp_path / kind)
            for store in city.glob("*/*/*.zarr"):
                zarr_stores.rewrite(store, kind)
            found[kind, "disk"] = build(city, str(city), tmp_path / f"{kind}-disk")
            if kind != "v3" and (shutil.which("nginx") or Path("/usr/sbin/nginx").exists()):
                command, url = served.nginx(city, tmp_path / f"{kind}-nginx")
                stack.enter_context(served.process(command, f"{url}catalog.json"))
                found[kind, "http"] = build(city, f"{url}catalog.json", tmp_path / f"{kind}-http")
    for how, made in found.items():
        assert made.outputs == expected.outputs, how
        assert {item.scene.id: item.windows for item in made.items} == windows, how
        assert {item.offset for item in made.items} == {item.expected_offset for item in made.items} == {-1000}, how


@pytest.mark.slow
def test_a_truncated_chunk_stops_the_build_in_one_line(tmp_path: Path) -> None:
    city = archive.simulate(tmp_path / "city", size_km=2, dates=3, layout="eopf", broken=True)
    planted = json.loads((city / "truth" / "traps.json").read_bytes())
    (broken,) = (name for name, about in planted.items() if "truncated-file B04" in about["traps"])
    assert any(name.endswith("/r10m/b04/.zarray") for name in files.read_sums(city))
    with pytest.raises(SourceError, match=f"{broken}: B04: .*chunk ends too soon") as refused:
        build(city, str(city), tmp_path / "b")
    assert "\n" not in str(refused.value)
