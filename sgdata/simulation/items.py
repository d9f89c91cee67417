"""The static STAC catalogue of an archive, with items in the layout of Earth Search v1 and other providers. Pure.

The layouts follow recorded responses: Planetary Computer has no offset and the old `proj:epsg`; the Copernicus Data
Space has CRS, scale and offset on each asset, and asset keys with the resolution; items of ESA's EOPF products name the
groups and arrays of one Zarr store.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from pyproj import Transformer

from sgdata import package_data
from sgdata.sentinel2 import BAND, L2A_BANDS, SceneClass
from sgdata.simulation.scenarios import TILE, SimulatedScene, processing_time
from sgdata.types import Array, Grid

COLLECTION = "sentinel-2-l2a"
TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
KEYS = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1", "B06": "rededge2",
    "B07": "rededge3", "B08": "nir", "B8A": "nir08", "B09": "nir09", "B11": "swir16", "B12": "swir22",
}  # fmt: skip
SHARES = {
    SceneClass.DARK: "dark_features", SceneClass.CLOUD_SHADOW: "cloud_shadow", SceneClass.VEGETATION: "vegetation",
    SceneClass.NOT_VEGETATED: "not_vegetated", SceneClass.WATER: "water", SceneClass.UNCLASSIFIED: "unclassified",
    SceneClass.CLOUD_MEDIUM: "medium_proba_clouds", SceneClass.CLOUD_HIGH: "high_proba_clouds",
    SceneClass.CIRRUS: "thin_cirrus", SceneClass.SNOW: "snow_ice",
}  # fmt: skip
CLOUDS = ("s2:medium_proba_clouds_percentage", "s2:high_proba_clouds_percentage", "s2:thin_cirrus_percentage")


def ring(shape: shapely.Polygon, crs: str) -> list[list[float]]:
    """Return the outer ring of a shape in `crs` as [longitude, latitude] vertices, rounded to 1e-8 degrees."""
    x, y = shapely.get_coordinates(shape.exterior).T
    lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    return np.round(np.column_stack([lon, lat]), 8).tolist()  # type: ignore[no-any-return]


def polygon(shape: shapely.Polygon, crs: str) -> dict[str, Any]:
    """Return a shape in `crs` as a GeoJSON geometry in degrees."""
    return {"type": "Polygon", "coordinates": [ring(shape, crs)]}


def bbox(geometry: dict[str, Any]) -> list[float]:
    """Return [west, south, east, north] of a GeoJSON polygon."""
    lon, lat = np.array(geometry["coordinates"][0]).T
    return [float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())]


def item(
    scene: SimulatedScene, granule: Grid, footprint: shapely.Polygon, counts: Array, *, crs: str | None = None
) -> dict[str, Any]:
    """Create the item of a scene.

    `counts` are the numbers of pixels of each SCL value; `footprint` is the area with data, in `crs` or else the CRS of
    `granule`.
    """
    geometry = polygon(footprint, crs or granule.crs)
    document = _template("item")
    properties = document["properties"] | _properties(scene, counts) | {"proj:code": granule.crs}
    fields = {"id": scene.id, "geometry": geometry, "bbox": bbox(geometry), "properties": properties}
    return document | fields | {"assets": _assets(scene, granule)}


def _properties(scene: SimulatedScene, counts: Array) -> dict[str, Any]:
    time = scene.time
    processed = processing_time(scene)
    # Readers take the orbit from the product name if no property has it.
    number = scene.baseline.replace(".", "")
    total = max(int(counts.sum()), 1)
    # Shares of the pixels with data, as Sen2Cor reports them.
    with_data = max(total - int(counts[SceneClass.NO_DATA]), 1)
    shares = {f"s2:{name}_percentage": round(100 * int(counts[value]) / with_data, 6) for value, name in SHARES.items()}
    stem = f"{scene.platform}_MSIL2A_{time:%Y%m%dT%H%M%S}_N{number}_R{scene.orbit:03d}_T{TILE}"
    return shares | {
        "datetime": f"{time:%Y-%m-%dT%H:%M:%S}.000000Z",
        "created": f"{processed:%Y-%m-%dT%H:%M:%S}.000Z",
        "updated": f"{processed:%Y-%m-%dT%H:%M:%S}.000Z",
        "platform": f"sentinel-{scene.platform[1:].lower()}",
        "eo:cloud_cover": round(sum(shares[key] for key in CLOUDS), 6),
        "view:sun_azimuth": round(scene.sun_azimuth, 9),
        "view:sun_elevation": round(scene.sun_elevation, 9),
        "s2:nodata_pixel_percentage": round(100 * int(counts[SceneClass.NO_DATA]) / total, 6),
        "s2:processing_baseline": scene.baseline,
        "s2:product_uri": f"{stem}_{processed:%Y%m%dT%H%M%S}.SAFE",
        "s2:generation_time": f"{processed:%Y-%m-%dT%H:%M:%S}.000000Z",
        "s2:datatake_id": f"G{scene.platform}_{time:%Y%m%dT%H%M%S}_{scene.index + 20000:06d}_N{scene.baseline}",
        "s2:sequence": "1" if scene.baseline == "05.00" else "0",
        "earthsearch:boa_offset_applied": scene.baseline >= "04.00" and not scene.offset_in_pixels,
    }


def _assets(scene: SimulatedScene, granule: Grid) -> dict[str, Any]:
    assets: dict[str, Any] = {}
    for name in L2A_BANDS:
        band, stored = BAND[name], {"nodata": 0, "data_type": "uint16", "bits_per_sample": 15, "scale": 0.0001}
        stored |= {"spatial_resolution": band.gsd_m, "offset": -0.1 if scene.offset_in_pixels else 0}
        colours = [{"name": KEYS[name], "center_wavelength": band.wavelength_nm / 1000}]
        fields = {"gsd": band.gsd_m, "eo:bands": colours, "raster:bands": [stored]}
        assets[KEYS[name]] = _asset(f"{name}.tif", band.gsd_m, granule) | fields
    stored = {"nodata": 0, "data_type": "uint8", "spatial_resolution": 20}
    assets["scl"] = _asset("SCL.tif", 20, granule) | {"raster:bands": [stored]}
    return assets


def _asset(name: str, gsd_m: int, granule: Grid) -> dict[str, Any]:
    factor = gsd_m // 10
    west, north = granule.origin
    return {
        "href": f"./{name}",
        "type": TIFF,
        "title": f"{name[:-4]} at {gsd_m} m",
        "roles": ["data", "reflectance"],
        "proj:shape": [granule.shape[0] // factor, granule.shape[1] // factor],
        "proj:transform": [gsd_m, 0, west, 0, -gsd_m, north],
    }


def collection(scenes: list[SimulatedScene], ids: list[str], granule: Grid) -> dict[str, Any]:
    """Create the collection of the archive, with a link to each item of `ids`."""
    document = _template("collection")
    box = bbox(polygon(shapely.box(*granule.bounds), granule.crs))
    times = sorted(f"{scene.time:%Y-%m-%dT%H:%M:%SZ}" for scene in scenes)
    extent = {"spatial": {"bbox": [box]}, "temporal": {"interval": [[times[0], times[-1]]]}}
    links = [{"rel": "item", "href": f"./{name}/{name}.json", "type": "application/geo+json"} for name in ids]
    return document | {"extent": extent, "links": document["links"] + links}


def root() -> dict[str, Any]:
    """Create the root catalogue."""
    return _template("catalog")


def _template(name: str) -> dict[str, Any]:
    """Return the constant part of a catalogue, collection or item."""
    layout: dict[str, Any] = package_data.document("simulated_stac")[name]
    return layout


# --- the same items as other providers write them ------------------------------------------

LAYOUTS = ("earth-search", "planetary-computer", "cdse", "eopf")
ZARR = "application/vnd+zarr"
BAND_OF = {key: band for band, key in KEYS.items()} | {"scl": "SCL"}


def to_layout(document: dict[str, Any], layout: str) -> dict[str, Any]:
    """Convert an Earth Search item to the layout of another provider, one of LAYOUTS."""
    if layout == "earth-search":
        return document
    if layout == "planetary-computer":
        return document | {
            "properties": _planetary_computer_properties(document),
            "assets": _rename_assets(document, {}, ""),
        }
    code = {key: value for key, value in document["properties"].items() if key == "proj:code"}
    if layout == "eopf":
        properties = _copernicus_properties(document) | code
        for key in ("processing:version", "processing:datetime", "statistics"):  # its items have none of these
            del properties[key]
        return document | {
            "properties": properties | {"processing:level": "L2A"},
            "assets": _zarr_assets(document, code),
        }
    return document | {"properties": _copernicus_properties(document), "assets": _rename_assets(document, code, "m")}


def _planetary_computer_properties(document: dict[str, Any]) -> dict[str, Any]:
    properties = document["properties"]
    # No offset flag and no grid code, as at Planetary Computer.
    selected = {key: value for key, value in properties.items() if key.startswith(("s2:", "eo:")) or key == "datetime"}
    # An item may have lost its projection to a trap.
    if "proj:code" in properties:
        selected["proj:epsg"] = int(properties["proj:code"].removeprefix("EPSG:"))
    return selected | {
        "platform": f"Sentinel-{properties['platform'][-2:].upper()}",
        "constellation": "Sentinel 2",
        "s2:mgrs_tile": properties["grid:code"].removeprefix("MGRS-"),
        "sat:relative_orbit": _orbit(properties),
    }


def _copernicus_properties(document: dict[str, Any]) -> dict[str, Any]:
    properties = document["properties"]
    kept = {
        key: properties[key] for key in ("datetime", "created", "updated", "platform", "eo:cloud_cover", "grid:code")
    }
    return kept | {
        "constellation": "sentinel-2",
        "processing:version": properties["s2:processing_baseline"],
        "processing:datetime": properties["s2:generation_time"],
        "eopf:datatake_id": properties["s2:datatake_id"],
        "statistics": {"nodata": properties["s2:nodata_pixel_percentage"]},
        "sat:relative_orbit": _orbit(properties),
    }


def _orbit(properties: dict[str, Any]) -> int:
    return int(properties["s2:product_uri"].split("_R")[1][:3])


def _rename_assets(document: dict[str, Any], extra: dict[str, Any], unit: str) -> dict[str, Any]:
    """Return the assets under the keys of the other provider; with a `unit` they have resolution, scale and offset."""
    assets = {}
    for key, asset in document["assets"].items():
        band = BAND_OF[key]
        gsd = BAND[band].gsd_m if band in BAND else 20
        # Neither of the two has bands by common name as Earth Search does.
        renamed = {k: v for k, v in asset.items() if k not in {"raster:bands", "eo:bands"}} | {"gsd": gsd}
        if unit:
            stored = asset["raster:bands"][0]
            renamed |= extra | {"data_type": stored["data_type"], "nodata": 0}
            if band in BAND:
                renamed |= {"raster:scale": 0.0001, "raster:offset": stored["offset"]}
        assets[f"{band}_{gsd}{unit}" if unit else band] = renamed
    return assets


def _zarr_assets(document: dict[str, Any], code: dict[str, Any]) -> dict[str, Any]:
    """Return the assets of an EOPF product: the store, its metadata, its groups, and bands in their finest arrays."""
    folder = document["assets"]["red"]["href"].rpartition("/")[0]
    name = document["id"] if folder == "." else folder.rpartition("/")[2]
    store = f"{folder}/{name}.zarr"
    reflectance = f"{store}/measurements/reflectance"
    assets = {
        f"SR_{gsd}m": {
            "href": f"{reflectance}/r{gsd}m", "type": ZARR, "gsd": gsd, "roles": ["data", "reflectance", "dataset"],
            "title": f"Surface Reflectance - {gsd}m",
        }
        for gsd in (10, 20, 60)
    }  # fmt: skip
    for key, asset in document["assets"].items():
        band = BAND_OF[key]
        gsd = BAND[band].gsd_m if band in BAND else 20
        stored = asset["raster:bands"][0]
        kept = {k: v for k, v in asset.items() if k.startswith("proj:")} | code
        if "proj:transform" in kept:
            kept["proj:transform"] = [*kept["proj:transform"], 0, 0, 1]
        kept |= {"type": ZARR, "roles": asset["roles"], "data_type": stored["data_type"]}
        if band == "SCL":
            path = f"{store}/conditions/mask/l2a_classification/r20m/scl"
        elif band == "B01":
            # Its finest array, which repeats the pixels of 60 m.
            gsd, path = 20, f"{reflectance}/r20m/b01"
            if "proj:shape" in kept:
                transform = [value / 3 if n in {0, 4} else value for n, value in enumerate(kept["proj:transform"])]
                kept |= {"proj:shape": [3 * size for size in kept["proj:shape"]], "proj:transform": transform}
        else:
            path = f"{reflectance}/r{gsd}m/{band.lower()}"
        if band in BAND:
            kept |= {"raster:scale": 0.0001, "nodata": 0, "bands": [{"name": band}]}
            if stored["offset"]:
                kept["raster:offset"] = stored["offset"]
        assets[f"{band}_{gsd}m"] = kept | {"href": path, "gsd": gsd}
    assets["product"] = {"href": store, "type": ZARR, "roles": ["data", "metadata"], "title": "EOPF Product"}
    metadata = {"href": f"{store}/.zmetadata", "type": "application/json", "roles": ["metadata"]}
    return assets | {"product_metadata": metadata | {"title": "Consolidated Metadata"}}
