"""Blocks of the page of a build: a map with every value, classes, bands, scenes, seams."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, output_names, sentinel2
from sgdata.builds import scene_usage
from sgdata.composite.cloud_masks import BRIGHT, NEVER_CLEAR, PERHAPS_BRIGHT
from sgdata.composite.kernels import NO_VALUE
from sgdata.display import true_colour
from sgdata.errors import SourceError
from sgdata.pages import charts, html, raster_tiles, tables
from sgdata.rasters import geotiff
from sgdata.safe_names import file_name
from sgdata.scenes import lock
from sgdata.scenes.lock import Lock
from sgdata.shards import contracts
from sgdata.types import Array, Contract, LabelSpace

VALUES = "values"
# Dark to bright in even steps of lightness, after matplotlib's viridis.
RAMP = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
PRESETS = {
    "true colour": sentinel2.RED_GREEN_BLUE,
    "false colour": ("B08", "B04", "B03"),
    "short-wave infrared": ("B12", "B8A", "B04"),
}
Layer = dict[str, Any]
Patch = tuple[int, int, int, int, str]


def build_blocks(build: Path, folder: Path, more: Mapping[str, Path] | None = None) -> list[html.Block]:
    """Return the blocks of a build; write the raster values for its map into `folder`.

    `more` are further class rasters on its grid, by title.
    """
    files.require_finished(build)
    contract, planned = contracts.read(build), lock.read(build / lock.NAME)
    rasters = {"Labels": build / output_names.LABELS, "Source of the label": build / output_names.LABEL_SOURCE} | dict(
        more or {}
    )
    rasters_of_classes = {title: path for title, path in rasters.items() if path.exists()}
    planes = [
        raster_tiles.Plane(name=b.name, path=build / output_names.IMAGE, band=n)
        for n, b in enumerate(contract.bands, 1)
    ]
    planes += [raster_tiles.Plane(name=file_name(path.stem), path=path) for path in rasters_of_classes.values()]
    chosen = build / output_names.PROVENANCE
    planes += [raster_tiles.Plane(name=name, path=chosen, band=n) for n, name in enumerate(_stored(chosen), 1)]
    written = raster_tiles.write(folder / VALUES, planes)
    layers: list[Layer] = [{"name": "image", "title": "Image"}]
    layers += [_classes(title, path, contract.label_space) for title, path in rasters_of_classes.items()]
    layers += _provenance(planned, written.overview)
    rows = _patches(build)
    height, width = written.shape
    area = f"{width} x {height} pixels of {planned.grid.gsd_m:g} m in {planned.grid.crs}"
    return [
        _map(contract, planned, written, layers, rows),
        *_shares(build, contract.label_space, rows),
        tables.build_statistics(contract),
        *_usage(build, planned),
        tables.build_contract(
            contract, {"area": area, "dates": planned.dates, "OpenStreetMap as of": planned.osm_date}
        ),
    ]


def _map(
    contract: Contract, planned: Lock, written: raster_tiles.TilePyramid, layers: list[Layer], rows: Sequence[Patch]
) -> html.Map:
    names = [band.name for band in contract.bands]
    boxes: dict[str, list[tuple[int, int, int, int]]] = {}
    for *box, split in rows:
        boxes.setdefault(split, []).append((box[0], box[1], box[2], box[3]))
    keys = {layer["name"]: layer.pop("keys") for layer in layers[1:]}
    keys["patches"] = tuple((charts.colour(split), f"{split} ({len(windows)})") for split, windows in boxes.items())
    overviews = [written.overview[name] for name in names]
    limits = [true_colour.limits(values[values > 0], (1, 99)) for values in overviews]
    spec = {
        "values": VALUES, "shape": written.shape, "step": written.step, "tile": raster_tiles.TILE,
        "crs": planned.grid.crs, "origin": planned.grid.origin, "gsd": planned.grid.gsd_m,
        "planes": list(written.overview), "layers": layers,
        "nodata": contract.nodata, "scale": contract.scale, "offset": contract.offset, "patches": rows,
        "bands": [
            {"name": band.name, "wavelength": band.wavelength_nm, "low": int(low), "high": int(high)}
            for band, (low, high) in zip(contract.bands, limits, strict=True)
        ],
    }  # fmt: skip
    spectrum = charts.spectrum(
        {band.name: band.wavelength_nm for band in contract.bands}, contract.statistics,
        scale=contract.scale, offset=contract.offset,
    )  # fmt: skip
    return html.Map(
        title="Map",
        figure=charts.layered(written.shape, [layer["name"] for layer in layers], boxes),
        spectrum=spectrum,
        spectrum_keys=charts.SPECTRUM,
        spec=spec,
        presets={text: bands for text, bands in PRESETS.items() if set(names) >= set(bands)}
        # A build without the bands of any preset.
        or {"first, middle and last band": (names[0], names[len(names) // 2], names[-1])},
        keys=keys,
        caption="Click a pixel, or move the cursor with the arrow keys, to see its exact values.",
    )


def _classes(title: str, path: Path, space: LabelSpace) -> Layer:
    """Return the layer of a class raster, with names and colours of the file or, if it has none, of `space`."""
    with geotiff.open_raster(str(path)) as raster:
        names = {int(key[6:]): name for key, name in raster.tags().items() if key.startswith("class_")}
        colours = {value: "#{:02x}{:02x}{:02x}".format(*raster.colormap(1)[value]) for value in sorted(names)}
    if not names:
        names, colours = (dict(zip(space.ids, values, strict=True)) for values in (space.names, space.palette.values()))
    keys = tuple((colours[value], names[value]) for value in colours)
    name = file_name(path.stem)
    return {"name": name, "plane": name, "title": title, "colours": colours, "names": names, "keys": keys}


def _stored(path: Path) -> tuple[str, ...]:
    """Return the provenance bands of a build: those of composites before version 4 have no bright targets."""
    with geotiff.open_raster(str(path)) as provenance:
        count, names = provenance.count, output_names.PROVENANCE_BANDS
    if count not in (len(names), len(names) - 1):
        raise SourceError(f"{path}: has {count} bands, expected {' '.join(names)}; build it again")
    return names[:count]


def _provenance(planned: Lock, overview: Mapping[str, Array]) -> list[Layer]:
    """Return layers of the provenance bands: scene, number of valid observations, date, score and bright targets."""
    scenes = [item.scene.id for item in planned.items]
    # Steps of the golden ratio give consecutive scenes very different hues, so that seams are visible.
    hues = [colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.55, 0.9) for number in range(len(scenes))]
    colours = {number: "#" + "".join(f"{round(255 * part):02x}" for part in hue) for number, hue in enumerate(hues)}
    name = output_names.PROVENANCE_BANDS[0]
    keys = tuple((colours[number], scene) for number, scene in enumerate(scenes))
    chosen = {"colours": colours, "names": dict(enumerate(scenes)), "missing": NO_VALUE, "keys": keys}
    layers: list[Layer] = [{"name": name, "plane": name, "title": "Scene", **chosen}]
    *ramps, targets = output_names.PROVENANCE_BANDS[1:]
    for name, title in zip(ramps, ("Valid observations", "Date", "Score"), strict=True):
        values = overview[name][overview[name] != NO_VALUE]
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 1)
        layer: Layer = {"name": name, "plane": name, "title": title, "ramp": [low, high, *RAMP], "missing": NO_VALUE}
        ends = (str(low), str(high))
        if title == "Date":
            layer["day"] = True
            ends = (str(np.datetime64(low, "D")), str(np.datetime64(high, "D")))
        if title == "Score":
            layer["scale"] = 1e-4
            ends = (f"{low / 10000:.4f}", f"{high / 10000:.4f}")
        layers.append(layer | {"keys": tuple(zip((RAMP[0], RAMP[-1]), ends, strict=True))})
    kinds = {
        BRIGHT: ("#e6ab02", "cloud on most clear days"),
        NEVER_CLEAR: ("#d62728", "cloud on all dates"),
        PERHAPS_BRIGHT: ("#7570b3", "the same, perhaps by chance"),
    }
    colours, names = ({number: kind[n] for number, kind in kinds.items()} for n in (0, 1))
    keyed = {"colours": colours, "names": names, "missing": 0, "keys": tuple(kinds.values())}
    if targets in overview:
        layers.append({"name": targets, "plane": targets, "title": "Bright targets", **keyed})
    return layers


def _patches(build: Path) -> list[Patch]:
    """Read row, column, height, width and split of each patch; empty if the build has no patches."""
    import pyarrow.parquet as pq

    path, columns = build / output_names.PATCHES, ["row", "col", "height", "width", "split"]
    rows = pq.read_table(path, columns=columns).to_pylist() if path.exists() else []
    return [(row["row"], row["col"], row["height"], row["width"], row["split"]) for row in rows]


def _shares(build: Path, space: LabelSpace, rows: Sequence[Patch]) -> list[html.Block]:
    """Return the share of each class in the area and in the patches of each split."""
    path = build / output_names.LABELS
    if not path.exists():
        return []
    with geotiff.open_raster(str(path)) as raster:
        labels = raster.read(1)
    counts = {"area": np.bincount(labels.ravel(), minlength=256)}
    for row, col, height, width, split in rows:
        # Pixels of overlapping patches count several times, as in training.
        inside = np.bincount(labels[row : row + height, col : col + width].ravel(), minlength=256)
        counts[split] = counts.get(split, 0) + inside
    return [tables.build_shares(space, {name: dict(enumerate(column.tolist())) for name, column in counts.items()})]


def _usage(build: Path, planned: Lock) -> list[html.Block]:
    """Return how much of each scene the composite shows, and signs of residual clouds and seams, from `usage.json`."""
    path = build / output_names.USAGE
    if not path.exists():
        return []
    provenance, offsets = files.read_plain(path), {item.scene.id: item.offset for item in planned.items}
    scenes = tuple(
        (
            s["id"],
            f"{offsets.get(s['id']) or 0:+d}",
            tables.format_percent(s["clear_share"]),
            tables.format_percent(s["shown_share"]),
        )
        for s in provenance["scenes"]
    )
    seam = provenance["seam"]
    shares = (
        ("pixels without data", "nodata_share"),
        (f"as bright in blue as cloud (DN {scene_usage.BRIGHT_DN} or more)", "bright_share"),
        ("cloud on most clear days, by the classification", "bright_target_share"),
        ("cloud on all dates, by the classification", "never_clear_share"),
    )
    signs = (
        # Builds of composites before version 4 lack the last two.
        *((text, tables.format_percent(provenance[key])) for text, key in shares if key in provenance),
        ("neighbours taken from two scenes", f"{seam['pairs']:,}"),
        ("mean step in red between them, DN", str(seam["step_dn"])),
        ("mean step between all others, DN", str(seam["step_dn_elsewhere"])),
    )
    columns = ("scene", "offset", "clear", "shown")
    dropped = tuple((scene.id, scene.reason) for scene in planned.dropped)
    return [
        html.Table(title="Scenes", columns=columns, rows=scenes, caption="Shares of the area, clear and shown."),
        html.Table(title="Seams and residual cloud", columns=("sign", "figure"), rows=signs),
        *([html.Table(title="Scenes left out", columns=("scene", "reason"), rows=dropped)] if dropped else []),
    ]
