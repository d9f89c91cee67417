"""Test the report of a plan: MGRS tiles used, months and gaps, cost, and drift of the catalogue."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stac_wrap import Wrapped, wrap

from sgdata import files, package_data
from sgdata.builds import build_cost, pipeline, plan_summary
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.errors import OutputError
from sgdata.scenes import catalog_drift, coverage, lock
from sgdata.scenes.aoi import Area
from sgdata.scenes.lock import Item, Lock
from sgdata.scenes.types import Asset, Scene
from sgdata.types import Grid

MUNICH = Grid(crs="EPSG:32632", origin=(671280.0, 5349540.0), gsd_m=10.0, shape=(2958, 3847))
ORIGINS = {"32UPU": (600000.0, 5400000.0), "32UQU": (699960.0, 5400000.0), "32UPT": (600000.0, 5300040.0)}


def scene(day: str, tile: str = "32UPU", **changes: Any) -> Scene:
    origin = ORIGINS.get(tile)
    asset = Asset(
        href=f"{tile}.tif",
        transform=(10.0, 0.0, origin[0], 0.0, -10.0, origin[1]) if origin else None,
        shape=(10980, 10980) if origin else None,
    )
    base = Scene(
        id=f"S2A_{tile}_{day}",
        collection="sentinel-2-l2a",
        provider="earth-search",
        time=f"{day}T10:20:00Z",
        platform="sentinel-2a",
        tile=tile,
        orbit=22,
        datatake="",
        baseline="02.14",
        generated="",
        crs="EPSG:32632",
        bbox=(10.0, 48.0, 12.0, 49.0),
        cloud_cover=None,
        assets={"B02": asset},
    )
    return replace(base, **changes)


def planned(scenes: list[Scene], dates: str) -> Lock:
    return Lock(
        format=lock.FORMAT,
        state="planned",
        recipe_sha256="",
        collection="sentinel-2-l2a",
        dates=dates,
        osm_date="2020-04-01",
        grid=MUNICH,
        items=tuple(Item(scene=one, expected_offset=0) for one in scenes),
        dropped=(),
        tag_table_sha256="",
    )


def every_tenth_day(first: str, count: int) -> list[Scene]:
    return [scene((date.fromisoformat(first) + timedelta(days=10 * n)).isoformat()) for n in range(count)]


# --- tiles ---------------------------------------------------------------------------------


def test_one_tile_serves_the_area_of_the_paper_and_its_neighbours_are_named() -> None:
    tiles = ["32UQU", "32UPU", "32UPT"]
    kept, dropped = coverage.select_tiles([scene("2019-06-01", tile) for tile in tiles], MUNICH)
    assert [one.tile for one in kept] == ["32UPU"]
    reasons = {one.id: one.reason for one in dropped}
    assert reasons["S2A_32UQU_2019-06-01"] == "the area is fully covered by 32UPU"
    assert "before the area" in reasons["S2A_32UPT_2019-06-01"]


def test_an_area_over_the_edge_uses_both_tiles() -> None:
    wider = replace(MUNICH, shape=(2958, 4200))  # to E 713.28 km, beyond 32UPU
    kept, _ = coverage.select_tiles([scene("2019-06-01", tile) for tile in ("32UQU", "32UPU")], wider)
    assert {one.tile for one in kept} == {"32UPU", "32UQU"}


def test_a_tile_of_unknown_extent_is_kept_and_another_zone_is_not() -> None:
    strange = [scene("2019-06-01", "32UXX"), scene("2019-06-01", "33UTP", crs="EPSG:32633")]
    kept, dropped = coverage.select_tiles([*strange, scene("2019-06-01")], MUNICH)
    assert [one.tile for one in kept] == ["32UXX", "32UPU"]
    assert [one.reason for one in dropped] == ["is in EPSG:32633, the area in EPSG:32632"]


# --- months --------------------------------------------------------------------------------


def test_a_month_that_a_full_catalogue_lacks_is_a_hole() -> None:
    scenes = [one for one in every_tenth_day("2019-01-03", 36) if not one.time.startswith("2019-07")]
    rows = plan_summary.count_months(planned(scenes, "2019-01-01/2019-12-31"))
    assert [row.month for row in rows if row.hole] == ["2019-07"]
    assert {row.month: row.expected for row in rows}["2019-07"] == 3.0
    assert (
        plan_summary.describe_sparse_months(rows)
        == "months with fewer than half of the expected passes: 2019-07 (0 of 3)"
    )


def test_a_thin_catalogue_is_measured_by_its_usual_month() -> None:
    scenes = every_tenth_day("2019-01-03", 36)[::3]  # one of three passes
    rows = plan_summary.count_months(planned(scenes, "2019-01-01/2019-11-30"))
    assert {row.expected for row in rows} <= {1.0, 1.2, 1.3}
    assert not plan_summary.describe_sparse_months(rows)


def test_a_satellite_is_not_expected_before_it_flew() -> None:
    later = [replace(one, platform="sentinel-2b") for one in every_tenth_day("2017-07-04", 12)]
    rows = plan_summary.count_months(planned(later, "2017-04-01/2017-10-31"))
    assert [row.expected for row in rows[:3]] == [0, 0, 0]
    assert not plan_summary.describe_sparse_months(rows)


def test_the_cost_of_the_whole_series_is_that_of_the_paper() -> None:
    bands = {band: Asset(href="x") for band in ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11")}
    bands |= {"B12": Asset(href="x"), "SCL": Asset(href="x")}
    lots = planned([scene("2019-06-01", assets=bands)] * 400, "2017-04-01/2020-04-01")
    assert build_cost.window_bytes(lots) * 400 == pytest.approx(51e9, rel=0.02)
    web = build_cost.estimate_cost(lots, "https://example.org/v1", workers=2)
    disk = build_cost.estimate_cost(lots, "/data", workers=2)
    assert web.read_bytes == disk.read_bytes
    assert web.minutes > disk.minutes > 5
    assert web.scratch_bytes > 51e9


# --- locks ---------------------------------------------------------------------------------


def test_a_deviation_is_named_with_both_values() -> None:
    promised = replace(planned([scene("2019-06-01")], "2019-01-01/2019-12-31"), outputs={"image.tif": "12ab"})
    lock.check_equal(promised, promised)
    with pytest.raises(OutputError, match=r"outputs\.image\.tif is 34cd, the lock has 12ab"):
        lock.check_equal(promised, replace(promised, outputs={"image.tif": "34cd"}))
    with pytest.raises(OutputError, match=r"items\.0\.scene\.baseline is 05\.00, the lock has 02\.14"):
        lock.check_equal(promised, planned([scene("2019-06-01", baseline="05.00")], "2019-01-01/2019-12-31"))


def test_drift_reports_missing_changed_and_new_items(tmp_path: Path) -> None:
    area = Grid(crs="EPSG:32632", origin=(600060.0, 5399940.0), gsd_m=10.0, shape=(60, 60))
    recipe = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    recipe = replace(recipe, dates="2019-01-01/2019-12-31", area=Area(grid=area), bands=("B02",))
    recipe = replace(recipe, patches=replace(recipe.patches, size=32))
    layers: dict[str, tuple[Any, float]] = {
        "B02": (np.full((90, 90), 300, np.uint16), 10.0),
        "SCL": (np.full((45, 45), 4, np.uint8), 20.0),
    }
    names = [f"S2A_32UPU_20190{month}01_0_L2A" for month in range(4, 8)]
    wrapped = [Wrapped(id=name, time=f"2019-0{n + 4}-01T10:00:00Z", layers=layers) for n, name in enumerate(names)]
    before, after = wrap(tmp_path / "a", wrapped[:3]), wrap(tmp_path / "b", wrapped[1:])
    then = pipeline.plan(recipe, BuildPaths(out=tmp_path / "o", stac=str(before)))
    assert catalog_drift.find_drift(then, str(before)) == []
    path = next(after.rglob(f"{names[2]}.json"))
    item = json.loads(path.read_text())
    item["properties"]["s2:processing_baseline"] = "05.00"
    path.write_text(json.dumps(item))
    assert catalog_drift.find_drift(then, str(after)) == [
        f"vanished: {names[0]}: not in the catalogue any more",
        f"changed: {names[2]}: baseline",
        f"new: {names[3]}",
    ]
