"""Read the places of a build of several: the features of a vector file, or the rows of a table.

A table (CSV or TSV) has a column `name` and one of these: `bbox` (west, south, east and north in degrees, separated by
spaces or commas), `aoi` (with `feature`), `place`. Further columns are `dates`, `osm_date`, `crs`, `stac`, `osm`,
`gap_fill`, `raster` and `sea`; an empty cell leaves the value of the command. Paths are relative to the
folder of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sgdata import package_data, safe_names
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import vectors

SUMMARY = "places.json"
"""The summary of a build of several places, beside their folders."""
AREAS = ("bbox", "aoi", "place")
COLUMNS = ("name", *AREAS, "feature", "dates", "osm_date", "crs", "stac", "osm", "gap_fill", "raster", "sea")
_PATHS = ("aoi", "stac", "osm", "gap_fill", "raster", "sea")
_WORDS = frozenset({"none", "overpass"})
MOST = 10_000
"""Places of one command."""


@dataclass(frozen=True, kw_only=True)
class PlaceEntry:
    """One place of a list.

    Attributes:
        name: Name, different from that of every other place.
        settings: Settings by short name, as `build_recipe.recipe_for` takes them.
        paths: Inputs of this place by the name of a field of `BuildPaths`, in place of those of the command.
        crs: CRS of the grid; "" for the UTM zone of the centre.
    """

    name: str
    settings: Mapping[str, object]
    paths: Mapping[str, str] = field(default_factory=dict)
    crs: str = ""

    @property
    def folder(self) -> str:
        """Name of the folder of the place."""
        return safe_names.file_name(self.name, reserved=(SUMMARY,))


def read(path: Path) -> list[PlaceEntry]:
    """Read the places of a table (.csv, .tsv), or of any other file its features.

    Raises:
        SettingError: The file cannot be read, has no place, or two places with one name.
    """
    table = path.suffix.lower() in (".csv", ".tsv")
    return check_entries(_read_table(path) if table else _read_features(path), str(path))


def name_entries(places: Sequence[str]) -> list[PlaceEntry]:
    """Return places that a geocoder finds, by the names that it is asked for. Raises SettingError."""
    return check_entries([PlaceEntry(name=text, settings={"place": text}) for text in places], "--place")


def check_entries(entries: Sequence[PlaceEntry], origin: str) -> list[PlaceEntry]:
    """Return the places if they are some, and differ in folder and keys. Raises SettingError."""
    if not entries:
        raise SettingError(f"{origin}: has no place; expected a feature or row for each")
    if len(entries) > MOST:
        raise SettingError(f"{origin}: has {len(entries):,} places, expected at most {MOST:,}; take a part of them")
    name_of: dict[str, str] = {}
    for entry in entries:
        if not entry.name.strip():
            raise SettingError(f"{origin}: a place has no name; expected one for each, in a column 'name'")
        # Some file systems do not distinguish the case of letters.
        for identifier in (entry.folder.casefold(), safe_names.key_part(entry.name).casefold()):
            earlier = name_of.setdefault(identifier, entry.name)
            if earlier is not entry.name:
                raise SettingError(
                    f"{origin}: two places are named {earlier!r:.60} and {entry.name!r:.60}, which would share a "
                    "folder or keys of patches; rename one"
                )
    return list(entries)


def _read_features(path: Path) -> list[PlaceEntry]:
    try:
        features = vectors.read_features(path)
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror or error}; give GeoJSON or GeoPackage") from None
    except SourceError as error:
        raise SettingError(f"{error}; give a file of polygons with a column 'name', or a .csv table") from None
    # Rows of tables without a geometry are no places.
    with_geometry = [feature for feature in features if feature.geometry is not None and not feature.geometry.is_empty]
    return [
        PlaceEntry(name=feature.name, settings={"aoi": str(path), "feature": feature.name}) for feature in with_geometry
    ]


def _read_table(path: Path) -> list[PlaceEntry]:
    rows = package_data.read_table(path, delimiter="," if path.suffix.lower() == ".csv" else "\t")
    unknown = [name for name in (rows[0] if rows else {}) if name not in COLUMNS]
    if unknown:
        raise SettingError(f"{path}: column {unknown[0]!r:.60} is unknown; expected some of {', '.join(COLUMNS)}")
    return [_parse_row(path, number, row) for number, row in enumerate(rows, 2)]


def _parse_row(path: Path, number: int, row: Mapping[str, str]) -> PlaceEntry:
    cells = {name: text.strip() for name, text in row.items() if text.strip()}
    origin = f"{path}: row {number}"
    if len([name for name in AREAS if name in cells]) != 1:
        raise SettingError(f"{origin}: expected exactly one of {', '.join(AREAS)}; fill one of these cells")
    settings: dict[str, object] = {key: cells[key] for key in ("feature", "place", "dates", "osm_date") if key in cells}
    if "bbox" in cells:
        settings["bbox"] = _bbox(cells["bbox"], origin)
    input_paths = {key: _resolve(path.parent, cells[key]) for key in _PATHS if key in cells}
    if "aoi" in input_paths:
        settings["aoi"] = input_paths.pop("aoi")
    if "raster" in input_paths:
        settings["labels"] = "raster"
    return PlaceEntry(name=cells.get("name", ""), settings=settings, paths=input_paths, crs=cells.get("crs", ""))


def _bbox(text: str, origin: str) -> tuple[float, ...]:
    try:
        west, south, east, north = (float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise SettingError(f"{origin}: bbox {text!r:.80}: expected WEST SOUTH EAST NORTH in degrees") from None
    return west, south, east, north


def _resolve(folder: Path, text: str) -> str:
    return text if "://" in text or text in _WORDS else str(folder / text)
