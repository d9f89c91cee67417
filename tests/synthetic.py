"""Write small archives in the official layouts (names, containers, dtypes, band orders) with synthetic values."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import tifffile
from PIL import Image
from rasterio.transform import from_origin

from sgdata import files, package_data, sentinel2
from sgdata.shards import contracts
from sgdata.types import CONTRACT_FORMAT, Array, Contract, LabelSpace

GROUPS = {10: ("B02", "B03", "B04", "B08"), 20: ("B05", "B06", "B07", "B8A", "B11", "B12"), 60: ("B01", "B09")}
RELEASED_CODES = (0, 5, 11, 12, 13, 14, 21, 22, 23, 31, 32, 33, 41)


def reflectance(shape: tuple[int, ...], seed: int) -> Array:
    """Return smooth DN with noise, never 0."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[: shape[-2], : shape[-1]]
    base = 600 + 400 * np.sin(rows / 7 + seed) * np.cos(cols / 9)
    return (base * np.linspace(1, 3, shape[0])[:, None, None] + rng.integers(1, 60, shape)).astype(np.uint16) + 1


def _geotiff(path: Path, pixels: Array, crs: str, transform: Any, **profile: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    settings = {"driver": "GTiff", "dtype": pixels.dtype, "count": count, "height": height, "width": width}
    with rasterio.open(path, "w", crs=crs, transform=transform, **settings, **profile) as target:
        target.write(pixels)


# --- SegMunich -----------------------------------------------------------------------------


def segmunich_build(folder: Path, *, patches: int = 6, size: int = 16) -> Path:
    """Write the parts of a segmunich build that shards are made from: two rows of patches, train above, val below."""
    import geopandas
    from shapely.geometry import box

    folder.mkdir(parents=True)
    across, transform = patches // 2, from_origin(690000, 5340000, 10, 10)
    shape = (2 * size, across * size)
    image = reflectance((12, *shape), seed=3)
    labels = np.random.default_rng(4).integers(0, 13, shape).astype(np.uint8)
    labels[:3, :3] = 255
    _geotiff(folder / "image.tif", image, "EPSG:32632", transform, nodata=0)
    _geotiff(folder / "labels.tif", labels[None], "EPSG:32632", transform)
    names = tuple(f"class {i}" for i in range(13))
    contract = Contract(
        format=CONTRACT_FORMAT,
        dataset="segmunich",
        version="build",
        bands=sentinel2.bands(sentinel2.L2A_BANDS),
        level="L2A",
        scale=1e-4,
        offset=0.0,
        nodata=0,
        resampling="bilinear",
        resampling_version=1,
        shape=(12, size, size),
        label_space=LabelSpace(
            name="segmunich-osm", task="segmentation", ids=tuple(range(13)), names=names, ignore=255
        ),
        statistics={},
        splits={},
        fingerprint="f" * 64,
    )
    contracts.write(folder, contract)
    rows = []
    for number in range(2 * across):
        row, col = size * (number // across), size * (number % across)
        west, north = transform * (col, row)
        outline = box(west, north - 10 * size, west + 10 * size, north)
        split = "val" if row else "train"
        key = f"munich-r{row:05d}-c{col:05d}"
        rows.append(
            {"key": key, "row": row, "col": col, "height": size, "width": size, "split": split, "geometry": outline}
        )
    frame = geopandas.GeoDataFrame(rows, crs="EPSG:32632").to_crs("EPSG:4326")
    frame.to_parquet(folder / "patches.parquet")
    files.write_sums(folder)
    return folder


def segmunich_released(folder: Path, splits: Iterable[tuple[str, int]] = (("train", 3), ("val", 2))) -> Path:
    """Write `TUM_128/{train,val}/{img,label}/<id>.tif`: images of 128 pages, labels of CORINE-like codes."""
    for split, count in splits:
        for number in range(count):
            seed = number + 100 * (split == "val")
            cube = np.moveaxis(reflectance((10, 128, 128), seed), 0, -1).astype(np.float32)
            codes = np.random.default_rng(number).choice(RELEASED_CODES, (128, 128)).astype(np.uint8)
            for kind, pixels in (("img", cube), ("label", codes)):
                path = folder / "TUM_128" / split / kind / f"{number}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(path, pixels, photometric="minisblack")
    return folder


# --- EuroSAT -------------------------------------------------------------------------------

EUROSAT_FILE_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")


def eurosat(folder: Path, classes: Iterable[str] = ("AnnualCrop", "River"), each: int = 3) -> Path:
    """Write `EuroSAT_MS/<Class>/<Class>_<n>.tif`: 13 interleaved bands, B8A last, no names, UTM, not exactly 10 m."""
    transform = from_origin(624602.23, 4877286.03, 10.00570688714736, 9.994088099999352)
    for label in classes:
        for number in range(1, each + 1):
            pixels = reflectance((13, 64, 64), seed=number)
            pixels[9] = 10 + pixels[9] % 5
            path = folder / "EuroSAT_MS" / label / f"{label}_{number}.tif"
            _geotiff(path, pixels, "EPSG:32635", transform, interleave="pixel")
    return folder


def eurosat_rgb(folder: Path, classes: Iterable[str] = ("AnnualCrop", "River"), each: int = 3) -> Path:
    """Write `EuroSAT_RGB/<Class>/<Class>_<n>.jpg` and `coordinates.tsv`: places 10 km from each other."""
    rows = ["name\tlatitude\tlongitude"]
    for label in classes:
        for number in range(1, each + 1):
            path = folder / "EuroSAT_RGB" / label / f"{label}_{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.moveaxis(reflectance((3, 64, 64), seed=number) // 16, 0, -1).astype(np.uint8)
            Image.fromarray(pixels).save(path, format="JPEG")
            rows.append(f"{label}/{label}_{number}\t{44 + number / 10}\t{20 + len(label)}")
    (folder / "coordinates.tsv").write_text("\n".join(rows) + "\n")
    return folder


# --- BigEarthNet ---------------------------------------------------------------------------


def bigearthnet_patch(folder: Path, name: str, *, seed: int, nodata: int | None) -> None:
    """Write the 12 single-band files of a patch: 120, 60 and 20 pixels for a 1200 m square."""
    place = re.findall(r"\d+", name)
    west, north = 600000 + 1200 * int(place[-2]), 5400000 - 1200 * int(place[-1])
    for gsd, bands in GROUPS.items():
        side = 1200 // gsd
        pixels = reflectance((len(bands), side, side), seed + gsd)
        for band, plane in zip(bands, pixels, strict=True):
            profile = {} if nodata is None else {"nodata": nodata}
            path = folder / f"{name}_{band}.tif"
            _geotiff(path, plane[None], "EPSG:32633", from_origin(west, north, gsd, gsd), **profile)


def bigearthnet_v1(folder: Path, count: int = 3) -> Path:
    """Write `BigEarthNet-v1.0/<patch>/<patch>_Bxx.tif` and `_labels_metadata.json` with names of the 43 classes."""
    for number in range(count):
        name = f"S2B_MSIL2A_20170924T9{number}161_{number}_7"
        patch = folder / "BigEarthNet-v1.0" / name
        bigearthnet_patch(patch, name, seed=number, nodata=None)
        labels = {"labels": ["Vineyards", "Airports", "Pastures"][: number + 1], "coordinates": {"ulx": 1, "uly": 2}}
        document = {
            **labels,
            "projection": "PROJCS[...]",
            "tile_source": "S2B.SAFE",
            "acquisition_date": "2017-09-24 09:30:20",
        }
        (patch / f"{name}_labels_metadata.json").write_text(json.dumps(document))
    return folder


def bigearthnet_v2(folder: Path, count: int = 3) -> Path:
    """Write `BigEarthNet-S2/<scene>/<patch>/<patch>_Bxx.tif` and `metadata.parquet` with sorted lists of the 19."""
    import pandas as pd

    scene, rows = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP", []
    for number in range(count):
        name = f"{scene}_{number:02d}_07"
        bigearthnet_patch(folder / "BigEarthNet-S2" / scene / name, name, seed=number, nodata=0)
        labels = sorted(["Arable land", "Pastures", "Inland waters"][: number + 1])
        split = ("train", "validation", "test")[number % 3]
        rows.append({"patch_id": name, "labels": labels, "split": split, "country": "Austria"})
    pd.DataFrame(rows).to_parquet(folder / "metadata.parquet")
    return folder


# --- fMoW-Sentinel -------------------------------------------------------------------------


def fmow(folder: Path, *, third: str = "test_gt", surplus: bool = True) -> Path:
    """Write `fmow-sentinel/<split>/<category>/<category>_<loc>/<category>_<loc>_<image>.tif` and the three CSVs."""
    pixel = 8.983152841195215e-05
    for split, count in (("train", 3), ("val", 2), (third, 1)):
        rows = []
        for number in range(count):
            category = ("airport", "multi-unit_residential", "zoo")[number]
            size = (40 + 3 * number, 50 + number)
            pixels = reflectance((13, *size), seed=number) + 0.5 * (
                np.arange(13 * size[0] * size[1]).reshape(13, *size) % 2
            )
            pixels[:, :2, :3] = 0
            stem = f"{category}_{number}_10{number}"
            path = folder / "fmow-sentinel" / split / category / f"{category}_{number}" / f"{stem}.tif"
            place = from_origin(11.0 + number, 48.0, pixel, pixel)
            _geotiff(path, pixels, "EPSG:4326", place, compress="deflate", tiled=True, interleave="pixel")
            rows.append(
                [
                    7 * number,
                    category,
                    number,
                    100 + number,
                    "2017-05-01T00:00:00.5Z",
                    "POLYGON ((11 48, 11 47.9, 11.1 47.9, 11 48))",
                ]
            )
        if surplus:
            path = folder / "fmow-sentinel" / split / "airport" / "airport_9" / "airport_9_1.tif"
            _geotiff(path, np.zeros((1, 8, 8)), "EPSG:4326", from_origin(0, 0, pixel, pixel))
        with (folder / f"{'test_gt' if third == split else split}.csv").open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["", "category", "location_id", "image_id", "timestamp", "polygon"])
            writer.writerows(rows)
    return folder


# --- OSCD ----------------------------------------------------------------------------------


def oscd(folder: Path, cities: Iterable[str] = ("bercy", "norcia")) -> Path:
    """Write the folders of the three zips: 13 rect bands per date, `dates.txt`, change map as PNG 0/255 and TIFF 1/2.

    Sizes and dates are the published ones; these two cities are the smallest of train and test.
    """
    from PIL import Image

    top = "Onera Satellite Change Detection dataset - "
    facts = {fact["name"]: fact for fact in package_data.document("oscd_cities")["cities"]}
    listed: dict[str, list[str]] = {"train": [], "test": []}
    for number, city in enumerate(cities):
        fact = facts[city]
        split, shape = fact["split"], (fact["height"], fact["width"])
        listed[split].append(city)
        home = folder / f"{top}Images" / city
        for date in (1, 2):
            pixels = reflectance((13, *shape), seed=number + date)
            for band, plane in zip(sentinel2.BANDS, pixels, strict=True):
                path = home / f"imgs_{date}_rect" / f"{band.name}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(path, plane)
        (home / "dates.txt").write_text(f"date_1: {fact['date_1']}\ndate_2: {fact['date_2']}\n")
        change = np.zeros(shape, np.uint8)
        change[5:9, 6:12] = 1
        cm = folder / f"{top}{split.title()} Labels" / city / "cm"
        cm.mkdir(parents=True)
        Image.fromarray(np.stack([change * 255] * 3, axis=-1)).save(cm / "cm.png")
        tifffile.imwrite(cm / f"{city}-cm.tif", change + 1)
    for split, names in listed.items():
        (folder / f"{top}Images" / f"{split}.txt").write_text(",".join(names) + "\n")
    (folder / f"{top}Images" / "all.txt").write_text(",".join(listed["train"] + listed["test"]) + "\n")
    return folder
