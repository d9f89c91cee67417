"""Open shards from Python: decoded samples with names and statistics, pictures of them, and a webdataset pipeline."""

from __future__ import annotations

import io
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sgdata import files, safe_names
from sgdata.errors import SettingError, SourceError
from sgdata.shards import contracts, sample_pictures, shard_index, tar_format
from sgdata.types import Array, BandStatistics, Contract, Sample

if TYPE_CHECKING:
    from PIL import Image

PICTURE_PX = 256
"""Least side of a picture; smaller samples are enlarged by whole numbers."""
GAP_PX = 4


@dataclass(frozen=True)
class ShardSet:
    """The samples of a folder of shards, or of one split of them: a sequence of decoded samples.

    `len(shards)`, `shards[0]`, `shards["key"]`, and iteration, which reads one sample at a time. Samples are
    `sgdata.types.Sample`: key, split, arrays by name as stored, and metadata.

    Attributes:
        folder: Folder of shards.
        split: Name of the split; "" for all.
    """

    folder: Path
    split: str = ""

    @cached_property
    def contract(self) -> Contract:
        """Description of pixels and labels, with the statistics."""
        return contracts.read(self.folder)

    @cached_property
    def rows(self) -> list[shard_index.Row]:
        """Rows of the index, one per sample: key, split, labels, bounds in degrees, CRS, date, ..."""
        rows = shard_index.read_index(self.folder).to_pylist()
        return [row for row in rows if self.split in ("", row["split"])]

    @cached_property
    def _by_key(self) -> dict[str, shard_index.Row]:
        return {row["key"]: row for row in self.rows}

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in the order of the images."""
        return tuple(band.name for band in self.contract.bands)

    @property
    def classes(self) -> dict[int, str]:
        """Names of the classes by their value in masks and labels."""
        space = self.contract.label_space
        return dict(zip(space.ids, space.names, strict=True))

    @property
    def statistics(self) -> dict[str, BandStatistics]:
        """Statistics of each band over the training samples, in stored units."""
        return self.contract.statistics

    @property
    def splits(self) -> dict[str, int]:
        """Number of samples of each split."""
        return dict(Counter(row["split"] for row in self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: int | str) -> Sample:
        """Return a sample by its number or key. Raises IndexError, KeyError, SourceError where it is damaged."""
        row = self._by_key[which] if isinstance(which, str) else self.rows[operator.index(which)]
        return tar_format.read_sample(self.folder, row)

    def __iter__(self) -> Iterator[Sample]:
        for row in self.rows:
            yield tar_format.read_sample(self.folder, row)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {count:,}" for name, count in sorted(self.splits.items()))
        contract = self.contract
        return f"ShardSet({contract.dataset} {contract.version}: {parts}; {len(self.bands)} bands, {self.folder})"

    def plot(self, which: int | str = 0) -> Image.Image:
        """Return a picture of a sample, which notebooks show: each date in true colour, then its classes.

        Args:
            which: Number or key of the sample.

        Returns:
            The picture, enlarged to 256 pixels or more; contrast from percentiles 1 to 99 of the training samples.

        Raises:
            SourceError: The sample is damaged.
        """
        from PIL import Image

        sample = self[which]
        panels = [
            picture.transpose(1, 2, 0) if picture.shape[0] == 3 and picture.shape[-1] != 3 else picture
            for _, picture in sample_pictures.pictures(sample, sample.arrays.get("mask"), self.contract)
        ]
        height = max(panel.shape[0] for panel in panels)
        factor = max(-(-PICTURE_PX // height), 1)
        width = sum(panel.shape[1] for panel in panels) * factor + GAP_PX * (len(panels) - 1)
        shown, left = Image.new("RGB", (width, height * factor), "white"), 0
        for panel in panels:
            image = Image.fromarray(np.ascontiguousarray(panel))
            size = (image.width * factor, image.height * factor)
            shown.paste(image.resize(size, Image.Resampling.NEAREST), (left, 0))
            left += size[0] + GAP_PX
        return shown

    def webdataset(self, *, shuffle: int = 0, seed: int = 0) -> Any:
        """Return a webdataset pipeline of the samples, read by tar, for many machines and worker processes.

        Tars are divided among the ranks of `torch.distributed` (or RANK and WORLD_SIZE), then among the workers of a
        DataLoader: a rank or worker beyond the number of tars gets none, and ranks may differ in their number of
        samples. Members are decoded by this project, without unpickling.

        Args:
            shuffle: Number of samples among which the order is random; the order of tars then is, too. 0: as stored.
            seed: Seed of the order.

        Returns:
            A `webdataset.WebDataset` of dictionaries: `__key__`, `image`, `mask`, ... as arrays, `meta` and `label` as
            documents.
        """
        import webdataset

        tars = sorted({row["shard"] for row in self.rows})
        split: Any = webdataset.WebDataset(
            [str(safe_names.member(self.folder.absolute(), name)) for name in tars],
            shardshuffle=len(tars) if shuffle else False,
            nodesplitter=webdataset.split_by_node,
            workersplitter=webdataset.split_by_worker,
            empty_check=False,
            seed=seed,
        )
        if shuffle:
            split = split.shuffle(shuffle, seed=seed)
        return split.map(decode_webdataset)


def open_shards(folder: str | Path, split: str = "") -> ShardSet:
    """Open a folder of shards to look at its samples, or to load them with webdataset.

    Args:
        folder: Folder that `sgdata shard` wrote.
        split: Name of a split; "" for all samples.

    Returns:
        The samples.

    Raises:
        SettingError: There is no such split.
        SourceError: The folder is unfinished or no folder of shards, or its index is damaged.
    """
    opened = ShardSet(Path(folder), split)
    if not len(opened):
        splits = ", ".join(ShardSet(Path(folder)).splits) or "none"
        raise SettingError(f"{folder}: no split '{split}'; it has {splits}: name one")
    return opened


def decode_webdataset(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a sample of webdataset with its members decoded, under their names without ending.

    Args:
        sample: Bytes by member, as `webdataset.WebDataset` yields it.

    Returns:
        `__key__`, arrays and documents by name; what webdataset adds itself is dropped.

    Raises:
        SourceError: A member is damaged or of another kind.
    """
    decoded: dict[str, Any] = {"__key__": sample["__key__"]}
    for member, content in sample.items():
        if member.startswith("__"):
            continue
        name, _, ending = member.rpartition(".")
        decoded[name] = _decode(f"{sample['__key__']}.{member}", ending, content)
    return decoded


def _decode(member: str, ending: str, content: bytes) -> Any:
    try:
        if ending == "json":
            return files.parse_json(content)
        if ending == "npy":
            values: Array = np.load(io.BytesIO(content), allow_pickle=False)
            return values
    except ValueError as error:
        raise SourceError(f"member {member}: {error!s:.120}; run sgdata verify") from None
    array = tar_format.decode_member(member, content)
    if array is None:
        raise SourceError(f"member {member}: expected .blosc, .npy or .json; give a folder of `sgdata shard`")
    return array
