"""`sgdata simulate`: an archive as a STAC provider and OpenStreetMap would give it, with the truth beside it.

The work is cut by tile (ground, truth) and by scene (sky, noise, files), so that memory follows the tile.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from sgdata import files, grid, pool, progress
from sgdata.errors import OutputError, SettingError
from sgdata.sentinel2 import BAND, L2A_BANDS
from sgdata.simulate import cogs, ground, items, osm_xml, plan, sketch, sky, spectra, surface, truth
from sgdata.simulate.plan import Plan, Scene
from sgdata.simulate.spectra import Surface
from sgdata.simulate.surface import Layer
from sgdata.types import Array, Grid, Window

FORMAT = 1
OFFSET_DN = 1000
MEDIAN_BYTES = 200_000_000


def simulate(
    out: Path, *, seed: int = 1, size_km: float = 6.0, dates: int = 12, layout: str = "earth-search", workers: int = 1
) -> Path:
    """Write an archive into `out` and return it. Same seed, size and dates: same bytes, whatever `workers`.

    Raises SettingError: layout unknown, size outside 2 to 40 km, dates outside 3 to 400. Raises OutputError: `out`
    holds another archive.
    """
    if layout != "earth-search":
        raise SettingError(f"--layout {layout}: only 'earth-search' is simulated so far")
    what = plan.checked(seed, size_km, dates)
    about = {"format": FORMAT, "seed": seed, "size_km": size_km, "dates": dates, "layout": layout}
    out = Path(out)
    with files.only_writer(out):
        told = out / "simulation.json"
        if told.exists() and files.read_plain(told) != about:
            raise OutputError(f"{out}: holds another simulation ({told.read_text().strip()}); choose another --out")
        if told.exists() and (out / files.SUMS).exists():
            return out
        files.write(told, files.canonical_json(about))
        work = out / ".work"
        try:
            _everything(out, work, what, workers)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        files.write_sums(out)
    return out


def _everything(out: Path, work: Path, what: Plan, workers: int) -> None:
    scenes = plan.scenes(what)
    place = ground.build(what)
    held = osm_xml.elements(place)
    files.write(out / "osm" / "city.osm", osm_xml.xml(held))
    files.write(out / "osm" / "overpass.json", osm_xml.overpass(held))
    _write_area(out, what)

    windows = list(grid.tiles(what.granule.shape, truth.TILE))
    tasks = list(_tile_tasks(place, what, work, windows))
    list(progress.track(pool.run(_paint, tasks, workers=workers), label="ground", total=len(tasks)))
    _write_maps(out, work, what, windows)

    passes = [SceneTask(plan=what, scene=one, out=out, work=work) for one in scenes]
    counts = progress.track(pool.run(_photograph, passes, workers=workers), label="scenes", total=len(passes))
    for one, seen in zip(scenes, counts, strict=True):
        document = items.item(one, what.granule, _footprint(what, one), seen)
        files.write(out / items.COLLECTION / one.id / f"{one.id}.json", files.pretty_json(document))
    collection = items.collection(scenes, what.granule)
    files.write(out / items.COLLECTION / "collection.json", files.pretty_json(collection))
    files.write(out / "catalog.json", files.pretty_json(items.root()))
    _write_medians(out, work, what, workers)
    _write_traps(out, scenes)


def _write_area(out: Path, what: Plan) -> None:
    """`aoi.geojson`: a little inside the grid, so that snapping outwards to 60 m gives the grid and no more."""
    west, south, east, north = what.area.bounds
    shape = shapely.segmentize(shapely.box(west + 10, south + 10, east - 10, north - 10), 2000)
    feature = {"type": "Feature", "properties": {}, "geometry": items.polygon(shape, what.area.crs)}
    files.write(out / "aoi.geojson", files.pretty_json({"type": "FeatureCollection", "features": [feature]}))


def _write_traps(out: Path, scenes: list[Scene]) -> None:
    told = {
        one.id: {
            "offset_in_pixels": one.offset_in_pixels,
            "epoch": one.epoch,
            "weather": asdict(one.weather),
            "partial": one.orbit == plan.PARTIAL_ORBIT,
        }
        for one in scenes
    }
    files.write(out / "truth" / "traps.json", files.pretty_json(told))


# --- ground --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TileTask:
    """The layers that touch one tile of the granule and where its surfaces go."""

    found: list[Layer]
    around: Grid
    seed: int
    path: Path


def _tile_path(work: Path, window: Window) -> Path:
    return work / f"{window.row}-{window.col}.npz"


def _tile_tasks(place: sketch.Place, what: Plan, work: Path, windows: list[Window]) -> Iterator[TileTask]:
    every = surface.layers(place)
    tree = shapely.STRtree([layer.outline for layer in every])
    work.mkdir(parents=True, exist_ok=True)
    for window in windows:
        around = truth.grown(what.granule, window)
        found = surface.near(tree, every, around)
        yield TileTask(found=found, around=around, seed=what.seed, path=_tile_path(work, window))


def _paint(task: TileTask) -> None:
    """Keep both epochs' surfaces of a tile for the scenes to come."""
    arrays: dict[str, Array] = {"change": surface.changes(task.found, task.around)}
    for epoch in (1, 2):
        below = surface.paint(task.found, task.around, seed=task.seed, epoch=epoch)
        arrays |= {f"{name}_{epoch}": value for name, value in vars(below).items()}
    np.savez(task.path, **arrays)  # type: ignore[arg-type]


def _surface(work: Path, window: Window, epoch: int) -> Surface:
    with np.load(_tile_path(work, window)) as kept:
        return Surface(**{name: kept[f"{name}_{epoch}"] for name in Surface.__dataclass_fields__})


def _in_area(what: Plan, window: Window) -> tuple[Window, Window] | None:
    """The part of a granule window inside the area: (as a window of that window, as a window of the area)."""
    area = what.area_window
    top, left = max(window.row, area.row), max(window.col, area.col)
    height = min(window.row + window.height, area.row + area.height) - top
    width = min(window.col + window.width, area.col + area.width) - left
    if height <= 0 or width <= 0:
        return None
    inner = Window(row=top - window.row, col=left - window.col, height=height, width=width)
    return inner, Window(row=top - area.row, col=left - area.col, height=height, width=width)


def _write_maps(out: Path, work: Path, what: Plan, windows: list[Window]) -> None:
    """Land cover of both epochs, what changed, and where OpenStreetMap has something."""
    halo = truth.HALO
    names = {"land_cover": "label_1", "land_cover_2": "label_2", "osm_mapped": "tagged_1", "change": "change"}
    with ExitStack() as stack:
        sinks = {
            name: stack.enter_context(cogs.writing(out / "truth" / f"{name}.tif", what.area, (name,), "uint8", None))
            for name in names
        }
        for window in windows:
            part = _in_area(what, window)
            if part is None:
                continue
            with np.load(_tile_path(work, window)) as kept:
                for name, key in names.items():
                    rows, cols = part[0].slices
                    sinks[name](part[1], kept[key][halo:-halo, halo:-halo][rows, cols][None])


# --- scenes --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SceneTask:
    """One scene to be made from the kept surfaces."""

    plan: Plan
    scene: Scene
    out: Path
    work: Path


def _photograph(task: SceneTask) -> Array:
    """Write the 13 files of a scene and its true cloud mask; returns the pixels of each SCL value (12,)."""
    what, scene = task.plan, task.scene
    folder = task.out / items.COLLECTION / scene.id
    seed = sky_seed(what, scene)
    level = sky.threshold(seed, scene.weather, what.granule.shape) if scene.weather.cloud > 0 else 0.0
    counts = np.zeros(12, np.int64)
    with ExitStack() as stack:
        sinks = {}
        for name in (*L2A_BANDS, "SCL"):
            lattice = grid.coarser(what.granule, 2 if name == "SCL" else BAND[name].gsd_m // 10)
            dtype = "uint8" if name == "SCL" else "uint16"
            sinks[name] = stack.enter_context(cogs.writing(folder / f"{name}.tif", lattice, (name,), dtype, 0))
        masks = task.out / "truth" / "clouds" / f"{scene.id}.tif"
        sinks["clouds"] = stack.enter_context(cogs.writing(masks, what.area, ("clouds",), "uint8", None))
        for number, window in enumerate(grid.tiles(what.granule.shape, truth.TILE)):
            made = _tile(task, window, number, seed, level)
            counts += np.bincount(made["SCL"].ravel(), minlength=12)
            for name, pixels in made.items():
                if name == "clouds":
                    part = _in_area(what, window)
                    if part is not None:
                        sinks[name](part[1], pixels[part[0].slices][None])
                    continue
                gsd = 20 if name == "SCL" else BAND[name].gsd_m
                rows, cols = truth.grid_slices(window, gsd)
                small = Window(row=rows.start, col=cols.start, height=pixels.shape[0], width=pixels.shape[1])
                sinks[name](small, pixels[None])
    return counts


def _tile(task: SceneTask, window: Window, number: int, seed: int, level: float) -> dict[str, Array]:
    """One tile of a scene: DN per band at its own resolution, `SCL`, and the true `clouds` bits at 10 m."""
    what, scene = task.plan, task.scene
    below = _surface(task.work, window, scene.epoch)
    rows = np.arange(window.row, window.row + window.height)
    cols = np.arange(window.col, window.col + window.width)
    inside = below.label[truth.HALO : -truth.HALO, truth.HALO : -truth.HALO]
    above = sky.look(scene, inside, seed, level, rows, cols)
    image = sky.seen(truth.clear(below, scene.time.timetuple().tm_yday), above)
    rng = np.random.Generator(np.random.Philox(key=[what.seed, 10_000_000 + scene.index * 10_000 + number]))
    made: dict[str, Array] = {}
    for gsd, bands in truth.native(image).items():
        seen = covered(what, scene, window, gsd)
        for name, band in zip(truth.ORDER[gsd], bands, strict=True):
            noisy = band + rng.standard_normal(band.shape, np.float32) * (7 + 0.008 * band)
            made[name] = np.where(seen, truth.digital(noisy), 0)
    made["SCL"] = _scene_classes(task, window, made, above, inside)
    if scene.offset_in_pixels:
        for name in L2A_BANDS:
            made[name] = np.where(made[name] > 0, made[name] + OFFSET_DN, 0).astype(np.uint16)
    made["clouds"] = np.where(covered(what, scene, window, 10), above.bits, 255).astype(np.uint8)
    return made


def _scene_classes(task: SceneTask, window: Window, made: dict[str, Array], above: sky.Sky, label: Array) -> Array:
    image = {name: made[name].astype(np.float32) for name in ("B8A", "B11")}
    image |= {name: spectra.coarser(made[name], 2) for name in ("B02", "B03", "B04")}
    image = {name: np.maximum(pixels, 1) for name, pixels in image.items()}
    at_20m = sky.Sky(**{name: spectra.coarser(field, 2) for name, field in vars(above).items()})
    water = spectra.coarser((label == 5).astype(np.float32), 2)
    rows, cols = truth.grid_slices(window, 20)
    where = np.arange(rows.start, rows.stop), np.arange(cols.start, cols.stop)
    scl = sky.scene_classes(image, at_20m, water, task.plan.seed * 31 + task.scene.index, where)
    return np.where(covered(task.plan, task.scene, window, 20), scl, 0).astype(np.uint8)


SLANT = 0.25
"""Columns per row by which the edge of a swath moves west on its way south."""


def _edge(what: Plan) -> float:
    """The column of the partial orbit's edge in the first row of the granule: it covers some 60 %."""
    height, width = what.granule.shape
    return 0.6 * width + SLANT * height / 2


def sky_seed(what: Plan, scene: Scene) -> int:
    """The seed of one scene's weather."""
    return what.seed * 1_000_003 + scene.index * 1009


def covered(what: Plan, scene: Scene, window: Window, gsd: int) -> Array:
    """Where the scene's swath sees the ground, on the lattice of `gsd` inside a 10 m window."""
    k = gsd // 10
    rows = window.row + (np.arange(window.height // k) + 0.5) * k
    cols = window.col + (np.arange(window.width // k) + 0.5) * k
    if scene.orbit != plan.PARTIAL_ORBIT:
        return np.ones((len(rows), len(cols)), bool)
    return np.asarray(cols[None, :] + SLANT * rows[:, None] < _edge(what))


def _footprint(what: Plan, scene: Scene) -> shapely.Polygon:
    west, south, east, north = what.granule.bounds
    whole = shapely.box(west, south, east, north)
    if scene.orbit != plan.PARTIAL_ORBIT:
        return whole
    top = west + _edge(what) * 10
    bottom = top - SLANT * (north - south)
    side = shapely.Polygon([(west - 1, north), (top, north), (bottom, south), (west - 1, south)])
    return shapely.polygons(shapely.get_coordinates(whole.intersection(side).exterior))


# --- the truth over time -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MedianTask:
    """One window of the area whose median over the first epoch's days is wanted."""

    window: Window
    tile: Window
    inner: Window
    days: tuple[int, ...]
    work: Path


def _median_tasks(what: Plan, work: Path) -> Iterator[MedianTask]:
    days = tuple(one.time.timetuple().tm_yday for one in plan.scenes(what) if one.epoch == 1)
    size = int(np.clip(np.sqrt(MEDIAN_BYTES / (24 * len(days))) // 6 * 6, 120, truth.TILE))
    for tile in grid.tiles(what.granule.shape, truth.TILE):
        part = _in_area(what, tile)
        if part is None:
            continue
        inner, area = part
        for piece in grid.tiles((inner.height, inner.width), size):
            size_hw = {"height": piece.height, "width": piece.width}
            yield MedianTask(
                window=Window(row=area.row + piece.row, col=area.col + piece.col, **size_hw),
                inner=Window(row=inner.row + piece.row, col=inner.col + piece.col, **size_hw),
                tile=tile,
                days=days,
                work=work,
            )


def _median(task: MedianTask) -> dict[int, Array]:
    """gsd -> (C, H, W) uint16: the median over the days, halves rounded up."""
    halo = truth.HALO
    rows = slice(task.inner.row, task.inner.row + task.inner.height + 2 * halo)
    cols = slice(task.inner.col, task.inner.col + task.inner.width + 2 * halo)
    whole = _surface(task.work, task.tile, 1)
    below = Surface(**{name: value[rows, cols] for name, value in vars(whole).items()})
    stacks: dict[int, list[Array]] = {gsd: [] for gsd in truth.ORDER}
    for day in task.days:
        for gsd, bands in truth.native(truth.clear(below, day)).items():
            stacks[gsd].append(truth.digital(bands))
    return {gsd: truth.digital(np.median(np.stack(stack), axis=0)) for gsd, stack in stacks.items()}


def _write_medians(out: Path, work: Path, what: Plan, workers: int) -> None:
    tasks = list(_median_tasks(what, work))
    with ExitStack() as stack:
        sinks: dict[int, Any] = {}
        for gsd, names in truth.ORDER.items():
            path, lattice = out / "truth" / f"reflectance_{gsd}m.tif", grid.coarser(what.area, gsd // 10)
            sinks[gsd] = stack.enter_context(cogs.writing(path, lattice, names, "uint16", 0))
        results = progress.track(pool.run(_median, tasks, workers=workers), label="truth", total=len(tasks))
        for task, result in zip(tasks, results, strict=True):
            for gsd, pixels in result.items():
                rows, cols = truth.grid_slices(task.window, gsd)
                small = Window(row=rows.start, col=cols.start, height=pixels.shape[1], width=pixels.shape[2])
                sinks[gsd](small, pixels)
