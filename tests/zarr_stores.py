"""Make EOPF products for tests: from GeoTIFFs as the simulator does, and rewritten with the zarr library."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import zarr

from sgdata.simulation import eopf

DOCUMENT: dict[str, Any] = {
    "type": "Feature", "stac_version": "1.0.0", "id": "S", "bbox": [11.0, 48.0, 12.0, 49.0], "geometry": None,
    "properties": {},
}  # fmt: skip
KINDS = ("v2", "v3", "sharded")


def product(scene: Path, out: Path, *, offset: bool = False) -> Path:
    """Write the GeoTIFFs of a scene of the simulator as a product into the folder `out`, and return the store."""
    out.mkdir(parents=True, exist_ok=True)
    for path in scene.glob("*.tif"):
        shutil.copy(path, out / path.name)
    eopf.write_product(out, "S", DOCUMENT, offset=offset)
    return out / "S.zarr"


def rewrite(store: Path, kind: str) -> Path:
    """Rewrite a product in place as format 3, or 3 with shards, in chunks of 64 pixels, of 60 m in 3 x 3 of 32."""
    if kind == "v2":
        return store
    metadata = json.loads((store / ".zmetadata").read_bytes())["metadata"]
    old = store.with_name(f"old-{store.name}")
    store.rename(old)
    root = zarr.create_group(store, zarr_format=3, attributes=metadata[".zattrs"])
    for key in metadata:
        if key.endswith("/.zarray"):
            path = key.removesuffix("/.zarray")
            values = zarr.open_array(old / path, mode="r")[:]
            side = 64 if values.ndim == 2 else values.shape[0]
            chunks = tuple(min(side, size) for size in values.shape)
            shards = tuple(2 * size for size in chunks) if kind == "sharded" and values.ndim == 2 else None
            root.create_array(
                path, data=values, chunks=chunks, shards=shards, fill_value=0, attributes=metadata[f"{path}/.zattrs"],
                compressors=zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
            )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata are no part of format 3 yet
        zarr.consolidate_metadata(store)
    shutil.rmtree(old)
    return store


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON document; those of None are removed."""
    document = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
