"""List the patches of a build as samples."""

from __future__ import annotations

from pathlib import Path

from sgdata.builds.patch_table import read
from sgdata.datasets.types import Member, SampleRef


def refs(path: Path, members: tuple[Member, ...], pixel_bytes: float) -> tuple[SampleRef, ...]:
    """List the patches of a build as samples to be cut from its rasters.

    Args:
        path: Table of the patches.
        members: The rasters.
        pixel_bytes: Bytes that a pixel will take in a shard, estimated.

    Raises:
        SourceError: The table is missing or damaged.
    """
    rows = read(path)
    windows = rows[["row", "col", "height", "width"]].to_numpy().tolist()
    # To 1e-7 degree (a centimetre), as `small_tiff.bounds` gives them.
    boxes = rows.bounds.round(7).to_numpy().tolist()
    return tuple(
        SampleRef(
            key=key,
            split=split,
            members=members,
            bytes=int(window[2] * window[3] * pixel_bytes),
            meta={"window": window, "bounds": box},
        )
        for key, split, window, box in zip(rows["key"], rows["split"], windows, boxes, strict=True)
    )
