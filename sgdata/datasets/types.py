"""Types of published datasets: cards, editions, and the samples that a reader finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sgdata.types import Codec, Contract, Effort, HashMode, LabelSpace, PixelLevel, Task


# Slots, here and in SampleRef: BigEarthNet has seven million files, and a dict takes about 100 bytes each.
@dataclass(frozen=True, kw_only=True, slots=True)
class SourceMember:
    """File of a source.

    Attributes:
        name: Relative POSIX name.
        size: Size in bytes.
        offset: Position of its bytes in an uncompressed tar; None elsewhere.
    """

    name: str
    size: int
    offset: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRef:
    """Sample found in a source and not read yet.

    Attributes:
        key: Name, unique in the dataset.
        split: Name of the split.
        members: Files that hold it.
        bytes: Estimated size in a shard.
        meta: Facts for the sample's `meta`.
    """

    key: str
    split: str
    members: tuple[SourceMember, ...]
    bytes: int
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """File as its authors distribute it.

    Attributes:
        file: File name.
        url: Address; empty if it cannot be downloaded.
        bytes: Size; None if unknown, which is not the size of an empty file.
        algorithm: Hash function of `digest`.
        digest: Published hash.
        part: Part of the dataset that the file belongs to.
        mirrors: Further addresses of the same bytes.
    """

    file: str
    url: str = ""
    bytes: int | None = None
    algorithm: Literal["md5", "sha256"] | None = None
    digest: str = ""
    part: str = "images"
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SplitSet:
    """Published way to split a dataset.

    Attributes:
        name: Name on the card.
        counts: Samples per split.
        source: Source of the lists.
        note: Known defects.
        files: Files with the lists by split, as `sgdata fetch` names them; empty if the dataset's files give the split.
    """

    name: str
    counts: dict[str, int]
    source: str
    note: str = ""
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Label space on a card, from a table of the catalogue or from a list of names.

    Attributes:
        name: Name of the label space.
        task: Task that the labels are for.
        table: Table of the catalogue.
        id: Its column of ids.
        label: Its column of names.
        colour: Its column of colours.
        classes: Names in place of a table; the position of a name is its id.
        ignore: Label value that is not a class.
    """

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
    """Published version of a dataset.

    Attributes:
        name: Name on the card.
        published: The deposit, not only a year, which two editions may share.
        level: Product level, or RGB8 for 8-bit images that were stretched for display.
        bands: Bands in the order of the files.
        nodata: Value of pixels without data; None if there is none.
        scale: Factor to reflectance.
        offset: Offset in DN, added before scaling.
        resampling: How its authors brought all bands to one grid; empty if each band has its native size.
        samples: Number of samples.
        shape: (C, H, W) of the images; None where samples differ in size.
        splits: Published splits.
        sources: Files to download.
    """

    name: str
    published: str
    level: PixelLevel
    bands: tuple[str, ...]
    nodata: int | None = None
    scale: float = 1e-4
    offset: float = 0.0
    resampling: str = ""
    samples: int | None = None
    shape: tuple[int, int, int] | None = None
    splits: tuple[SplitSet, ...] = ()
    sources: tuple[DatasetFile, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Licence:
    """Licences of a dataset.

    Attributes:
        labels: Licence of the labels.
        pixels: Licence of the pixels.
        redistribution: Whether shards may be passed on; "owner" for the user's own data, whose owner decides.
        note: Conditions.
    """

    labels: str
    pixels: str
    redistribution: Literal["yes", "no", "unclear", "owner"]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """Facts about a dataset: the document `catalogs/<name>.toml`.

    Attributes:
        name: Name of the dataset, its reader and its recipes.
        title: Title.
        task: Task of the labels.
        sensor: Name of a sensor of `cards.SENSORS`.
        summary: Summary in a sentence.
        citation: Publications to cite.
        home: Address of the dataset's page.
        licence: Licences.
        editions: Published versions.
        label_spaces: Label spaces to choose from.
        defects: Known defects.
    """

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
class SampleListing:
    """Samples that a reader finds in a source.

    Attributes:
        refs: The samples, in a fixed order.
        edition: Edition of the dataset.
        labels: Label space of the samples.
        contract: Contract of the source if it has one (a build).
        rejected: Names of rejected files with the reasons.
        notes: Remarks for the user.
        shared_files: Files that every sample depends on, besides the source and the members.
    """

    refs: tuple[SampleRef, ...]
    edition: Edition
    labels: LabelSpace
    contract: Contract | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    shared_files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShardRecipe:
    """Recipe of shards: the document `recipes/shard/<dataset>.toml`.

    Attributes:
        dataset: Name of the dataset.
        edition: Edition on its card.
        labels: Label space on its card.
        splits: Split set on its card, or "" for none.
        source: Default path of the dataset.
        out: Default output folder.
        layout: `resampled` stores all bands on the sample's finest grid, `native` each resolution as published; both
            decode to the same arrays.
        codec: Codec of the arrays.
        kernel: Resampling to the finest grid.
        shard_mb: Size of a tar in MiB, about.
        effort: `dense` suits shards that are written once and read often. Measured on patches like BigEarthNet's: 3 %
            (native) to 6 % (resampled) smaller than `quick`, decoded twice as fast, 15 times as long to compress.
        name: Name of the shards; None for that of the dataset or of the build.
        hash: `full` records the SHA-256 of every decoded sample, `fast` only the checksums of its members and the
            SHA-256 of the tars.
    """

    dataset: str
    edition: str
    labels: str
    splits: str
    source: str
    out: str
    layout: Literal["resampled", "native"]
    codec: Codec
    kernel: Literal["nearest", "bilinear"]
    shard_mb: int
    effort: Effort = "quick"
    name: str | None = None
    hash: HashMode = field(default="full", metadata={"omit_default": True})
