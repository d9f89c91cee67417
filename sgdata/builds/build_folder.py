"""The build folder as a format: names and styles of its rasters, its STAC item, and opening one with xarray."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sgdata import files, output_names
from sgdata.builds import scene_usage
from sgdata.composite.kernels import NO_VALUE
from sgdata.errors import OutputError, SourceError
from sgdata.labels import lost_features
from sgdata.output_names import IMAGE, LABEL_SOURCE, LABELS, PROVENANCE, PROVENANCE_BANDS, USAGE
from sgdata.rasters import cog, geotiff, grids, qgis_style
from sgdata.safe_names import file_name
from sgdata.scenes import aoi, lock, output_items
from sgdata.scenes.types import UNREADABLE, reasons
from sgdata.sentinel2 import BAND, BANDWIDTHS_NM, MSI, RED_GREEN_BLUE
from sgdata.types import Array, BandStatistics, Grid, LabelSpace, Window

if TYPE_CHECKING:
    import pystac
    import xarray

LABEL_LOSSES = lost_features.LOSSES
OUTSIDE_IMAGE, OUTSIDE_PROVENANCE = (MSI.nodata,), (NO_VALUE, 0, NO_VALUE, NO_VALUE, 0)
"""Values of the bands outside the outline of the area, as where a pixel was never seen clear."""
SOURCE_COLOURS = ("#000000", "#1b9e77", "#d95f02", "#7570b3", "#e6ab02")
AGREEMENT = "label_agreement.json"


def require_unchanged(folder: Path, recipe: bytes) -> None:
    """Raise OutputError, naming the first difference, if the folder has a finished build of another recipe (TOML)."""
    recipe_file = folder / output_names.RECIPE
    if files.is_finished(folder) and recipe_file.exists():
        stored, requested = files.read_plain(recipe_file), tomllib.loads(recipe.decode())
        # The default output folder does not affect the data.
        keys = [key for key in stored | requested if key != "out" and stored.get(key) != requested.get(key)]
        if keys:
            differs = f"{keys[0]} is {requested.get(keys[0])}, was {stored.get(keys[0])}"
            raise OutputError(f"{folder}: holds a build of another recipe ({differs:.300}); choose another --out")


def write_composite(
    folder: Path,
    grid: Grid,
    bands: tuple[str, ...],
    tiles: Iterable[tuple[Window, Path]],
    *,
    inside: Array | None = None,
) -> None:
    """Write `image.tif` and `provenance.tif` from tiles of (C + 5, h, w), without data where not `inside` (H, W)."""
    written_tiles = list(tiles)
    image = image_style(bands)
    provenance = cog.RasterStyle(descriptions=PROVENANCE_BANDS, nodata=NO_VALUE)
    image_bands, provenance_bands = slice(0, len(bands)), slice(len(bands), None)
    # Two passes over the tiles on disk, so that the image is never in memory.
    cog.write(folder / IMAGE, grid, _windows(written_tiles, image_bands, inside, OUTSIDE_IMAGE), style=image)
    cog.write(
        folder / PROVENANCE,
        grid,
        _windows(written_tiles, provenance_bands, inside, OUTSIDE_PROVENANCE),
        style=provenance,
    )


def image_style(bands: tuple[str, ...]) -> cog.RasterStyle:
    """Return how `image.tif` stores these bands: with scale, unit and wavelengths, and red, green and blue by name."""
    true_colour = None
    if set(RED_GREEN_BLUE) <= set(bands):
        red, green, blue = (bands.index(name) for name in RED_GREEN_BLUE)
        true_colour = (red, green, blue)
    spectra = tuple((BAND[name].wavelength_nm, BANDWIDTHS_NM[name]) for name in bands)
    return cog.RasterStyle(
        descriptions=bands, nodata=MSI.nodata, scale=MSI.scale, unit="reflectance", red_green_blue=true_colour,
        spectra=spectra,
    )  # fmt: skip


def write_image_style(folder: Path, bands: tuple[str, ...], statistics: Mapping[str, BandStatistics]) -> None:
    """Write `image.qml`, with which QGIS shows true colour between the percentiles 2 and 98 of each band."""
    shown = image_style(bands).red_green_blue
    if shown is None:
        return
    # QGIS applies the scale of the header. Without train pixels: reflectances of land.
    visible = [statistics[name] for name in RED_GREEN_BLUE if name in statistics and statistics[name].count]
    limits = (
        [(each.p2 * MSI.scale, each.p98 * MSI.scale) for each in visible] if len(visible) == 3 else [(0.0, 0.3)] * 3
    )
    files.write(cog.style_path(folder / IMAGE), qgis_style.true_colour([index + 1 for index in shown], limits))


def _windows(
    tiles: Iterable[tuple[Window, Path]], bands: slice, inside: Array | None, outside: Sequence[int]
) -> Iterator[tuple[Window, Array]]:
    """Yield windows of some bands, with the values `outside`, one a band or one for all, where not `inside`."""
    for window, path in tiles:
        values = np.load(path, mmap_mode="r", allow_pickle=False)[bands]
        if inside is not None:
            fill = np.array(outside, values.dtype)[:, None, None]
            values = np.where(inside[window.slices], values, fill)
        yield window, values


def write_usage(
    folder: Path,
    scenes: Sequence[tuple[str, float | None]],
    *,
    inside: Array | None = None,
    uncovered: int = 0,
) -> None:
    """Write `usage.json`: how much of each scene (id, clear share) the composite shows, and signs of errors in it.

    `bright_share` is the share of valid pixels as bright as clouds in blue, `bright_target_share` that of bright
    targets, and `never_clear_share` of those that all dates call cloud. `seam` has the mean step in red between
    neighbours of two scenes, and between all others; similar values mean that no seam is visible. Pixels not `inside`
    (H, W) do not count. `uncovered` pixels have data in no scene.
    """
    with (
        geotiff.open_raster(str(folder / IMAGE)) as image,
        geotiff.open_raster(str(folder / PROVENANCE)) as provenance,
    ):
        names = list(image.descriptions)
        # Composites without these bands use their first one.
        red, blue = (names.index(name) + 1 if name in names else 1 for name in ("B04", "B02"))
        counter = scene_usage.UsageCounter(image.shape[1])
        for window in grids.cut_tiles(image.shape, 512):
            # Both at once: a block holds all bands, and is decoded again for each separate read.
            planes = image.read([red, blue], window=window.slices)
            index, target = provenance.read([1, 5], window=window.slices)
            counter.add(window, red=planes[0], blue=planes[1], index=index, target=target)
    if inside is not None:
        counter.total = int(inside.sum())
    files.write(folder / USAGE, files.pretty_json(counter.summary(scenes) | {"uncovered_pixels": uncovered}))


def describe_nodata(folder: Path) -> str:
    """Return how many pixels have no clear observation, as a sentence; '' if there are none."""
    document = files.read_plain(folder / USAGE)
    pixels, share_of_all = document.get("nodata_pixels"), document.get("nodata_share")
    if not isinstance(pixels, int) or not isinstance(share_of_all, int | float):
        raise SourceError(f"{folder / USAGE}: nodata_pixels or nodata_share is no number; build it again")
    uncovered = document.get("uncovered_pixels", 0)
    if not pixels or not isinstance(uncovered, int):
        return ""
    reasons = []
    if uncovered:
        reasons.append(f"no scene has data of {uncovered:,}; choose another area or widen --dates")
    if pixels > uncovered:
        reasons.append(f"{pixels - uncovered:,} were never seen clear; widen --dates")
    return f"{pixels:,} pixels ({share_of_all:.3%}) hold no data: {', and '.join(reasons)}"


def describe_never_clear(folder: Path) -> str:
    """Return the share of bright roofs that are classified as cloud on all dates and shown; "" if there are none."""
    share = files.read_plain(folder / USAGE).get("never_clear_share")
    if not share or not isinstance(share, int | float):
        return ""
    return (
        f"{share:.3%} of the pixels are classified as cloud on all dates, and kept as bright roofs (bright_target in "
        f"{PROVENANCE}); mask.bright_target_filter=false leaves them out"
    )


def describe_unreadable(folder: Path) -> str:
    """Describe the scenes that the build left out because files could not be read; "" if there are none."""
    dropped = [scene for scene in lock.read(folder).dropped if scene.reason.startswith(UNREADABLE)]
    return f"{len(dropped)} scenes were left out, unreadable: {reasons(dropped)}" if dropped else ""


def describe_findings(folder: Path) -> list[str]:
    """Return what a finished build lacks, one sentence each: pixels, scenes, OpenStreetMap features."""
    messages = (describe_nodata(folder), describe_unreadable(folder), describe_lost_labels(folder))
    return [text for text in messages if text]


def write_labels(
    folder: Path, grid: Grid, space: LabelSpace, sources: Mapping[int, str], painted: tuple[Array, Array]
) -> None:
    """Write `labels.tif` and `label_source.tif`, with palette and class names, from (H, W) uint8 arrays."""
    extent = Window(row=0, col=0, height=grid.shape[0], width=grid.shape[1])
    class_styles = dict(zip(space.ids, zip(space.names, space.palette.values(), strict=True), strict=True))
    if space.ignore is not None:
        class_styles[space.ignore] = ("unmapped", "#ffffff")
    source_styles = {value: (name, SOURCE_COLOURS[value]) for value, name in sources.items()}
    for name, classes, values in ((LABELS, class_styles, painted[0]), (LABEL_SOURCE, source_styles, painted[1])):
        style = cog.RasterStyle(
            descriptions=(name.removesuffix(".tif"),), dtype="uint8", overviews="mode", classes=classes,
            nodata=space.ignore if name == LABELS else None,
        )  # fmt: skip
        cog.write(folder / name, grid, [(extent, values[None])], style=style)


def write_label_losses(folder: Path, losses: Mapping[str, str], features: int) -> None:
    """Write the OpenStreetMap objects that were mended or lost, with the reasons, beside the number of features.

    Args:
        folder: The build.
        losses: Reason by name of the object.
        features: Number of features that were read.
    """
    files.write(folder / LABEL_LOSSES, files.pretty_json({"features": features, "losses": dict(losses)}))


def describe_lost_labels(folder: Path) -> str:
    """Return how many OpenStreetMap features were lost, as a sentence; "" if few, or if the build has no labels."""
    path = folder / LABEL_LOSSES
    document = files.read_plain(path) if path.is_file() else {"features": 0, "losses": {}}
    losses, features = document.get("losses"), document.get("features")
    if not isinstance(losses, dict) or not isinstance(features, int):
        raise SourceError(f"{path}: losses or features are missing; build it again")
    return lost_features.describe_many_lost({str(name): str(fate) for name, fate in losses.items()}, features)


def hash_outputs(folder: Path) -> dict[str, str]:
    """Return the pixel hash of each raster in a build folder, by file name."""
    return {path.name: geotiff.hash_pixels(path) for path in _rasters(folder)}


def _rasters(folder: Path) -> list[Path]:
    # Hidden files are of others: on some file systems macOS keeps a file `._image.tif` beside each `image.tif`.
    return sorted(path for path in folder.glob("*.tif") if not path.name.startswith("."))


def write_stac(folder: Path, name: str, grid: Grid, dates: str, derived_from: Iterable[str]) -> None:
    """Write `stac/<name>.json`, a STAC item whose assets are the rasters of the build.

    Args:
        folder: The build.
        name: Identifier of the item.
        grid: Grid of the rasters.
        dates: First and last day, `A/B`.
        derived_from: Identifiers of the scenes.
    """
    first, last = dates.split("/")
    properties = {
        "gsd": grid.gsd_m,
        "proj:code": grid.crs,
        "proj:transform": list(grid.transform),
        "proj:shape": list(grid.shape),
        "sgdata:derived_from": list(derived_from),
    }
    extensions = ("projection", "file", "eo")
    item = output_items.create_item(name, aoi.in_degrees(grid), (first, last), properties, extensions)
    for path in _rasters(folder):
        item.add_asset(path.stem, _asset(path))
    files.write(folder / "stac" / f"{file_name(name)}.json", files.pretty_json(item.to_dict(include_self_link=False)))


def _asset(path: Path) -> pystac.Asset:
    import pystac

    with geotiff.open_raster(str(path)) as dataset:
        names, dtype = dataset.descriptions, dataset.dtypes[0]
    fields = output_items.file_fields(path.stat().st_size, files.sha256_file(path))
    fields["bands"] = [output_items.band_fields(name) | {"data_type": dtype} for name in names]
    return pystac.Asset(f"../{path.name}", media_type=pystac.MediaType.COG, roles=["data"], extra_fields=fields)


def open_build(folder: Path) -> xarray.Dataset:
    """Open a finished build lazily, with its CRS through rioxarray.

    Args:
        folder: Folder made by `sgdata build`.

    Returns:
        `image` (band, y, x) uint16 DN, `labels` and `label_source` (y, x) uint8, `provenance` (band_provenance, y, x)
        uint16; attributes `scale` (reflectance per DN) and `items` (ids of the scenes).

    Raises:
        SourceError: The folder is not a build, or is unfinished.
    """
    import rioxarray
    import xarray

    folder = Path(folder)
    files.require_file(folder / IMAGE, "a folder made by `sgdata build`")
    files.require_finished(folder)
    arrays = {}
    for name in (IMAGE, LABELS, LABEL_SOURCE, PROVENANCE):
        if not (folder / name).exists():
            continue
        key = name.removesuffix(".tif")
        array = rioxarray.open_rasterio(folder / name)
        assert isinstance(array, xarray.DataArray)
        names = array.attrs.pop("long_name")
        if len(set(array.attrs.get("units", ()))) == 1 and isinstance(array.attrs["units"], tuple):
            array.attrs["units"] = array.attrs["units"][0]  # of all bands; files of xarray take no tuple
        if name in {LABELS, LABEL_SOURCE}:
            arrays[key] = array.squeeze("band", drop=True)
        else:
            array = array.assign_coords(band=list(names))
            arrays[key] = array if name == IMAGE else array.rename(band="band_provenance")
    items = [item.scene.id for item in lock.read(folder).items]
    return xarray.Dataset(arrays, attrs={"scale": MSI.scale, "items": items})
