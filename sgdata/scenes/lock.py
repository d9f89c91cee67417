"""The lock of a build: what was chosen from the web and what came of it, as one canonical JSON document.

`planned`: scenes, expected offsets, dates; no pixel was read. `built`: also the offsets as tested, the hash of
every window of pixels that was read, OpenStreetMap answers and output hashes. Nothing in it depends on the
machine, the clock or the place of the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sgdata import files
from sgdata.errors import OutputError, SettingError
from sgdata.scenes.types import Dropped, Scene
from sgdata.types import Grid

FORMAT = 1
NAME = "segmunich.lock.json"
# Whatever may change a pixel, a geometry or a compressed byte.
LIBRARIES = ("numpy", "numba", "rasterio", "pyproj", "shapely", "osmium", "osmnx", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One scene of the lock; its place in `Lock.items` is the index in the provenance raster.

    `expected_offset` is what metadata promise (None: only pixels can tell), `offset` what was decided;
    `dark_share` and `eligible` are the pixel test. `windows` has the pixel hash per asset.
    """

    scene: Scene
    expected_offset: int | None
    offset: int | None = None
    dark_share: float | None = None
    eligible: int | None = None
    windows: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The whole document. `answers` and `outputs` are name -> SHA-256."""

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
    # Of a place that never was: then no notice may name a satellite or a mapper.
    simulated: bool = False


def read(path: Path) -> Lock:
    """A lock, or that in a build folder. Raises SettingError where it is none of this format."""
    lock = files.read(Lock, path / NAME if path.is_dir() else path)
    if lock.format != FORMAT:
        raise SettingError(f"{path}: lock format {lock.format}, expected {FORMAT}; plan again with this version")
    return lock


def write(path: Path, lock: Lock) -> None:
    """Write-then-rename, canonical bytes."""
    files.write(path, files.canonical_json(lock))


def sha256(value: object) -> str:
    """The hash of any document of ours, over its canonical JSON."""
    return files.sha256(files.canonical_json(value))


def hold(promised: Lock, found: Lock) -> None:
    """Refuse the first thing in which a run deviates from its lock. Raises OutputError naming both values."""
    # Both as plain JSON: what a lock says is what its file says.
    difference = _difference(files.plain(promised), files.plain(found), "")
    if difference:
        raise OutputError(
            f"--locked: {difference}; build without --locked, or with the recipe and the versions of that build"
        )


def _difference(promised: Any, found: Any, where: str) -> str:
    """'a.b is X, the lock has Y' for the first leaf that differs, '' where none does."""
    if isinstance(promised, dict) and isinstance(found, dict):
        pairs = [(key, promised.get(key), found.get(key)) for key in sorted(promised.keys() | found.keys())]
    elif isinstance(promised, list) and isinstance(found, list) and len(promised) == len(found):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(promised, found, strict=True))]
    else:
        return "" if promised == found else f"{where} is {found!s:.60}, the lock has {promised!s:.60}"
    # The first will do: the next ones mostly follow from it.
    return next((text for key, a, b in pairs if (text := _difference(a, b, f"{where}.{key}".lstrip(".")))), "")


def versions() -> dict[str, str]:
    """Versions of everything that may change a byte."""
    from importlib.metadata import version

    import pyproj
    import rasterio
    import shapely

    # GDAL, PROJ and GEOS come inside wheels and change without their names.
    ours = {name: version(name) for name in LIBRARIES}
    return ours | {
        "gdal": rasterio.__gdal_version__,
        "proj": pyproj.proj_version_str,
        "geos": ".".join(str(part) for part in shapely.geos_version),
    }
