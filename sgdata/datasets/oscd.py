"""Read OSCD: registered pairs of 13 bands at 10 m (`imgs_*_rect`) and a change map, 0 no change, 1 change.

The change map is a PNG (0/255, one or more channels), a TIFF (1/2), or both, which must then agree.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sgdata import package_data
from sgdata.datasets import archives, cards
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe, SourceMember
from sgdata.errors import SourceError
from sgdata.rasters import small_tiff
from sgdata.types import Array, Contract, Sample

_DATES = re.compile(r"date_([12]):\s*(\d{4})(\d{2})(\d{2})")
_STORED_SHARE = 0.6
_LARGEST_PNG = 2**26


def list_samples(source: Path, recipe: ShardRecipe) -> SampleListing:
    """List the cities with images in `source`, in the split of the official lists (`train` or `test`).

    Files are found by city and name: the three zips may be unpacked side by side or merged into a folder per city.
    """
    edition = cards.edition("oscd", recipe.edition)
    facts = package_data.document("oscd_cities")
    listing = archives.list_members(source)
    cities: dict[str, dict[str, SourceMember]] = {}
    splits = {name: split for split in ("train", "test") for name in facts[f"order_in_{split}_txt"]}
    # Copies rename the top folders and merge labels into the cities, so only the last parts of a name count.
    for member in listing.members:
        parts = PurePosixPath(member.name).parts
        city = next((part for part in parts[:-1] if part in splits), None)
        if city and (parts[-2] in ("imgs_1_rect", "imgs_2_rect", "cm") or parts[-1] == "dates.txt"):
            name = f"{parts[-2]}/{parts[-1]}" if parts[-1] != "dates.txt" else parts[-1]
            cities.setdefault(city, {})[name] = member
    refs = []
    for city, members in sorted(cities.items()):
        size = int(sum(member.size for member in members.values()) * _STORED_SHARE)
        refs.append(SampleRef(key=city, split=splits[city], members=tuple(members.values()), bytes=size))
    if not refs:
        expected = "no city of OSCD, such as abudhabi/imgs_1_rect; expected the three zips, packed or not"
        raise archives.dataset_not_found(source, listing, expected)
    return SampleListing(
        refs=tuple(refs), edition=edition, labels=cards.label_space("oscd", recipe.labels), rejected=listing.rejected
    )


@contextmanager
def open_source(source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open `source`; the function reads `image_before`, `image_after` (13, H, W) and `mask` (H, W)."""
    facts = {city["name"]: city for city in package_data.document("oscd_cities")["cities"]}
    with archives.open_archive(source) as content:
        yield lambda ref: _require_published_facts(_read(ref, content, contract), facts[ref.key])


def _require_published_facts(sample: Sample, facts: Mapping[str, Any]) -> Sample:
    """Return the sample. Raises SourceError if its size or dates are not the published ones of the city."""
    expected = (facts["height"], facts["width"])
    if sample.arrays["mask"].shape != expected:
        raise SourceError(f"change map is {sample.arrays['mask'].shape}, the published one is {expected}")
    for name, number in (("date", 1), ("date_after", 2)):
        day = facts[f"date_{number}"]
        if sample.meta.get(name) not in (None, f"{day[:4]}-{day[4:6]}-{day[6:]}"):
            raise SourceError(f"dates.txt says {name} {sample.meta[name]}, expected {day} as published: another day?")
    return sample


def _read(ref: SampleRef, content: archives.Content, contract: Contract) -> Sample:
    members = {"/".join(PurePosixPath(m.name).parts[-2:]): m for m in ref.members}
    dates = next((m for m in ref.members if m.name.endswith("dates.txt")), None)
    arrays = {
        "image_before": _stack("imgs_1_rect", members, content, contract),
        "image_after": _stack("imgs_2_rect", members, content, contract),
        "mask": _read_change_map(ref.key, members, content),
    }
    meta: dict[str, Any] = {}
    if dates:
        text = content(dates).decode("ascii", "replace")
        days = {number: f"{y}-{m}-{d}" for number, y, m, d in _DATES.findall(text)}
        meta = {"date": days.get("1"), "date_after": days.get("2")}
    return Sample(key=ref.key, split=ref.split, arrays=arrays, meta=meta)


def _stack(folder: str, members: Mapping[str, SourceMember], content: archives.Content, contract: Contract) -> Array:
    planes: list[Array] = []
    # Only `imgs_*_rect`: registered and at 10 m; they must not be resampled again.
    for band in contract.bands:
        member = members.get(f"{folder}/{band.name}.tif")
        if member is None:
            raise SourceError(f"{folder}/{band.name}.tif is missing, expected one file a band")
        pixels = small_tiff.read(content(member)).pixels
        if len(pixels) != 1 or pixels.dtype != np.uint16 or (planes and pixels[0].shape != planes[0].shape):
            expected = planes[0].shape if planes else "(1, H, W)"
            raise SourceError(f"{folder}/{band.name}.tif is {pixels.dtype} {pixels.shape}, expected uint16 {expected}")
        planes.append(pixels[0])
    return np.stack(planes)


def _read_change_map(city: str, members: Mapping[str, SourceMember], content: archives.Content) -> Array:
    """Return the change map (H, W) uint8 of 0 and 1, from the PNG or the TIFF."""
    maps: list[Array] = []
    if f"cm/{city}-cm.tif" in members:
        codes = small_tiff.read(content(members[f"cm/{city}-cm.tif"])).pixels
        # 1 is no change and 2 is change here; "greater than 0" would mark everything as change.
        if len(codes) != 1 or not set(np.unique(codes).tolist()) <= {1, 2}:
            raise SourceError(f"{city}-cm.tif holds {np.unique(codes).tolist()[:8]}, expected 1 and 2")
        maps.append((codes[0] == 2).astype(np.uint8))
    if "cm/cm.png" in members:
        # Its mode may be L, RGB or RGBA.
        maps.append(_from_png(content(members["cm/cm.png"])))
    if not maps:
        raise SourceError(f"no change map, expected cm/cm.png or cm/{city}-cm.tif")
    change_map: Array = maps[0]
    if any(not np.array_equal(change_map, other) for other in maps[1:]):
        raise SourceError("change maps cm.png and cm.tif differ")
    return change_map


def _from_png(content: bytes) -> Array:
    from PIL import Image

    # Checked before Pillow decodes: width and height are first in the first chunk (PNG 1.2, clause 11.2.2).
    width, height = struct.unpack(">II", content[16:24].ljust(8, b"\0"))
    if width * height > _LARGEST_PNG:
        raise SourceError(f"cm.png claims {width} x {height} pixels, expected {_LARGEST_PNG} at most")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            values = np.asarray(picture.convert("L"))
    except (OSError, ValueError, SyntaxError) as error:
        raise SourceError(f"cm.png cannot be read: {error}") from None
    if not set(np.unique(values).tolist()) <= {0, 255}:
        raise SourceError(f"cm.png holds {np.unique(values).tolist()[:8]}, expected 0 and 255")
    change: Array = (values > 0).astype(np.uint8)
    return change
