"""Write pixels as a static STAC catalogue like Earth Search v1, from synthetic scenes or real rasters."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.warp import transform_bounds

from sgdata.scenes.parse_items import asset_keys

COLLECTION = "sentinel-2-l2a"


@dataclass(frozen=True, kw_only=True)
class Wrapped:
    """A scene for a catalogue: (H, W) pixels and gsd by band (or SCL, cloud); all share one upper left corner."""

    id: str
    time: str
    layers: dict[str, tuple[Any, float]]
    crs: str = "EPSG:32632"
    origin: tuple[float, float] = (600000.0, 5400000.0)
    baseline: str = "02.14"
    nodata: float | None = 0
    block: int = 64
    properties: dict[str, Any] = field(default_factory=dict)


def wrap(folder: Path, scenes: list[Wrapped]) -> Path:
    """Write catalogue, collection, items and one COG-like GeoTIFF per layer below `folder`."""
    items = [_item(folder / COLLECTION / scene.id, scene) for scene in scenes]
    links = [{"rel": "item", "href": f"./{name}/{name}.json"} for name in items]
    collection = {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": COLLECTION,
        "description": "wrapped",
        "license": "proprietary",
        "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
        "links": links,
    }
    child = [{"rel": "child", "href": f"./{COLLECTION}/collection.json"}]
    catalog = {"type": "Catalog", "stac_version": "1.0.0", "id": "wrapped", "description": "wrapped", "links": child}
    (folder / COLLECTION / "collection.json").write_text(json.dumps(collection))
    (folder / "catalog.json").write_text(json.dumps(catalog))
    return folder


def _item(folder: Path, scene: Wrapped) -> str:
    folder.mkdir(parents=True)
    assets = {name: _asset(folder, name, scene) for name in scene.layers}
    shapes = [(*pixels.shape, gsd) for pixels, gsd in scene.layers.values()]
    west, north = scene.origin
    bounds = (west, north - shapes[0][0] * shapes[0][2], west + shapes[0][1] * shapes[0][2], north)
    box = transform_bounds(scene.crs, "EPSG:4326", *bounds)
    ring = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]], [box[0], box[1]]]
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": scene.id,
        "collection": COLLECTION,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": list(box),
        "properties": {
            "datetime": scene.time,
            "platform": "sentinel-2a",
            "proj:epsg": int(scene.crs.removeprefix("EPSG:")),
            "grid:code": f"MGRS-{scene.id.split('_')[1]}",
            "s2:processing_baseline": scene.baseline,
            "sat:relative_orbit": 22,
            **scene.properties,
        },
        "links": [],
        "assets": {asset_keys()["earth-search"][name]: asset for name, asset in assets.items()},
    }
    (folder / f"{scene.id}.json").write_text(json.dumps(item))
    return scene.id


def _asset(folder: Path, name: str, scene: Wrapped) -> dict[str, Any]:
    pixels, gsd = scene.layers[name]
    transform = Affine(gsd, 0, scene.origin[0], 0, -gsd, scene.origin[1])
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": pixels.dtype, "count": 1, "nodata": scene.nodata, "crs": scene.crs,
        "height": pixels.shape[0], "width": pixels.shape[1], "transform": transform, "compress": "deflate",
        "tiled": True, "blockxsize": scene.block, "blockysize": scene.block,
    }  # fmt: skip
    if pixels.dtype != np.uint8:
        profile["predictor"] = 2
    with rasterio.open(folder / f"{name}.tif", "w", **profile) as dataset:
        dataset.write(pixels, 1)
    return {
        "href": f"./{name}.tif",
        "type": "image/tiff",
        "proj:shape": list(pixels.shape),
        "proj:transform": list(transform)[:6],
        "raster:bands": [{"data_type": str(pixels.dtype)}],
    }


# --- real rasters --------------------------------------------------------------------------


def decimated_scene(real: Path, folder: Path) -> Path:
    """Return the Earth Search item 29RKH with its own files, with 100/200/600 m pixels instead of 10/20/60.

    Its assets are copies, since a catalogue names files in its own folder only; `proj:*` is rewritten from them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    home = real / "s2_scene_29RKH_stac" / "S2A_29RKH_20200219_0_L2A"
    item = json.loads((home / f"{home.name}.json").read_text())
    kept = {}
    for band, key in asset_keys()["earth-search"].items():
        path = home / f"{band}.tif"
        if key in item["assets"] and path.exists():
            with rasterio.open(path) as dataset:
                projection = {"proj:shape": list(dataset.shape), "proj:transform": list(dataset.transform)[:6]}
            kept[key] = item["assets"][key] | projection | {"href": shutil.copy(path, folder)}
    item |= {"assets": kept, "links": []}
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    return folder / "items.json"


def barbellino(real: Path, folder: Path) -> Path:
    """Return the Alpine L2A pair: 11 bands at 10 m with nodata tag 65535, SCL at 20 m."""
    names = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B11", "B12")
    scenes = []
    for day in ("20170703", "20190723"):
        home = real / "s2_pair_barbellino"
        with rasterio.open(home / f"S2A2A_{day}_022_Barbellino_BOA_10.tif") as dataset:
            layers: dict[str, tuple[Any, float]] = {n: (v, 10.0) for n, v in zip(names, dataset.read(), strict=True)}
            origin = (dataset.transform.c, dataset.transform.f)
        with rasterio.open(home / f"S2A2A_{day}_022_Barbellino_SCL_10.tif") as dataset:
            scl = dataset.read(1)
        scenes.append(
            Wrapped(
                id=f"S2A_32TNS_{day}_0_L2A",
                time=f"{day[:4]}-{day[4:6]}-{day[6:]}T10:20:00Z",
                layers={**layers, "SCL": (scl, 20.0)},
                origin=origin,
                nodata=None,
                block=16,
            )
        )
    return wrap(folder, scenes)


def lahinch(real: Path, folder: Path) -> Path:
    """Return the Irish L1C series, NaN borders converted to uint16 0, with its cloud probability as asset `cloud`."""
    scenes = []
    for path in sorted((real / "s2_series_lahinch" / "S2").glob("*.tif")):
        with rasterio.open(path) as dataset:
            values = np.nan_to_num(dataset.read(), nan=0)
            names = [f"B{name[1:]:0>2}" for name in dataset.descriptions[:13]]
            origin = (dataset.transform.c, dataset.transform.f)
        layers: dict[str, tuple[Any, float]] = {
            n: (v.astype(np.uint16), 10.0) for n, v in zip(names, values, strict=False)
        }
        layers["cloud"] = (values[14].astype(np.uint8), 10.0)
        scenes.append(
            Wrapped(
                id=f"S2A_29UMV_{path.stem.replace('-', '')}_0_L1C",
                time=f"{path.stem}T11:40:00Z",
                layers=layers,
                crs="EPSG:32629",
                origin=origin,
                nodata=None,
            )
        )
    return wrap(folder, scenes)
