"""List the patches of a build as samples."""

from __future__ import annotations

from pathlib import Path

from sgdata.builds.patch_table import read
from sgdata.datasets.types import Member, SampleRef


def refs(path: Path, members: tuple[Member, ...], pixel_bytes: float) -> tuple[SampleRef, ...]:
    """The patches at `path` as samples, to be cut from the rasters `members`; each pixel is stored in `pixel_bytes`.

    Raises SourceError.
    """
    rows = read(path)
    windows = rows[["row", "col", "height", "width"]].to_numpy().tolist()
    # To 1e-7 degree, a centimetre, as `tiffs.bounds` gives them.
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
