"""Test shards of pairs, from two builds and a change map."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from synthetic_shards import contract

from sgdata import files, verification
from sgdata.builds import patch_table
from sgdata.errors import SourceError
from sgdata.packing import pack
from sgdata.shards import contracts, tar_format

SIDE = 48


def raster(path: Path, pixels: np.ndarray, west: float = 600_000) -> None:
    profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": len(pixels), "dtype": pixels.dtype.name}
    place = {"crs": "EPSG:32632", "transform": rasterio.transform.from_origin(west, 5_300_000, 10, 10)}
    with rasterio.open(path, "w", **profile, **place) as target:
        target.write(pixels)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Write `pair.toml` for two builds of four patches; the second date lacks a pixel, and a corner has changed."""
    rng = np.random.default_rng(1)
    for name in ("before", "after"):
        pixels = rng.integers(100, 3000, (12, SIDE, SIDE)).astype(np.uint16)
        if name == "after":
            pixels[3, 5, 7] = 0
        (tmp_path / name).mkdir()
        raster(tmp_path / name / "image.tif", pixels)
        contracts.write(tmp_path / name, dataclasses.replace(contract(24), statistics={}))
    change = np.zeros((1, SIDE, SIDE), np.uint8)
    change[0, :6, :9] = 3
    raster(tmp_path / "change.tif", change)
    rows = [(f"p-r{r:05d}-c{c:05d}", "val" if r else "train", r, c) for r in (0, 24) for c in (0, 24)]
    columns = dict(zip(("key", "split", "row", "col"), zip(*rows, strict=True), strict=True))
    boxes = [shapely.box(11, 48, 11.1, 48.1)] * 4
    rows = geopandas.GeoDataFrame({**columns, "height": [24] * 4, "width": [24] * 4}, geometry=boxes, crs="EPSG:4326")
    patch_table.write(tmp_path / "before" / "patches.parquet", rows)
    for name in ("before", "after"):
        files.write_sums(tmp_path / name)
    (tmp_path / "pair.toml").write_text('before = "before"\nafter = "after"\nchange = "change.tif"\n')
    return tmp_path / "pair.toml"


def test_pairs_of_builds_become_shards(pair: Path) -> None:
    out = pair.parent / "shards"
    result = pack.pack("pairs", source=pair, out=out)
    assert result.complete
    assert result.contract.splits == {"train": 2, "val": 2}
    assert result.contract.label_space.task == "change"
    assert verification.verify(out) == []
    held = {sample.key: sample for sample in tar_format.samples(out)}
    first = held["p-r00000-c00000"]
    assert first.arrays["image_before"].shape == first.arrays["image_after"].shape == (12, 24, 24)
    expected = np.zeros((24, 24), np.uint8)
    expected[:6, :9] = 1
    expected[5, 7] = 255
    assert np.array_equal(first.arrays["mask"], expected)
    with rasterio.open(pair.parent / "after" / "image.tif") as image:
        assert np.array_equal(held["p-r00024-c00024"].arrays["image_after"], image.read()[:, 24:, 24:])


def test_builds_that_do_not_belong_together_are_refused(pair: Path) -> None:
    raster(pair.parent / "change.tif", np.zeros((1, SIDE, SIDE), np.uint8), west=600_010)
    with pytest.raises(SourceError, match=r"change\.tif: \(48, 48\) at 600010, 5\.3e\+06 is another grid than that of"):
        pack.pack("pairs", source=pair, out=pair.parent / "shards")
    contracts.write(pair.parent / "after", dataclasses.replace(contract(24), level="L1C", statistics={}))
    with pytest.raises(SourceError, match="after: differs from .*before in level"):
        pack.pack("pairs", source=pair, out=pair.parent / "shards")
    (pair.parent / "change.tif").unlink()
    with pytest.raises(SourceError, match="expected the change map that the pair names"):
        pack.pack("pairs", source=pair, out=pair.parent / "shards")


def test_damaged_rasters_are_refused_in_one_line(pair: Path) -> None:
    path = pair.parent / "after" / "image.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match=r"4 in quarantine\.jsonl; the first: window \[0, 0, 24, 24\] cannot be read"):
        pack.pack("pairs", source=pair, out=pair.parent / "shards")
    path.write_bytes(b"no raster")
    with pytest.raises(SourceError, match=r"after/image\.tif: cannot be read"):
        pack.pack("pairs", source=pair, out=pair.parent / "other")


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint8", 255), ("int16", -9999), ("uint16", 65535), ("float32", np.nan), ("uint8", None)]
)
def test_no_data_in_a_change_map_of_any_type_is_the_value_to_ignore(
    pair: Path, dtype: str, nodata: float | None
) -> None:
    path = pair.parent / "change.tif"
    change = np.zeros((SIDE, SIDE), dtype)
    change[:6, :9] = 3
    change[2:4, 6:12] = 1 if nodata is None else nodata
    raster(path, change[None])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        if nodata is None:
            seen = np.ones((SIDE, SIDE), bool)
            seen[2:4, 6:12] = False
            dataset.write_mask(seen)
        else:
            dataset.nodata = nodata
    pack.pack("pairs", source=pair, out=pair.parent / "shards")
    found = next(s for s in tar_format.samples(pair.parent / "shards") if s.key == "p-r00000-c00000").arrays["mask"]
    expected = np.zeros((24, 24), np.uint8)
    expected[:6, :9] = 1
    expected[5, 7] = expected[2:4, 6:12] = 255
    assert np.array_equal(found, expected)


def test_a_masked_part_of_one_date_is_no_data_there_and_unknown_in_the_change_map(pair: Path) -> None:
    path = pair.parent / "after" / "image.tif"
    seen = np.ones((SIDE, SIDE), bool)
    seen[10:14, 3:20] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(seen)
    pack.pack("pairs", source=pair, out=pair.parent / "shards")
    found = next(s for s in tar_format.samples(pair.parent / "shards") if s.key == "p-r00000-c00000").arrays
    assert (found["mask"][10:14, 3:20] == 255).all()
    assert (found["image_after"][:, 10:14, 3:20] == 0).all()
    assert (found["image_before"] > 0).all()


def test_pairs_whose_grids_differ_in_the_last_bit_agree(pair: Path) -> None:
    with rasterio.open(pair.parent / "change.tif", "r+") as dataset:
        dataset.transform = rasterio.transform.from_origin(np.nextafter(600_000.0, np.inf), 5_300_000, 10, 10)
    assert pack.pack("pairs", source=pair, out=pair.parent / "shards").complete
    with rasterio.open(pair.parent / "change.tif", "r+") as dataset:
        dataset.crs = "EPSG:32633"
    with pytest.raises(SourceError, match="CRS is EPSG:32633, expected EPSG:32632"):
        pack.pack("pairs", source=pair, out=pair.parent / "other")
