"""Only the cells of scenes that can matter are read: the same pixels as of whole windows, whatever the rest holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from stac_wrap import Wrapped, wrap

from sgdata import files, package_data
from sgdata.builds import build_recipe, fetch_scenes, pipeline
from sgdata.composite import rules, tiles
from sgdata.errors import SettingError, SourceError
from sgdata.output_names import PROVENANCE_BANDS
from sgdata.rasters import cells, grids
from sgdata.rasters.cells import CELL_M, Cells
from sgdata.scenes import lock
from sgdata.scenes.aoi import Area
from sgdata.scenes.lock import Lock
from sgdata.scenes.types import Asset
from sgdata.sentinel2 import BAND
from sgdata.staging import scene_files, staged_pixels, window_staging
from sgdata.types import Array, Grid, Window

BANDS = ("B02", "B04", "B05", "B12")
SIDE, BLOCK = 576, 96
GRID = Grid(crs="EPSG:32632", origin=(600000.0, 5400000.0), gsd_m=10.0, shape=(SIDE, SIDE))


# --- cells ---------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.sampled_from([10.0, 20.0, 60.0]))
def test_cells_blocks_and_spans_agree_with_masks_of_pixels(seed: int, gsd_m: float) -> None:
    rng = np.random.default_rng(seed)
    origin = (600000.0 + 60 * int(rng.integers(50)), 5400000.0 - 60 * int(rng.integers(50)))
    grid = Grid(
        crs="EPSG:32632", origin=origin, gsd_m=gsd_m, shape=(int(rng.integers(1, 250)), int(rng.integers(1, 250)))
    )
    area = cells.over(grid.bounds)
    part = area.choose(rng.random(area.included.shape) < rng.random())
    y, x = (np.arange(size) + 0.5 for size in grid.shape)
    rows = np.floor(-(origin[1] - y * gsd_m) / CELL_M).astype(int) - area.row
    cols = np.floor((origin[0] + x * gsd_m) / CELL_M).astype(int) - area.col
    inside = part.included[np.ix_(rows, cols)]
    np.testing.assert_array_equal(cells.on_pixels(part, grid), inside)
    pixels = rng.random(grid.shape) < 0.01
    counts = np.zeros(area.included.shape, int)
    np.add.at(counts, np.ix_(rows, cols), pixels)
    np.testing.assert_array_equal(cells.count_in_cells(area, grid, pixels), counts)
    window = cells.enclose(part, grid)
    assert (window is None) == (not inside.any())
    if window is not None:
        assert inside.sum() == inside[window.slices].sum()
        assert all(edge.any() for edge in (inside[window.slices][n] for n in (0, -1)))

    spans = np.zeros(grid.shape, int)
    for first, last, columns in cells.find_spans(part, grid, 0):
        for left, right in columns:
            spans[first:last, left:right] += 1
    np.testing.assert_array_equal(spans, inside)
    height, width = (int(rng.integers(5, 90)) for _ in range(2))
    block = Window(row=-int(rng.integers(height)), col=-int(rng.integers(width)), height=height, width=width)
    found = np.zeros(grid.shape, int)
    for one in cells.find_blocks(part, grid, 0, block):
        found[one.slices] += 1
    i, j = (
        (np.arange(size) - start) // side
        for size, start, side in zip(grid.shape, (block.row, block.col), (height, width), strict=True)
    )
    wanted = np.zeros((i[-1] + 1, j[-1] + 1), int)
    np.maximum.at(wanted, np.ix_(i, j), inside)
    np.testing.assert_array_equal(found, wanted[np.ix_(i, j)])


def test_cells_of_parts_are_joined_and_cut() -> None:
    area = cells.over(GRID.bounds)
    one, other = (area.choose(np.arange(area.included.size).reshape(area.included.shape) % 3 == n) for n in (0, 1))
    both = cells.join(one, other)
    assert both is not None and both.included.sum() == one.included.sum() + other.included.sum()
    assert cells.join(one, None) is None and cells.join(area.choose(~area.included)) is None
    most = np.arange(area.included.size).reshape(area.included.shape) > 0
    assert area.included.size >= 20 and cells.round_up(area.choose(most)) is None is cells.round_up(None)
    assert cells.round_up(both) == both
    assert cells.hold(both, one) and cells.hold(None, one) and not cells.hold(one, both) and not cells.hold(one, None)
    wide = cells.over(
        (*(edge - 3 * CELL_M for edge in GRID.bounds[:2]), *(edge + 3 * CELL_M for edge in GRID.bounds[2:]))
    )
    padded = wide.choose(np.pad(one.included, 3))
    assert cells.crop(padded, area) == one
    assert cells.read_bits(GRID.bounds, one.bits) == one
    assert cells.read_bits(GRID.bounds, one.bits + "00") is None is cells.read_bits(GRID.bounds, "not hex")


# --- composites ----------------------------------------------------------------------------


def archive(folder: Path) -> Path:
    """Three dates of which the first is clear in the west, the second in the east, and the third under a cloud."""
    scenes = []
    for number, day in enumerate(("2019-07-01", "2019-07-11", "2019-09-20")):
        rng = np.random.Generator(np.random.Philox(key=number))
        classes = np.full((SIDE // 2, SIDE // 2), 4, np.uint8)
        classes[:, SIDE // 4 :] = 9 if number != 1 else 4
        classes[:, : SIDE // 4] = 9 if number == 1 else classes[:, : SIDE // 4]
        if number == 2:
            classes[: SIDE // 4] = 9
        layers = {"SCL": (classes, 20.0)}
        for band in BANDS:
            side = SIDE * 10 // BAND[band].gsd_m
            layers[band] = (rng.integers(200, 900, (side, side)).astype(np.uint16), float(BAND[band].gsd_m))
        name = f"S2A_32UPU_{day.replace('-', '')}_0_L2A"
        scenes.append(Wrapped(id=name, time=f"{day}T10:00:00Z", layers=layers, block=BLOCK))
    return wrap(folder, scenes)


def recipe(method: rules.Method, **composite: int) -> build_recipe.BuildRecipe:
    shipped = files.read(build_recipe.BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    return replace(
        shipped,
        bands=BANDS,
        dates="2019-01-01/2019-12-31",
        area=Area(grid=GRID),
        composite=replace(shipped.composite, method=method, **composite),
        mask=replace(shipped.mask, bright_target_filter=False),
    )


def composite(
    chosen: build_recipe.BuildRecipe, stac: Path, out: Path, planned: Lock | None = None
) -> tuple[Array, Lock]:
    """Return all planes of a composite, and the lock with the hashes of what was read."""
    paths = build_recipe.BuildPaths(out=out, stac=str(stac))
    fetched, scenes = fetch_scenes.fetch_scenes(chosen, planned or pipeline.plan(chosen, paths), paths)
    masked = fetch_scenes.add_clear_masks(chosen, scenes, fetched.grid, paths)
    job = pipeline.composite_job(chosen, fetched, masked, paths.scratch_folder)
    planes = np.empty((len(BANDS) + tiles.PLANES, SIDE, SIDE), np.uint16)
    for window in grids.cut_tiles(GRID.shape, *tiles.tile_shape(job, paths.tile_px)):
        planes[(slice(None), *window.slices)] = np.load(tiles.composite_tile(job, window))
    return planes, fetched


def as_plan(built: Lock, number: int) -> Lock:
    items = tuple(replace(item, windows={}, cells={}) for item in built.items)
    return replace(built, items=items, format=number)


@pytest.mark.parametrize("method", ["bap", "median", pytest.param("geomedian", marks=pytest.mark.slow)])
def test_pixels_are_those_of_whole_windows(method: rules.Method, tmp_path: Path) -> None:
    """Also where the blocks that do not matter cannot be read."""
    chosen = replace(recipe(method), resampling="cubic" if method == "geomedian" else "bilinear")
    stac = archive(tmp_path / "archive")
    own, built = composite(chosen, stac, tmp_path / "a")
    whole, _ = composite(chosen, stac, tmp_path / "b", as_plan(built, lock.WHOLE_WINDOWS))
    np.testing.assert_array_equal(own, whole)
    assert [sorted(item.cells) for item in built.items][:2] == [sorted(BANDS)] * 2
    # The first date cannot matter in the far east, where it is a cloud; nor, with scores, the last in most of the west.
    damaged = [(0, "B05", 2)] + ([(2, "B12", 0)] if method == "bap" else [])
    for number, band, col in damaged:
        damage(stac, built.items[number].scene.id, band, col)
    again, rebuilt = composite(chosen, stac, tmp_path / "c")
    np.testing.assert_array_equal(again, whole)
    assert rebuilt.items == built.items
    with pytest.raises(SourceError, match="B05.tif: cannot be read: block"):
        composite(chosen, stac, tmp_path / "d", replace(built, format=lock.WHOLE_WINDOWS))


def granules(folder: Path) -> Path:
    """Four passes in two granules that overlap: clouds by patches, ends of the swath, holes in single bands."""
    rng, scenes = np.random.default_rng(1), []
    for day in ("2019-07-01", "2019-07-06", "2019-07-16", "2019-09-20"):
        for tile, shift_m in (("32UPU", -1920.0), ("32UPV", 960.0)):
            patches = rng.choice([4, 5, 9, 9, 3], (SIDE // 96, SIDE // 96)).astype(np.uint8)
            classes = patches.repeat(48, axis=0).repeat(48, axis=1)
            classes[:, int(rng.integers(150, SIDE)) :] = 0
            layers = {"SCL": (classes, 20.0)}
            for band in BANDS:
                side = SIDE * 10 // BAND[band].gsd_m
                pixels = rng.integers(200, 900, (side, side)).astype(np.uint16)
                pixels[:15, : int(rng.integers(side))] = 0
                pixels[classes.repeat(2, axis=0).repeat(2, axis=1)[:: SIDE // side, :: SIDE // side] == 0] = 0
                layers[band] = (pixels, float(BAND[band].gsd_m))
            name = f"S2A_{tile}_{day.replace('-', '')}_0_L2A"
            origin = (GRID.origin[0] + shift_m, GRID.origin[1])
            scenes.append(Wrapped(id=name, time=f"{day}T10:00:00Z", layers=layers, block=BLOCK, origin=origin))
    return wrap(folder, scenes)


@pytest.mark.parametrize("method", ["bap", "median"])
def test_overlapping_granules_give_the_pixels_of_whole_windows(method: rules.Method, tmp_path: Path) -> None:
    stac = granules(tmp_path / "archive")
    own, built = composite(recipe(method), stac, tmp_path / "a")
    whole, _ = composite(recipe(method), stac, tmp_path / "b", as_plan(built, lock.WHOLE_WINDOWS))
    assert len({item.scene.overpass for item in built.items}) < len(built.items)
    assert any(item.cells for item in built.items)
    # Holes that the classification does not show are not counted where a scene is not read.
    counts = len(BANDS) + PROVENANCE_BANDS.index("valid_count")
    assert (own[counts] >= whole[counts]).all() and (method == "bap" or (own[counts] == whole[counts]).all())
    np.testing.assert_array_equal(np.delete(own, counts, 0), np.delete(whole, counts, 0))


def damage(stac: Path, name: str, band: str, col: int) -> None:
    """Zero the bytes of a column of blocks of a file."""
    (path,) = stac.rglob(f"{name}/{band}.tif")
    with rasterio.open(path) as dataset:
        rows = range(-(-dataset.height // BLOCK))
        found = [
            [dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1) for what in ("OFFSET", "SIZE")]
            for row in rows
        ]
    with path.open("r+b") as handle:
        for offset, size in found:
            handle.seek(int(offset))
            handle.write(b"\0" * int(size))


@pytest.mark.parametrize("number", [lock.WHOLE_WINDOWS, lock.FORMAT])
def test_a_lock_is_followed_and_its_pixels_are_compared(number: int, tmp_path: Path) -> None:
    stac = archive(tmp_path / "archive")
    _, planned = composite(recipe("bap"), stac, tmp_path / "a")
    planes, built = composite(recipe("bap"), stac, tmp_path / "b", as_plan(planned, number))
    assert any(item.cells for item in built.items) == (number == lock.FORMAT)
    again, rebuilt = composite(recipe("bap"), stac, tmp_path / "c", built)
    lock.check_equal(built, rebuilt)
    np.testing.assert_array_equal(again, planes)
    lock.write(tmp_path / lock.NAME, built)
    assert lock.read(tmp_path / lock.NAME) == built
    # Another rule needs other cells: those of the lock are compared all the same.
    _, other = composite(recipe("median"), stac, tmp_path / "d", built)
    assert [item.scene.id for item in other.items] == [item.scene.id for item in built.items]
    last = built.items[1]
    wrong = replace(last, windows=last.windows | {"B02": "0" * 64})
    altered = replace(built, items=(built.items[0], wrong, *built.items[2:]))
    for method in ("bap", "median"):
        with pytest.raises(SourceError, match="B02: window pixels hash to .* the catalogue has changed"):
            composite(recipe(method), stac, tmp_path / method, altered)


def test_a_lock_with_cells_of_another_area_is_refused(tmp_path: Path) -> None:
    stac = archive(tmp_path / "archive")
    _, built = composite(recipe("bap"), stac, tmp_path / "a")
    wrong = replace(built.items[0], cells={"B02": "ff"})
    with pytest.raises(SettingError, match="B02: cells 'ff' are not those of its grid; plan again"):
        composite(recipe("bap"), stac, tmp_path / "b", replace(built, items=(wrong, *built.items[1:])))


# --- staging -------------------------------------------------------------------------------


def test_cells_are_added_to_those_that_are_staged(tmp_path: Path) -> None:
    """A run that ends while it adds some loses nothing; cells that are damaged are read again."""
    stac = archive(tmp_path / "archive")
    (path,) = stac.rglob("S2A_32UPU_20190701_0_L2A/B02.tif")

    def staged(folder: str, part: Cells | None) -> staged_pixels.StagedWindow:
        return window_staging.stage(
            scene_files.WindowRequest(
                name="B02",
                asset=Asset(href=str(path)),
                crs=GRID.crs,
                bounds=GRID.bounds,
                cells=part,
                target=tmp_path / folder / "window",
            )
        )

    area = cells.over(GRID.bounds)
    rows = np.arange(area.height)[:, None] + np.zeros(area.width, int)
    west = area.choose((rows < 2) & (np.arange(area.width) < 3))
    more = area.choose((rows < 2) | (rows == area.height - 2))
    fresh = {part: staged(f"fresh {n}", part) for n, part in enumerate((west, more, None))}
    assert len({one.sha256 for one in fresh.values()}) == 3
    first = staged("a", west)
    data = Path(first.path)
    whole = fresh[None].pixels
    shown = np.where(cells.on_pixels(west, first.grid), first.pixels, 0)
    np.testing.assert_array_equal(shown, np.where(cells.on_pixels(west, first.grid), whole, 0))
    assert (first.pixels == 0).sum() > first.pixels.size / 3  # what is not needed is not there

    kept = data.stat().st_ino
    with data.open("r+b") as handle:  # a run that was killed has added rows
        handle.seek(-first.grid.shape[1] * 2, 2)
        handle.write(b"\7" * 100)
    for part in (west, more, west):
        one = staged("a", part)
        assert (one.sha256, one.cells, data.stat().st_ino) == (fresh[part].sha256, part, kept)
    with data.open("r+b") as handle:
        handle.write(b"\7" * 100)
    assert staged("a", more).sha256 == fresh[more].sha256 and data.stat().st_ino != kept
    assert staged("a", None).sha256 == fresh[None].sha256
    assert staged("a", west).sha256 == fresh[west].sha256
