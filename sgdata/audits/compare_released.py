"""Compare a build with released windows of SegMunich, which have no georeference: place them, then compare pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sgdata import files, output_names, package_data, progress
from sgdata.audits import window_location
from sgdata.datasets import archives, cards, segmunich
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import dihedral, geotiff, small_tiff
from sgdata.shards import contracts
from sgdata.types import Array

PLACED_BY = ("B04", "B08")
LEAST = 0.16
"""Correlation of details from which a window is placed: real images of the same ground have 0.20 to 0.86, and at most
0.15 at any other place."""
CLASSES = 13


@dataclass(frozen=True, kw_only=True)
class ReleasedWindow:
    """A released window of SegMunich.

    Attributes:
        name: Name of its files, without the ending.
        image: (10, 128, 128) DN.
        labels: (128, 128) train indices; None without a label file.
    """

    name: str
    image: Array
    labels: Array | None


@dataclass(kw_only=True)
class Tally:
    """Sums over the placed windows.

    Attributes:
        confusion: (13, 14) pixels by released class and class of the build, the last column unmapped.
        shares: (13,) pixels by class of all windows with labels, placed or not.
        bands: (10, 5) sums of released and built values, of their squares and products.
        pixels: Number of compared pixels.
    """

    confusion: Array = field(default_factory=lambda: np.zeros((CLASSES, CLASSES + 1), np.int64))
    shares: Array = field(default_factory=lambda: np.zeros(CLASSES, np.int64))
    bands: Array = field(default_factory=lambda: np.zeros((10, 5)))
    pixels: int = 0


def compare(build: Path, released: Path, *, most: int = 200, least: float = LEAST) -> dict[str, Any]:
    """Compare a build with released windows.

    Args:
        build: Finished build with the ten released bands.
        released: Archive or folder of the released set, in either form, or one image.
        most: Number of windows to read, spread evenly over the set.
        least: Correlation of details from which a window counts as placed.

    Returns:
        A document: number of windows, places, class shares beside the published ones, confusion, band differences.

    Raises:
        SettingError: The build has other bands or labels.
        SourceError: A file cannot be read, or there are no windows.
    """
    names = cards.edition("segmunich", "released").bands
    contract = contracts.read(build)
    present = [band.name for band in contract.bands]
    if missing := [name for name in names if name not in present]:
        raise SettingError(f"{build}: has no {', '.join(missing)}; build it with the bands {', '.join(names)}")
    with geotiff.open_raster(str(build / output_names.IMAGE)) as dataset:
        image = dataset.read([present.index(name) + 1 for name in names])
    labels = None
    if (build / output_names.LABELS).is_file() and contract.label_space.name == "segmunich-osm":
        with geotiff.open_raster(str(build / output_names.LABELS)) as dataset:
            labels = dataset.read(1)
    if min(image.shape[1:]) < 128:
        raise SettingError(
            f"{build}: {image.shape[1:]} pixels; expected at least one window of 128 x 128; build a larger area"
        )
    by = [names.index(name) for name in PLACED_BY]
    details = window_location.extract_detail(image[by])
    tally, locations, compared, copies = Tally(), [], set(), 0
    for window in _windows(released, most):
        group = dihedral.d4_hash(window.image)
        if group in compared:
            copies += 1
            continue
        compared.add(group)
        location = window_location.locate_window(window_location.extract_detail(window.image[by]), details)
        if window.labels is not None:
            tally.shares += np.bincount(window.labels.ravel(), minlength=CLASSES)
        placed = location.correlation >= least
        if placed:
            _add(tally, window, location, image, labels)
        locations.append({"window": window.name, "placed": placed, **files.to_plain(location)})
    if not locations:
        raise SourceError(
            f"{released}: holds no windows; expected img/<id>.tif; give the released set, or one image of it"
        )
    return {"least_correlation": least} | _report(tally, locations, copies, names)


def _windows(released: Path, most: int) -> Iterator[ReleasedWindow]:
    """Yield windows, spread evenly over the names. Raises SourceError."""
    index = segmunich.index_of_file_value()
    if released.suffix in {".tif", ".tiff"}:
        yield _window(released.name, released.read_bytes(), None, index)
        return
    members = {PurePosixPath(member.name): member for member in archives.list_members(released).members}
    images = sorted(path for path in members if path.parent.name == "img" and path.suffix == ".tif")
    step = max(len(images) / most, 1)
    chosen = [images[int(n * step)] for n in range(min(most, len(images)))]
    with archives.open_archive(released) as content:
        for path in progress.track(chosen, label="placing", total=len(chosen)):
            label = members.get(path.parent.parent / "label" / path.name)
            codes = content(label) if label else None
            yield _window(path.as_posix(), content(members[path]), codes, index)


def _window(name: str, image: bytes, codes: bytes | None, index: Array) -> ReleasedWindow:
    pixels = small_tiff.read(image).pixels
    if pixels.shape != (10, 128, 128):
        raise SourceError(f"{name}: image is {pixels.shape}, expected (10, 128, 128); fetch it again")
    if codes is None:
        return ReleasedWindow(name=name, image=pixels, labels=None)
    values = small_tiff.read(codes).pixels
    if values.shape != (1, 128, 128) or values.dtype != np.uint8 or (index[values] < 0).any():
        raise SourceError(
            f"{name}: label is {values.dtype} {values.shape} of {np.unique(values).tolist()[:20]}; fetch it again"
        )
    return ReleasedWindow(name=name, image=pixels, labels=index[values[0]])


def _add(
    tally: Tally, window: ReleasedWindow, location: window_location.WindowLocation, image: Array, labels: Array | None
) -> None:
    """Add a placed window to the sums; pixels without data in either image do not count."""
    at = np.s_[location.row : location.row + 128, location.col : location.col + 128]
    theirs, ours = dihedral.symmetric_copies(window.image)[location.turn], image[:, *at]
    valid = (theirs > 0).any(axis=0) & (ours > 0).any(axis=0)
    x, y = (part[:, valid].astype(np.float64) for part in (theirs, ours))
    tally.bands += np.stack([x.sum(1), y.sum(1), (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)], axis=1)
    tally.pixels += int(valid.sum())
    if labels is not None and window.labels is not None:
        classes = np.minimum(labels[at], CLASSES)[valid].astype(np.int64)
        pairs = dihedral.symmetric_copies(window.labels[None])[location.turn][0][valid] * (CLASSES + 1) + classes
        tally.confusion += np.bincount(pairs, minlength=tally.confusion.size).reshape(tally.confusion.shape)


def _report(tally: Tally, locations: list[dict[str, Any]], copies: int, bands: tuple[str, ...]) -> dict[str, Any]:
    """Return the document of a comparison."""
    confusion, total = tally.confusion, max(int(tally.confusion.sum()), 1)
    all_labels = max(int(tally.shares.sum()), 1)
    classes = []
    for row in package_data.table("segmunich_labels"):
        at = int(row["train_index"])
        union = int(confusion[at].sum() + confusion[:, at].sum() - confusion[at, at])
        classes.append({
            "class": row["legend_meaning"], "code": int(row["file_value"]),
            "published_share": float(row["train_pixel_share_reported"]),
            "released_share": round(int(tally.shares[at]) / all_labels, 4),
            "build_share": round(int(confusion[:, at].sum()) / total, 4),
            "iou": round(int(confusion[at, at]) / union, 4) if union else None,
        })  # fmt: skip
    return {
        "windows": len(locations), "copies": copies, "placed": sum(each["placed"] for each in locations),
        "places": locations,
        "pixels": tally.pixels, "classes": classes, "confusion": confusion.tolist(),
        "agreement": round(int(np.trace(confusion[:, :CLASSES])) / total, 4) if tally.confusion.sum() else None,
        "unmapped_share": round(int(confusion[:, CLASSES].sum()) / total, 4),
        "bands": [_band(name, sums, tally.pixels) for name, sums in zip(bands, tally.bands, strict=True)],
    }  # fmt: skip


def _band(name: str, sums: Array, pixels: int) -> dict[str, Any]:
    """Return means, difference, RMSE in DN and correlation of one band."""
    count = max(pixels, 1)
    x, y, xx, yy, xy = (float(value) / count for value in sums)
    spread = np.sqrt(max(xx - x * x, 0) * max(yy - y * y, 0))
    return {
        "band": name, "released_mean": round(x, 1), "build_mean": round(y, 1), "difference": round(y - x, 1),
        "rmse": round(float(np.sqrt(max(xx + yy - 2 * xy, 0))), 1),
        "correlation": round((xy - x * y) / spread, 4) if spread else None,
    }  # fmt: skip
