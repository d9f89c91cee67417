"""Replace the place name of an area by its outline, from OpenStreetMap's geocoder Nominatim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdata import documents, files
from sgdata.errors import ServiceError, SettingError, SourceError

if TYPE_CHECKING:
    from sgdata.scenes.aoi import Area


def locate_place(area: Area, outline: Path, *, offline: bool = False) -> Area:
    """Replace the place name of an area by its outline, which is geocoded once and stored.

    Args:
        area: Area of a build.
        outline: File for the outline.
        offline: Use the stored outline only.

    Raises:
        SettingError: There is no such place, or it has no polygon.
        ServiceError: The geocoder does not answer.
        SourceError: `offline`, and no outline is stored.
    """
    if area.place is None:
        return area
    # Geocoding is not reproducible, so the first outline is used from then on.
    kept = documents.parse_bounded_json(outline.read_bytes(), str(outline)) if outline.is_file() else {}
    if not isinstance(kept, dict) or kept.get("name") != area.place:
        if offline:
            raise SourceError(f"{outline}: no stored outline of {area.place!r}; run without --offline, or give --aoi")
        files.write(outline, files.pretty_json({"name": area.place, "type": "Feature", **_geocoded(area.place)}))
    return replace(area, place=None, aoi=str(outline))


def _geocoded(place: str) -> dict[str, Any]:
    """Return geometry and attribution of a place from Nominatim."""
    import osmnx
    import requests
    import shapely

    osmnx.settings.use_cache = False  # its cache is the folder ./cache and never expires
    try:
        geometry = osmnx.geocode_to_gdf(place).geometry.iloc[0]
    except requests.RequestException as error:
        raise ServiceError(f"place {place!r}: no geocoder answers: {error!s:.120}; give --bbox or --aoi") from None
    except (ValueError, TypeError, KeyError) as error:
        raise SettingError(f"place {place!r}: {error!s:.160}; expected a name with an outline; give --aoi") from None
    licence = "© OpenStreetMap contributors, ODbL 1.0"
    return {"properties": {"licence": licence}, "geometry": json.loads(shapely.to_geojson(geometry))}
