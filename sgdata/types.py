"""The nouns that flow between the parts: frozen, small, plain.

Conventions, stated once: arrays are (C, H, W); bounds are (west, south, east, north); bands are named
`B01`..`B12`, `B8A`; splits are `train`, `val`, `test`, `all`. Only numpy and the standard library here.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

Array = NDArray[Any]
Level = Literal["L1C", "L2A"]
Codec = Literal["blosc", "npy"]
Effort = Literal["quick", "dense"]
Task = Literal["none", "single-label", "multi-label", "segmentation", "change"]
Bounds = tuple[float, float, float, float]
# All frozen: they go to other processes, serve as cache keys, and nothing downstream can change what a plan decided.
# All by keyword: a west and a south are both numbers, and no type checker sees them swapped.


@dataclass(frozen=True, kw_only=True)
class Band:
    """One spectral band: its name, native ground sample distance and centre wavelength."""

    name: str
    gsd_m: int
    wavelength_nm: float


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A north-up raster lattice: square pixels of `gsd_m` metres, `origin` = west and north edge."""

    crs: str
    # The corner of the pixel, as GDAL counts, not its middle (as NetCDF does): half a pixel is the classic shift.
    origin: tuple[float, float]
    gsd_m: float
    # (rows, columns), the order of numpy; x before y only where coordinates are meant.
    shape: tuple[int, int]

    @property
    def bounds(self) -> Bounds:
        """(west, south, east, north) in the units of `crs`."""
        west, north = self.origin
        height, width = self.shape
        return (west, north - height * self.gsd_m, west + width * self.gsd_m, north)

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """Affine coefficients a, b, c, d, e, f: x = a col + b row + c; y = d col + e row + f."""
        return (self.gsd_m, 0.0, self.origin[0], 0.0, -self.gsd_m, self.origin[1])


@dataclass(frozen=True, kw_only=True)
class Window:
    """Rows [row, row + height) and columns [col, col + width) of a Grid."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """(rows, columns), to index the last two axes of an array."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)


@dataclass(frozen=True, kw_only=True)
class BandStatistics:
    """Statistics of one band over the valid pixels of the train split, in stored units (DN)."""

    count: int
    mean: float
    std: float
    min: float
    max: float
    p1: float
    p2: float
    p50: float
    p98: float
    p99: float


CHANGE_COLOURS = ("#303030", "#f5d442")
"""Unchanged and changed."""


def default_colours(count: int) -> tuple[str, ...]:
    """Return `count` different colours (#rrggbb); the first ones do not depend on `count`."""
    colours = []
    for number in range(count):
        # By the golden ratio, neighbours get hues far apart; three levels of brightness separate hues that come close.
        red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.6, (0.9, 0.7, 0.5)[number % 3])
        colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return tuple(colours)


@dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """What label values mean: parallel ids, names and #rrggbb colours; `ignore` is never a class."""

    name: str
    task: Task
    # Written out: file values of published datasets have gaps (SegMunich's are 0, 5, 11, ... 41), train indices none.
    ids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    ignore: int | None = None

    @property
    def ignore_index(self) -> int:
        """Label value to ignore: `ignore` if set, else 255."""
        return 255 if self.ignore is None else self.ignore

    @property
    def palette(self) -> dict[int, str]:
        """Colour (#rrggbb) of each id: `colours` if set, else default colours by the position of the class."""
        colours = self.colours
        if not colours:
            colours = CHANGE_COLOURS if self.task == "change" and len(self.ids) == 2 else default_colours(len(self.ids))
        return dict(zip(self.ids, colours, strict=True))


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a consumer must know of the pixels and labels before it may touch them (`contract.json`).

    A reflectance is `(DN + offset) * scale`. `shape` is (C, H, W), or None where samples differ in size.
    `fingerprint` is the SHA-256 over the sorted sample hashes. A difference between two contracts is
    found by `sgdata.shards.contracts.differences`.
    """

    # Raised when old readers would misread new files; they refuse a number that they do not know.
    format: int
    dataset: str
    version: str
    bands: tuple[Band, ...]
    level: Level
    scale: float
    # Added before scaling, as ESA's BOA_ADD_OFFSET is; STAC's raster:offset is added after it and 1e-4 as large.
    offset: float
    nodata: int | None
    resampling: str
    # The kernel's name is not enough: a mended kernel gives other pixels under the same name.
    resampling_version: int
    shape: tuple[int, int, int] | None
    label_space: LabelSpace
    # Of the train split only: means of held-out pixels would tell a model about them.
    statistics: dict[str, BandStatistics]
    splits: dict[str, int]
    # Of samples, not of shards: the same samples in shards of another size are the same data.
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training example: a key, its split, named arrays (`image`, `mask`, ...) and JSON-able meta."""

    key: str
    split: str
    arrays: dict[str, Array]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of samples as it lies in an output folder."""

    name: str
    sha256: str
    samples: int
    bytes: int


# --- dataset cards (catalogs/<dataset>.toml) -----------------------------------------------


# --- scenes --------------------------------------------------------------------------------
