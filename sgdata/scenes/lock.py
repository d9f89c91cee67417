"""The lock of a build: its inputs and results as one canonical JSON document.

State `planned`: scenes, expected offsets and dates, before any pixel is read. State `built`: also the tested offsets,
the hash of every window that was read, and the hashes of OpenStreetMap answers and outputs. Nothing in it depends on
the machine, the clock or the address of the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sgdata import files, output_names
from sgdata.errors import OutputError, SettingError
from sgdata.scenes.types import Dropped, Scene
from sgdata.types import Grid

WHOLE_WINDOWS, FORMAT = 1, 2
"""Versions of the document: in the first, builds read whole windows; in the second, `cells` of some."""
NAME = output_names.LOCK
# All that may change a pixel, a geometry or a compressed byte.
LIBRARIES = ("numpy", "numba", "rasterio", "pyproj", "shapely", "osmium", "osmnx", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One scene of the lock; its position in `Lock.items` is the index in the provenance raster.

    Attributes:
        scene: The scene.
        expected_offset: Offset by metadata; None if only pixels can decide.
        offset: Decided offset; None in a plan.
        dark_share: Share of dark values in the pixel test.
        eligible: Number of pixels in the pixel test.
        windows: Pixel hash by asset.
        cells: Cells of the windows that were not read as a whole, by asset, as in `sgdata.rasters.cells`.
    """

    scene: Scene
    expected_offset: int | None
    offset: int | None = None
    dark_share: float | None = None
    eligible: int | None = None
    windows: dict[str, str] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The document `segmunich.lock.json`.

    Attributes:
        format: Version of the document.
        state: Planned, or built.
        recipe_sha256: SHA-256 of the recipe with its area resolved.
        collection: Collection of the catalogue.
        dates: First and last day of the search.
        osm_date: Day of the OpenStreetMap data.
        grid: Grid of the build.
        items: Scenes of the build.
        dropped: Scenes left out, with the reason.
        tag_table_sha256: SHA-256 of the class table.
        answers: SHA-256 of OpenStreetMap data by name.
        outputs: SHA-256 of outputs by name.
        versions: Versions of the libraries that decide pixels.
        simulated: Whether the area is simulated; then no notice may name a satellite or OpenStreetMap contributors.
        baselines: Processing baselines that the search was limited to, in order of preference; empty for all.
        outline: Outline inside the grid, as WKT in its CRS, outside which nothing is built; None for all of it.
    """

    format: int
    state: Literal["planned", "built"]
    recipe_sha256: str
    collection: str
    dates: str
    osm_date: str
    grid: Grid
    items: tuple[Item, ...]
    dropped: tuple[Dropped, ...]
    tag_table_sha256: str
    answers: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    simulated: bool = False
    baselines: tuple[str, ...] = ()
    outline: str | None = None


def read(path: Path) -> Lock:
    """Read the lock of a build.

    Args:
        path: Path of a lock, or of a build folder with one.

    Returns:
        The lock, planned or built.

    Raises:
        SourceError: The lock is missing.
        SettingError: The lock is malformed or of another format.
    """
    file = path / NAME if path.is_dir() else path
    lock = files.read(Lock, files.require_file(file, "the lock that 'sgdata plan' or 'sgdata build' wrote"))
    if lock.format not in (WHOLE_WINDOWS, FORMAT):
        expected = f"expected {WHOLE_WINDOWS} or {FORMAT}"
        raise SettingError(f"{path}: lock format {lock.format}, {expected}; plan again with this version")
    return lock


def write(path: Path, lock: Lock) -> None:
    """Write a lock as canonical JSON.

    Args:
        path: Path of the file.
        lock: The lock.
    """
    files.write(path, files.canonical_json(lock))


def sha256(value: object) -> str:
    """Return the hash of any document over its canonical JSON."""
    return files.sha256(files.canonical_json(value))


def check_equal(locked: Lock, actual: Lock) -> None:
    """Raise OutputError with both values of the first entry in which a run deviates from its lock."""
    # Compared as plain JSON, as in the file of the lock.
    difference = _difference(files.to_plain(locked), files.to_plain(actual), "")
    if difference:
        advice = "build without --locked, or with the recipe and the versions of that build"
        if difference.startswith("osm_date is "):  # which is that of the recipe where no dates are given
            day = "" if locked.dates.endswith(f"/{locked.osm_date}") else f" --osm-date {locked.osm_date}"
            advice = f"give --dates {locked.dates}{day}, or build without --locked"
        raise OutputError(f"--locked: {difference}; {advice}")


def _difference(locked: Any, actual: Any, key_path: str) -> str:
    """Return 'a.b is X, the lock has Y' for the first leaf that differs, '' if none does."""
    if isinstance(locked, dict) and isinstance(actual, dict):
        pairs = [(key, locked.get(key), actual.get(key)) for key in sorted(locked.keys() | actual.keys())]
    elif isinstance(locked, list) and isinstance(actual, list) and len(locked) == len(actual):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(locked, actual, strict=True))]
    else:
        return "" if locked == actual else f"{key_path} is {actual!s:.60}, the lock has {locked!s:.60}"
    # Only the first: the others mostly follow from it.
    for key, one, other in pairs:
        if text := _difference(one, other, f"{key_path}.{key}".lstrip(".")):
            return text
    return ""


def versions() -> dict[str, str]:
    """Return the versions of all libraries that may change a byte."""
    from importlib.metadata import version

    import pyproj
    import rasterio
    import shapely

    # GDAL, PROJ and GEOS come inside wheels, whose versions do not show theirs.
    ours = {name: version(name) for name in LIBRARIES}
    return ours | {
        "gdal": rasterio.__gdal_version__,
        "proj": pyproj.proj_version_str,
        "geos": ".".join(str(part) for part in shapely.geos_version),
    }
