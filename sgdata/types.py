"""The nouns that flow between the parts: frozen, small, plain.

Conventions, stated once: arrays are (C, H, W); bounds are (west, south, east, north); bands are named
`B01`..`B12`, `B8A`; splits are `train`, `val`, `test`, `all`. Only numpy and the standard library here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

Array = NDArray[Any]
Level = Literal["L1C", "L2A"]
Bounds = tuple[float, float, float, float]


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
    origin: tuple[float, float]
    gsd_m: float
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


@dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """What label values mean: parallel ids, names and #rrggbb colours; `ignore` is never a class."""

    name: str
    task: Literal["none", "single-label", "multi-label", "segmentation", "change"]
    ids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    ignore: int | None = None


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a consumer must know of the pixels and labels before it may touch them (`contract.json`).

    A reflectance is `(DN + offset) * scale`. `shape` is (C, H, W), or None where samples differ in size.
    `fingerprint` is the SHA-256 over the sorted sample hashes. A difference between two contracts is
    found by `sgdata.contracts.differences`.
    """

    format: int
    dataset: str
    version: str
    bands: tuple[Band, ...]
    level: Level
    scale: float
    offset: float
    nodata: int | None
    resampling: str
    resampling_version: int
    shape: tuple[int, int, int] | None
    label_space: LabelSpace
    statistics: dict[str, BandStatistics]
    splits: dict[str, int]
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
