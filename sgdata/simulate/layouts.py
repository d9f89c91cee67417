"""One item as each provider writes it: asset keys, properties and what they leave out. Pure.

Learnt from recorded answers: Planetary Computer tells no offset at all and old `proj:epsg`; the Copernicus Data Space
puts the CRS, scale and offset on each asset and names assets by resolution.
"""

from __future__ import annotations

from typing import Any

from sgdata.sentinel2 import BAND
from sgdata.simulate.items import KEYS

LAYOUTS = ("earth-search", "planetary-computer", "cdse")
BAND_OF = {key: band for band, key in KEYS.items()} | {"scl": "SCL"}


def written(document: dict[str, Any], layout: str) -> dict[str, Any]:
    """An Earth Search item in the words of another provider, one of LAYOUTS."""
    if layout == "earth-search":
        return document
    if layout == "planetary-computer":
        return document | {"properties": _microsoft(document), "assets": _bands(document, {}, "")}
    code = {key: value for key, value in document["properties"].items() if key == "proj:code"}
    return document | {"properties": _copernicus(document), "assets": _bands(document, code, "m")}


def _microsoft(document: dict[str, Any]) -> dict[str, Any]:
    told = document["properties"]
    # No offset flag and no grid code: what is not here, Planetary Computer does not tell.
    kept = {key: value for key, value in told.items() if key.startswith(("s2:", "eo:")) or key == "datetime"}
    # An item may have lost its projection to a trap.
    if "proj:code" in told:
        kept["proj:epsg"] = int(told["proj:code"].removeprefix("EPSG:"))
    return kept | {
        "platform": f"Sentinel-{told['platform'][-2:].upper()}",
        "constellation": "Sentinel 2",
        "s2:mgrs_tile": told["grid:code"].removeprefix("MGRS-"),
        "sat:relative_orbit": _orbit(told),
    }


def _copernicus(document: dict[str, Any]) -> dict[str, Any]:
    told = document["properties"]
    kept = {key: told[key] for key in ("datetime", "created", "updated", "platform", "eo:cloud_cover", "grid:code")}
    return kept | {
        "constellation": "sentinel-2",
        "processing:version": told["s2:processing_baseline"],
        "processing:datetime": told["s2:generation_time"],
        "eopf:datatake_id": told["s2:datatake_id"],
        "statistics": {"nodata": told["s2:nodata_pixel_percentage"]},
        "sat:relative_orbit": _orbit(told),
    }


def _orbit(told: dict[str, Any]) -> int:
    return int(told["s2:product_uri"].split("_R")[1][:3])


def _bands(document: dict[str, Any], extra: dict[str, Any], unit: str) -> dict[str, Any]:
    """The assets under the other provider's keys: with a `unit` they carry resolution, scale and offset."""
    assets = {}
    for key, asset in document["assets"].items():
        band = BAND_OF[key]
        gsd = BAND[band].gsd_m if band in BAND else 20
        # Neither of the two has bands by common name as Earth Search does.
        kept = {k: v for k, v in asset.items() if k not in {"raster:bands", "eo:bands"}} | {"gsd": gsd}
        if unit:
            stored = asset["raster:bands"][0]
            kept |= extra | {"data_type": stored["data_type"], "nodata": 0}
            if band in BAND:
                kept |= {"raster:scale": 0.0001, "raster:offset": stored["offset"]}
        assets[f"{band}_{gsd}{unit}" if unit else band] = kept
    return assets
