"""`sgdata simulate`: write an archive in the form of a STAC provider and OpenStreetMap, with the truth for both.

Tasks are tiles (ground, truth) and scenes (sky, noise, files), so that memory depends on the tile alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from sgdata import files, output_lock, output_names, pool, progress
from sgdata.errors import OutputError, SettingError
from sgdata.labels import osm_elements
from sgdata.rasters import grids
from sgdata.sentinel2 import L2A_BANDS, MSI
from sgdata.simulation import cogs, eopf, items, osm_xml, scenarios, sky, spectra, surface, traps, truth
from sgdata.simulation import ground as places
from sgdata.simulation.scenarios import Scenario, SimulatedScene
from sgdata.simulation.spectra import Surface
from sgdata.simulation.surface import PaintLayer
from sgdata.types import Array, Window

FORMAT = 1
OFFSET_DN = 1000
MEDIAN_BYTES = 200_000_000


def simulate(
    out: Path,
    *,
    seed: int = 1,
    size_km: float = 6.0,
    dates: int = 12,
    layout: str = "earth-search",
    ground: str = "plain",
    broken: bool = False,
    workers: int = 1,
) -> Path:
    """Write a simulated archive into a folder.

    Args:
        out: Output folder.
        seed: Equal arguments give equal files.
        size_km: Side of the area, 2 to 40 km.
        dates: Number of acquisitions in the first epoch, 3 to 400.
        layout: Provider to imitate, one of `items.LAYOUTS`.
        ground: `plain`, where a class is known by the spectrum of a pixel, or `context`, where the classes share their
            materials and differ in arrangement.
        broken: Truncate one file, which every build must detect.
        workers: Number of processes; the files do not depend on it.

    Returns:
        The path `out`. A complete archive made with the same arguments is left as it is.

    Raises:
        SettingError: The layout or ground is unknown, or size or dates are out of range.
        OutputError: `out` has another archive.
    """
    if layout not in items.LAYOUTS:
        raise SettingError(f"--layout {layout}: expected one of {', '.join(items.LAYOUTS)}")
    scenario = scenarios.create(seed, size_km, dates, layout, ground)
    marker_content = {
        "format": FORMAT,
        "seed": seed,
        "size_km": size_km,
        "dates": dates,
        "layout": layout,
        "broken": broken,
    }
    if ground != "plain":  # archives of the plain ground keep the bytes that they had before there were others
        marker_content["ground"] = ground
    out = Path(out)
    with output_lock.only_writer(out, output_names.SIMULATION):
        marker = out / output_names.SIMULATION
        if marker.exists() and files.read_plain(marker) != marker_content:
            raise OutputError(f"{out}: holds another simulation ({marker.read_text().strip()}); choose another --out")
        if marker.exists() and files.is_finished(out):
            return out
        # Written first, so that an interrupted archive can be resumed with the same arguments only.
        files.write(marker, files.canonical_json(marker_content))
        work = out / ".work"
        try:
            _write_archive(out, work, scenario, workers)
            if broken:
                _truncate_band(out, scenarios.scenes(scenario)[0].id, layout)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        files.write_sums(out)
    return out


def _write_archive(out: Path, work: Path, scenario: Scenario, workers: int) -> None:
    scenes = scenarios.scenes(scenario)
    landscape = places.build(scenario)
    osm = osm_xml.elements(landscape)
    files.write(out / "osm" / "city.osm", osm_xml.xml(osm))
    answer = osm_xml.overpass(osm)
    files.write(out / "osm" / "overpass.json", answer)
    work.mkdir(parents=True, exist_ok=True)
    (work / "city.osm.pbf").unlink(missing_ok=True)
    osm_elements.write_native(json.loads(answer)["elements"], work / "city.osm.pbf", "simulated city")
    (work / "city.osm.pbf").replace(out / "osm" / "city.osm.pbf")
    _write_area(out, scenario)

    windows = list(grids.cut_tiles(scenario.granule.shape, truth.TILE))
    all_layers = surface.layers(landscape)
    tree = shapely.STRtree([layer.outline for layer in all_layers])
    layers = (
        (window, surface.layers_near(tree, all_layers, truth.grow(scenario.granule, window))) for window in windows
    )
    maps = pool.run(partial(_paint_tile, scenario, work), layers, workers=workers)
    map_sinks = {
        name: cogs.writing(out / "truth" / f"{name}.tif", scenario.area, (name,), "uint8", None) for name in MAPS
    }
    _write_truth(map_sinks, scenario, windows, progress.track(maps, label="ground", total=len(windows)))

    scl_counts = progress.track(
        pool.run(partial(_write_scene, scenario, out, work), scenes, workers=workers), label="scenes", total=len(scenes)
    )
    _write_catalogue(
        out, scenario, scenes, {scene.id: counts for scene, counts in zip(scenes, scl_counts, strict=True)}
    )
    # The second epoch is no part of the truth that a composite of the first is compared with.
    days = [scene.time.timetuple().tm_yday for scene in scenes if scene.epoch == 1]
    medians = pool.run(partial(_median_tile, work, days), windows, workers=workers)
    reflectance_sinks = {
        gsd: cogs.writing(
            out / "truth" / f"reflectance_{gsd}m.tif", grids.coarsen(scenario.area, gsd // 10), names, "uint16", 0
        )
        for gsd, names in truth.ORDER.items()
    }
    _write_truth(reflectance_sinks, scenario, windows, progress.track(medians, label="truth", total=len(windows)))


def _write_catalogue(out: Path, scenario: Scenario, scenes: list[SimulatedScene], counts: dict[str, Array]) -> None:
    """Write items as the provider does, with their traps, and `truth/traps.json`, which lists each."""
    documents = {s.id: items.item(s, scenario.granule, footprint(scenario, s), counts[s.id]) for s in scenes}
    trap_names = traps.assign_traps(scenes, scenario.layout)
    planted: dict[str, Any] = {
        s.id: {"weather": asdict(s.weather), "epoch": s.epoch, "orbit": s.orbit, "traps": trap_names[s.id]}
        | {"offset_in_pixels": s.offset_in_pixels}
        for s in scenes
    }
    if scenario.dates >= traps.FEWEST:
        # The twin has no files of its own; the neighbour has, warped from the same scene.
        clear = traps.clear_scene(scenes)
        twin = traps.twin(clear, scenario.layout)
        twin_item = items.item(twin, scenario.granule, footprint(scenario, twin), counts[clear.id])
        documents[twin.id] = traps.share_files(twin_item, clear.id)
        stray = replace(clear, id=scenarios.item_id(clear, scenario.layout, sequence=0, tile=traps.NEIGHBOUR))
        zone = traps.next_zone(scenario.granule)
        neighbour_item = items.item(stray, zone, footprint(scenario, clear), counts[clear.id], crs=scenario.granule.crs)
        documents[stray.id] = traps.move_to_next_zone(neighbour_item, stray)
        for name in (*L2A_BANDS, "SCL"):
            grid = grids.coarsen(zone, MSI.gsd_m(name) // 10)
            home = out / items.COLLECTION
            cogs.warp(home / clear.id / f"{name}.tif", home / stray.id / f"{name}.tif", grid)
        for item, trap in ((twin, "twin"), (stray, "neighbour-zone")):
            entry = {"traps": [trap], "of": clear.id, "epoch": clear.epoch, "orbit": clear.orbit}
            planted[item.id] = entry | {"offset_in_pixels": clear.offset_in_pixels}
    if scenario.layout == "eopf":
        for folder in sorted(path.parent for path in (out / items.COLLECTION).glob("*/SCL.tif")):
            shifted = bool(planted[folder.name]["offset_in_pixels"])
            eopf.write_product(folder, folder.name, documents[folder.name], offset=shifted)
    for name, document in documents.items():
        item_document = items.to_layout(traps.apply_traps(document, trap_names.get(name, [])), scenario.layout)
        files.write(out / items.COLLECTION / name / f"{name}.json", files.pretty_json(item_document))
    collection = items.collection(scenes, list(documents), scenario.granule)
    files.write(out / items.COLLECTION / "collection.json", files.pretty_json(collection))
    files.write(out / "catalog.json", files.pretty_json(items.root()))
    if scenario.dates >= scenarios.HOLE_FROM:
        planted["catalogue"] = {"traps": [f"no-pass-in {scenarios.EMPTY_MONTH}"]}
    files.write(out / "truth" / "traps.json", files.pretty_json(planted))


def _truncate_band(out: Path, item: str, layout: str) -> None:
    """Cut the red band of an item to 60 % of its bytes, and say so."""
    path = out / items.COLLECTION / item / "B04.tif"
    if layout == "eopf":
        path = path.with_name(f"{item}.zarr") / "measurements" / "reflectance" / "r10m" / "b04" / "0.0"
    # The header of a COG comes first, so that the file opens and only its last blocks are missing.
    content = path.read_bytes()
    files.write(path, content[: len(content) * 6 // 10])
    planted = json.loads((out / "truth" / "traps.json").read_bytes())
    planted[item]["traps"].append("truncated-file B04")
    files.write(out / "truth" / "traps.json", files.pretty_json(planted))


def _write_area(out: Path, scenario: Scenario) -> None:
    """Write `aoi.geojson`, a little inside the grid, so that snapping outwards to 60 m gives the grid and no more."""
    west, south, east, north = scenario.area.bounds
    shape = shapely.segmentize(shapely.box(west + 10, south + 10, east - 10, north - 10), 2000)
    feature = {"type": "Feature", "properties": {}, "geometry": items.polygon(shape, scenario.area.crs)}
    files.write(out / "aoi.geojson", files.pretty_json({"type": "FeatureCollection", "features": [feature]}))


# --- ground --------------------------------------------------------------------------------

MAPS = {"land_cover": "label_1", "land_cover_2": "label_2", "osm_mapped": "tagged_1", "change": "change"}


def _surface_path(work: Path, window: Window) -> Path:
    return work / f"{window.row}-{window.col}.npz"


def _paint_tile(scenario: Scenario, work: Path, window_and_layers: tuple[Window, list[PaintLayer]]) -> dict[str, Array]:
    """Keep both epochs' surfaces of a tile for the scenes to come; returns its part of the truth maps."""
    window, layers = window_and_layers
    around = truth.grow(scenario.granule, window)
    arrays = {"change": surface.changes(layers, around)}
    for epoch in (1, 2):
        painted = surface.paint(layers, around, seed=scenario.seed, epoch=epoch, ground=scenario.ground)
        arrays |= {f"{name}_{epoch}": value for name, value in vars(painted).items()}
    np.savez(_surface_path(work, window), **arrays)  # type: ignore[arg-type]
    return {name: truth.remove_halo(arrays[key])[None] for name, key in MAPS.items()}


def _read_surface(work: Path, window: Window, epoch: int) -> Surface:
    with np.load(_surface_path(work, window)) as arrays:
        return Surface(**{name: arrays[f"{name}_{epoch}"] for name in Surface.__dataclass_fields__})


def _write_inside_area(sink: cogs.Sink, scenario: Scenario, window: Window, pixels: Array) -> None:
    """Write the part of a granule window (C, h, w; at any resolution) that is inside the area."""
    # Tiles follow the granule, the truth follows the area: only here are the two laid on each other.
    area, k = scenario.area_window, window.height // pixels.shape[-2]
    top, left = max(window.row, area.row), max(window.col, area.col)
    height = min(window.row + window.height, area.row + area.height) - top
    width = min(window.col + window.width, area.col + area.width) - left
    if height > 0 and width > 0:
        visible = Window(row=top - window.row, col=left - window.col, height=height, width=width)
        rows, cols = truth.grid_slices(visible, 10 * k)
        target = Window(row=(top - area.row) // k, col=(left - area.col) // k, height=height // k, width=width // k)
        sink(target, pixels[:, rows, cols])


def _write_truth(
    into: Mapping[Any, AbstractContextManager[cogs.Sink]],
    scenario: Scenario,
    windows: Sequence[Window],
    tiles: Iterable[Mapping[Any, Array]],
) -> None:
    """Write the arrays of each tile to the files of their names."""
    with ExitStack() as stack:
        sinks = {name: stack.enter_context(file) for name, file in into.items()}
        for window, arrays in zip(windows, tiles, strict=True):
            for name, pixels in arrays.items():
                _write_inside_area(sinks[name], scenario, window, pixels)


def _median_tile(work: Path, days: Sequence[int], window: Window) -> dict[int, Array]:
    """Return (C, H, W) uint16 by gsd for a tile: the median over the days, halves rounded up; strips bound memory."""
    tile_surface, halo = _read_surface(work, window, 1), 2 * truth.HALO
    step = int(np.clip(MEDIAN_BYTES // (24 * len(days) * window.width) // 6 * 6, 6, window.height))
    strips: dict[int, list[Array]] = {gsd: [] for gsd in truth.ORDER}
    for row in range(0, window.height, step):
        strip = Surface(**{name: value[row : row + step + halo] for name, value in vars(tile_surface).items()})
        by_day = [truth.to_native_gsd(truth.clear_ground(strip, day)) for day in days]
        for gsd, tiles in strips.items():
            tiles.append(truth.to_dn(np.median(np.stack([truth.to_dn(image[gsd]) for image in by_day]), axis=0)))
    return {gsd: np.concatenate(tiles, axis=1) for gsd, tiles in strips.items()}


# --- scenes --------------------------------------------------------------------------------


def sky_seed(scenario: Scenario, scene: SimulatedScene) -> int:
    """Return the seed of the weather of a scene."""
    return scenario.seed * 1_000_003 + scene.index * 1009


def _write_scene(scenario: Scenario, out: Path, work: Path, scene: SimulatedScene) -> Array:
    """Write the 13 files of a scene and its true cloud mask; returns the pixels of each SCL value (12,)."""
    folder, masks = out / items.COLLECTION / scene.id, out / "truth" / "clouds" / f"{scene.id}.tif"
    # Over the whole granule at once: a threshold per tile would show their edges in the clouds.
    level = sky.threshold(sky_seed(scenario, scene), scene.weather, scenario.granule.shape)
    counts = np.zeros(12, np.int64)
    with ExitStack() as stack:
        sinks = {}
        for name, gsd in (*((name, MSI.gsd_m(name)) for name in L2A_BANDS), ("SCL", MSI.gsd_m("SCL"))):
            grid, dtype = grids.coarsen(scenario.granule, gsd // 10), "uint8" if name == "SCL" else "uint16"
            sinks[name] = stack.enter_context(cogs.writing(folder / f"{name}.tif", grid, (name,), dtype, 0))
        clouds = stack.enter_context(cogs.writing(masks, scenario.area, ("clouds",), "uint8", None))
        for number, window in enumerate(grids.cut_tiles(scenario.granule.shape, truth.TILE)):
            # A stream for each tile of each scene, so that the noise does not depend on the order of the tiles.
            rng = np.random.Generator(np.random.Philox(key=[scenario.seed, 10_000_000 + scene.index * 10_000 + number]))
            bands, bits = _render_tile(scenario, scene, window, _read_surface(work, window, scene.epoch), level, rng)
            counts += np.bincount(bands["SCL"].ravel(), minlength=12)
            _write_inside_area(clouds, scenario, window, bits[None])
            for name, pixels in bands.items():
                rows, cols = truth.grid_slices(window, 10 * window.height // pixels.shape[0])
                target = Window(row=rows.start, col=cols.start, height=pixels.shape[0], width=pixels.shape[1])
                sinks[name](target, pixels[None])
    return counts


def _render_tile(
    scenario: Scenario, scene: SimulatedScene, window: Window, ground: Surface, level: float, rng: np.random.Generator
) -> tuple[dict[str, Array], Array]:
    """Simulate a tile of a scene: DN per band at its gsd, `SCL`, and true cloud bits at 10 m, 255 off the swath."""
    rows, cols = (np.arange(axis.start, axis.stop) for axis in window.slices)
    label = truth.remove_halo(ground.label)
    scene_sky = sky.render_sky(scene, label, sky_seed(scenario, scene), level, rows, cols)
    image = sky.through_sky(truth.clear_ground(ground, scene.time.timetuple().tm_yday), scene_sky)
    rasters: dict[str, Array] = {}
    for gsd, bands in truth.to_native_gsd(image).items():
        swath = covered(scenario, scene, window, gsd)
        for name, band in zip(truth.ORDER[gsd], bands, strict=True):
            noisy = band + rng.standard_normal(band.shape, np.float32) * (7 + 0.008 * band)
            rasters[name] = np.where(swath, truth.to_dn(noisy), 0).astype(np.uint16)
    rasters["SCL"] = _scene_classes(scenario, scene, window, rasters, scene_sky, label)
    # After the classes, since Sen2Cor classifies reflectance, to which an offset in the file is added later.
    if scene.offset_in_pixels:
        rasters |= {
            name: np.where(rasters[name] > 0, rasters[name] + OFFSET_DN, 0).astype(np.uint16) for name in L2A_BANDS
        }
    return rasters, np.where(covered(scenario, scene, window, 10), scene_sky.bits, 255).astype(np.uint8)


def _scene_classes(
    scenario: Scenario, scene: SimulatedScene, window: Window, bands: dict[str, Array], scene_sky: sky.Sky, label: Array
) -> Array:
    image = {name: np.maximum(bands[name].astype(np.float32), 1) for name in ("B8A", "B11")}
    image |= {name: np.maximum(spectra.coarsen(bands[name], 2), 1) for name in ("B02", "B03", "B04")}
    at_20m = sky.Sky(**{name: spectra.coarsen(field, 2) for name, field in vars(scene_sky).items()})
    water = spectra.coarsen((label == 5).astype(np.float32), 2)
    rows, cols = (np.arange(axis.start, axis.stop) for axis in truth.grid_slices(window, 20))
    scl = sky.scene_classes(image, at_20m, water, scenario.seed * 31 + scene.index, (rows, cols))
    return np.where(covered(scenario, scene, window, 20), scl, 0).astype(np.uint8)


SLANT = 0.25
"""Columns per row by which the edge of a swath moves west on its way south."""


def _swath_edge(scenario: Scenario) -> float:
    """Return the column of the swath edge in the first row of the granule, for an orbit that covers about 60 %."""
    height, width = scenario.granule.shape
    return 0.6 * width + SLANT * height / 2


def covered(scenario: Scenario, scene: SimulatedScene, window: Window, gsd: int) -> Array:
    """Return where the swath of the scene covers the ground, on the grid of `gsd` inside a 10 m window."""
    k = gsd // 10
    rows = window.row + (np.arange(window.height // k) + 0.5) * k
    cols = window.col + (np.arange(window.width // k) + 0.5) * k
    if scene.orbit != scenarios.PARTIAL_ORBIT:
        return np.ones((len(rows), len(cols)), bool)
    return np.asarray(cols[None, :] + SLANT * rows[:, None] < _swath_edge(scenario))


def footprint(scenario: Scenario, scene: SimulatedScene) -> shapely.Polygon:
    """Return where the granule has data in a scene."""
    west, south, east, north = scenario.granule.bounds
    whole = shapely.box(west, south, east, north)
    if scene.orbit != scenarios.PARTIAL_ORBIT:
        return whole
    top = west + _swath_edge(scenario) * 10
    bottom = top - SLANT * (north - south)
    side = shapely.Polygon([(west - 1, north), (top, north), (bottom, south), (west - 1, south)])
    return shapely.polygons(shapely.get_coordinates(whole.intersection(side).exterior))
