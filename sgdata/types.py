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
    def nothing(self) -> int:
        """The value that is no class: `ignore`, or 255 where the data name none."""
        return 255 if self.ignore is None else self.ignore


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


# Slots, here and in Ref: BigEarthNet has seven million files, and a dict in each would cost some 100 bytes.
@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file of a source: its relative POSIX name and size; `offset` where it lies inside an uncompressed tar."""

    name: str
    size: int
    offset: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ref:
    """A sample found in a source and not read yet. `bytes` is what it will roughly take in a shard."""

    key: str
    split: str
    members: tuple[Member, ...]
    bytes: int
    meta: dict[str, Any] = field(default_factory=dict)


# --- dataset cards (catalogs/<dataset>.toml) -----------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file as its makers distribute it; size and digest where they are known, other addresses of the same bytes."""

    file: str
    url: str = ""
    # None, not 0: "not known" must never compare equal to an empty file.
    bytes: int | None = None
    algorithm: Literal["md5", "sha256"] | None = None
    digest: str = ""
    part: str = "images"
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SplitSet:
    """One published way to split a dataset: samples per split, where its lists come from, what is wrong with it.

    `files` are the lists by split, as `sgdata fetch` leaves them; empty where the dataset's own files tell the split.
    """

    name: str
    counts: dict[str, int]
    source: str
    note: str = ""
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """A label space as columns of a fact table, or as names written out in `classes` (their position is the id)."""

    name: str
    task: Task
    table: str = ""
    id: str = ""
    label: str = ""
    colour: str = ""
    classes: tuple[str, ...] = ()
    ignore: int | None = None


@dataclass(frozen=True, kw_only=True)
class Edition:
    """One published version of a dataset: what its files hold, band by band in file order.

    `resampling` is how its makers brought all bands to one grid; empty where each band has its native size.
    """

    name: str
    # The deposit, not a year: two editions of one year are other bytes.
    published: str
    level: Level
    bands: tuple[str, ...]
    nodata: int | None = None
    scale: float = 1e-4
    offset: float = 0.0
    resampling: str = ""
    samples: int | None = None
    shape: tuple[int, int, int] | None = None
    splits: tuple[SplitSet, ...] = ()
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Licence:
    """On what terms; `redistribution` tells whether we may ship the pixels."""

    labels: str
    pixels: str
    redistribution: Literal["yes", "no", "unclear"]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """What is known of a dataset, as data: `catalogs/<name>.toml`."""

    name: str
    title: str
    task: str
    sensor: str
    summary: str
    citation: tuple[str, ...]
    home: str
    licence: Licence
    editions: tuple[Edition, ...]
    label_spaces: tuple[LabelTable, ...]
    defects: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a reader finds in a source: samples in order, what they are, rejected files with reasons, remarks.

    `contract` is given where the source brings its own (a build of ours).
    """

    refs: tuple[Ref, ...]
    edition: Edition
    labels: LabelSpace
    contract: Contract | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


# --- scenes --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file of a scene, and what its item says of it (None where it says nothing).

    `href` is relative to the catalogue where that is a folder, so that a lock does not depend on the machine.
    """

    href: str
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    shape: tuple[int, int] | None = None
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One granule of one acquisition; `time` is UTC to the second, `assets` go by band name, `SCL`, `cloud`."""

    id: str
    collection: str
    provider: str
    time: str
    platform: str
    tile: str
    orbit: int
    datatake: str
    baseline: str
    generated: str
    crs: str | None
    bbox: Bounds
    cloud_cover: float | None
    assets: dict[str, Asset]
    product: str | None = None
    """Href of the product metadata (XML), where the item has them."""
    declared_offset: int | None = None
    """What the item says must be added to its DN: often wrong, so it is compared and never simply followed."""

    @property
    def acquisition(self) -> tuple[str, str, str, int, str]:
        """Equal for twins: the same ground in the same pass, processed twice."""
        return (self.platform, self.time, self.tile, self.orbit, self.datatake)

    @property
    def overpass(self) -> str:
        """Equal for all granules of one pass of one satellite."""
        return f"{self.platform} {self.time[:10]} R{self.orbit:03d}"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A scene that was found and left out, and why."""

    id: str
    reason: str
