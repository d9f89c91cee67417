"""Types of published datasets: cards, editions, and the samples that a reader finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sgdata.types import Codec, Contract, Effort, LabelSpace, Level, Task


# Slots, here and in SampleRef: BigEarthNet has seven million files, and a dict in each would cost some 100 bytes.
@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file of a source: its relative POSIX name and size; `offset` where it lies inside an uncompressed tar."""

    name: str
    size: int
    offset: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRef:
    """A sample found in a source and not read yet. `bytes` is what it will roughly take in a shard."""

    key: str
    split: str
    members: tuple[Member, ...]
    bytes: int
    meta: dict[str, Any] = field(default_factory=dict)


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
class SampleListing:
    """What a reader finds in a source: samples in order, what they are, rejected files with reasons, remarks.

    `contract` is given where the source brings its own (a build of ours).
    """

    refs: tuple[SampleRef, ...]
    edition: Edition
    labels: LabelSpace
    contract: Contract | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShardRecipe:
    """`recipes/shard/<dataset>.toml`: what is packed, and how. `source` and `out` are where the bare command looks.

    `edition` names an edition, `labels` a label space and `splits` a split set (or none: "") of the dataset's card.
    Layout `resampled` stores every band on the sample's finest lattice, `native` each resolution as it came; both
    decode to the same arrays. `effort` "dense" is for shards that are written once and read for months: measured on
    BigEarthNet-like patches, 3 % smaller than "quick" native and 6 % resampled, decoded at twice the speed, and 15
    times as long to compress.
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
