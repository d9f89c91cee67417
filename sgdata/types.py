"""Types that several stages share: frozen dataclasses.

Conventions: arrays are (C, H, W); bounds are (west, south, east, north); bands are named
`B01`..`B12`, `B8A`; splits are `train`, `val`, `test`, `all`. Only numpy and the standard library here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any, Literal, get_args

from numpy.typing import NDArray

Array = NDArray[Any]
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
Level = Literal["L1C", "L2A"]
DISPLAY = "RGB8"
"""Level of 8-bit images that were stretched for display: their values are no reflectance at any scale."""
PixelLevel = Literal["L1C", "L2A", "RGB8"]
Codec = Literal["blosc", "npy"]
Effort = Literal["quick", "dense"]
HashMode = Literal["full", "fast"]
Task = Literal["none", "single-label", "multi-label", "segmentation", "change"]
Bounds = tuple[float, float, float, float]
# All are frozen: they go to other processes, serve as cache keys, and later stages cannot change them.
# All take keywords only: west and south are both numbers, and no type checker notices that they are swapped.


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """Form of the answers of a task.

    Attributes:
        answer: What gets one answer: a scene or a pixel; none without labels.
        images: Number of images per answer.
        one_class: Whether an answer is one class, so that answers make a map of classes.
        hub_category: Task category of the Hugging Face hub; None without one.
    """

    answer: Literal["none", "scene", "pixel"]
    images: int = 1
    one_class: bool = True
    hub_category: str | None = None


TASKS: dict[Task, TaskFacts] = {
    "none": TaskFacts(answer="none", one_class=False),
    "single-label": TaskFacts(answer="scene", hub_category="image-classification"),
    "multi-label": TaskFacts(answer="scene", one_class=False, hub_category="image-classification"),
    "segmentation": TaskFacts(answer="pixel", hub_category="image-segmentation"),
    "change": TaskFacts(answer="pixel", images=2, hub_category="image-segmentation"),
}

if set(TASKS) != set(get_args(Task)):
    raise TypeError(f"TASKS has {sorted(TASKS)}, Task names {sorted(get_args(Task))}; expected the same tasks")


@dataclass(frozen=True, kw_only=True)
class Band:
    """Spectral band of a sensor.

    Attributes:
        name: Name, such as B02.
        gsd_m: Native ground sample distance in metres.
        wavelength_nm: Centre wavelength in nanometres.
    """

    name: str
    gsd_m: int
    wavelength_nm: float


@dataclass(frozen=True, kw_only=True)
class SceneClassification:
    """Layer that gives each pixel of a scene a class.

    Attributes:
        layer: Name of the layer among the assets of a scene.
        gsd_m: Pixel size in metres.
        count: Number of classes; their values are 0 to count - 1.
        no_data: Value of pixels without data.
        clouds: Values of clouds.
        shadow: Value of cloud shadows.
        doubtful: Values that may or may not be usable.
        offset_test: Values of ground that is dark in the bands of the offset test.
    """

    layer: str
    gsd_m: int
    count: int
    no_data: int
    clouds: tuple[int, ...]
    shadow: int
    doubtful: tuple[int, ...]
    offset_test: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class OffsetRule:
    """Rule for the DN that include an offset, and for the pixels that show it.

    Attributes:
        value: Added to DN that include the offset.
        first_baseline: First processing baseline, as two numbers, whose DN include it.
        test_bands: Bands in which the classes `offset_test` reflect less than `dark_dn` * scale.
        dark_dn: DN that valid pixels of these classes stay below unless they include the offset.
    """

    value: int
    first_baseline: tuple[int, int]
    test_bands: tuple[str, ...]
    dark_dn: int


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """An optical sensor and its products.

    Attributes:
        name: As in the `sensor` of dataset cards.
        bands: All bands, by wavelength.
        absent: Names of the bands that a product level lacks.
        scale: Reflectance per DN.
        nodata: DN of pixels without data, which no offset is added to.
        offset: The rule of offsets in DN.
        classes: The scene classification of L2A products.
        in_service: First day with products, by platform.
        repeat_days: Days after which a platform flies the same orbit again.
    """

    name: str
    bands: tuple[Band, ...]
    absent: Mapping[Level, tuple[str, ...]]
    scale: float
    nodata: int
    offset: OffsetRule
    classes: SceneClassification
    in_service: Mapping[str, date]
    repeat_days: int

    @cached_property
    def by_name(self) -> dict[str, Band]:
        """All bands by name."""
        return {band.name: band for band in self.bands}

    @property
    def finest_gsd_m(self) -> int:
        """Pixel size of the finest bands in metres."""
        return min(band.gsd_m for band in self.bands)

    @property
    def nesting_px(self) -> int:
        """Number of finest pixels whose extent is a whole number of pixels of every band."""
        return math.lcm(*(band.gsd_m for band in self.bands)) // self.finest_gsd_m

    def names(self, level: Level) -> tuple[str, ...]:
        """Return the names of the bands of a product level, by wavelength."""
        return tuple(band.name for band in self.bands if band.name not in self.absent[level])

    def gsd_m(self, name: str) -> int:
        """Return the pixel size in metres of a band, or of the classification for the name of any other layer."""
        return self.by_name[name].gsd_m if name in self.by_name else self.classes.gsd_m


@dataclass(frozen=True, kw_only=True)
class Grid:
    """North-up raster grid of square pixels.

    Attributes:
        crs: Coordinate reference system, such as EPSG:32632.
        origin: Coordinates x and y of the north-west corner, in units of `crs`.
        gsd_m: Side of a pixel in metres.
        shape: Number of rows and columns.
    """

    crs: str
    # The corner of the first pixel, as in GDAL, not its centre as in NetCDF.
    origin: tuple[float, float]
    gsd_m: float
    # (rows, columns), the order of numpy; x precedes y only in coordinates.
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
    """Rows [row, row + height) and columns [col, col + width) of a Grid.

    Attributes:
        row: First row.
        col: First column.
        height: Number of rows.
        width: Number of columns.
    """

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
    """Statistics of one band over valid pixels, in stored units (DN); of which splits, see `Contract.statistics`.

    Attributes:
        count: Number of valid pixels.
        mean: Mean.
        std: Standard deviation of the population.
        min: Smallest value.
        max: Largest value.
        p1: 1st percentile.
        p2: 2nd percentile.
        p50: Median.
        p98: 98th percentile.
        p99: 99th percentile.
    """

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
    """Meaning of label values.

    Attributes:
        name: Name of the label space.
        task: Task that the labels are for.
        ids: Label values of the classes.
        names: Names of the classes, parallel to `ids`.
        colours: #rrggbb colours, parallel to `ids`; empty for the default palette.
        ignore: Label value that is not a class; None if every value is one.
    """

    name: str
    task: Task
    # Listed, since file values of published datasets have gaps (SegMunich's are 0, 5, 11, ... 41), train indices none.
    ids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    ignore: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if a colour is not #rrggbb: colours are written into the style of pages."""
        for colour in self.colours:
            if not _COLOUR.fullmatch(colour):
                raise ValueError(f"colour {colour!r:.90} of '{self.name:.60}': expected #rrggbb")
        if len(self.names) != len(self.ids) or len(self.colours) not in (0, len(self.ids)):
            counts = f"{len(self.ids)} ids, {len(self.names)} names, {len(self.colours)} colours"
            raise ValueError(
                f"label space '{self.name:.60}' has {counts}: expected a name per id, and a colour or none"
            )

    @property
    def ignore_index(self) -> int:
        """Label value to ignore: `ignore` if set, else 255, or the next value that is no class."""
        if self.ignore is not None:
            return self.ignore
        return next(value for value in range(255, 2**31) if value not in self.ids)

    @property
    def palette(self) -> dict[int, str]:
        """Colour (#rrggbb) of each id: `colours` if set, else default colours by the position of the class."""
        from sgdata import class_colours

        colours = self.colours or class_colours.default_colours(len(self.ids), change=TASKS[self.task].images == 2)
        return dict(zip(self.ids, colours, strict=True))


CONTRACT_FORMAT = 1
"""Version of `contract.json` that this package reads and writes."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """Description of pixels and labels that every reader needs (`contract.json`).

    A reflectance is `(DN + offset) * scale`. `sgdata.shards.contracts.find_differences` lists how two contracts differ.

    Attributes:
        format: Version of the document.
        dataset: Name of the dataset.
        version: Edition of the dataset.
        bands: Bands of the images, in order.
        level: Product level, or `DISPLAY`.
        scale: Factor to reflectance; 1 at the level `DISPLAY`, which has none.
        offset: Offset in DN, added before scaling.
        nodata: Value of pixels without data; None if there is none.
        resampling: How all bands came to one grid.
        resampling_version: Version of that method.
        shape: (C, H, W) of the images; None where samples differ in size.
        label_space: Meaning of the labels.
        statistics: Statistics by band, of the train split; of shards without one, of all splits.
        splits: Number of samples by split.
        fingerprint: SHA-256 over the sorted sample hashes; without these (`hash`), over those of the tars.
        fill: What models see in place of no data, in stored units.
        gsd_m: Side of a pixel on the ground in metres; None for that of the finest band.
        hash: Whether the index has the SHA-256 of every sample (full), or only checksums of its members (fast).
    """

    # Raised when old readers would misread new files; readers refuse an unknown number.
    format: int
    dataset: str
    version: str
    bands: tuple[Band, ...]
    level: PixelLevel
    scale: float
    # Added before scaling, as ESA's BOA_ADD_OFFSET is; STAC adds its raster:offset, 1e-4 as large, after scaling.
    offset: float
    nodata: int | None
    resampling: str
    # A corrected kernel gives other pixels under the same name, so the name alone does not identify them.
    resampling_version: int
    shape: tuple[int, int, int] | None
    label_space: LabelSpace
    # Not of held-out splits beside train: their statistics would leak into training.
    statistics: dict[str, BandStatistics]
    splits: dict[str, int]
    # Of samples, not of shards: the same samples in shards of another size are the same data.
    fingerprint: str

    # Input of models in place of no data, in stored units, whatever number or mask marks it in files: that of ESA's
    # products by default. Models for these data get the same in training, scoring and prediction.
    fill: float = 0.0
    # A Web Mercator grid has "10 m" pixels of 6.4 m at 50 degrees of latitude.
    gsd_m: float | None = None
    hash: HashMode = field(default="full", metadata={"omit_default": True})

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that no data have."""
        names = [band.name for band in self.bands]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"bands are {', '.join(names)!r:.90}: expected one or more, each once")
        if self.gsd_m is not None and not self.gsd_m > 0:
            raise ValueError(f"gsd_m is {self.gsd_m}: expected more than 0")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}: expected more than 0")
        if self.shape and min(self.shape) < 1:
            raise ValueError(f"shape is {self.shape}: expected sizes of at least 1")
        if min(self.splits.values(), default=0) < 0:
            raise ValueError(f"splits are {self.splits!r:.90}: expected counts of at least 0")
        for name, band in self.statistics.items():
            if band.count < 0 or band.std < 0 or band.min > band.max:
                raise ValueError(
                    f"statistics of {name:.20} are {band!r:.120}: expected std of at least 0, min below max"
                )

    @property
    def pixel_m(self) -> float:
        """Side of a pixel on the ground in metres: `gsd_m` if set, else that of the finest band."""
        return self.gsd_m or min(band.gsd_m for band in self.bands)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training example.

    Attributes:
        key: Name, unique in its dataset.
        split: Name of the split.
        arrays: Arrays by name: `image` (C, H, W) or `image_before` and `image_after`, and `mask` (H, W).
        meta: Further facts that JSON can hold, such as labels, bounds and date.
    """

    key: str
    split: str
    arrays: dict[str, Array]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of samples in an output folder.

    Attributes:
        name: File name.
        sha256: SHA-256 of the file.
        samples: Number of samples.
        bytes: Size of the file.
    """

    name: str
    sha256: str
    samples: int
    bytes: int
