"""Test Zarr as a source of scenes: the blocks of Blosc, arrays of both formats, hostile stores, EOPF products."""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import pytest
import rasterio
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.warp import transform_bounds

from sgdata.errors import SourceError
from sgdata.rasters import blosc_frames, crc32c, geotiff, zarr_addresses, zarr_chunks, zarr_metadata, zarr_store
from sgdata.remote import objects, retry
from sgdata.remote.objects import ObjectFolder
from sgdata.remote.ranges import RangeRetries
from sgdata.scenes.eopf_items import array_paths
from sgdata.scenes.types import MASK_NODATA, Asset
from sgdata.sentinel2 import MSI
from sgdata.staging import scene_files, window_staging
from sgdata.types import Array, Bounds, Window
from tests import served, zarr_stores

RNG = np.random.default_rng(0)
VALUES = (RNG.normal(size=(300, 400)).cumsum(1) * 5 + 2000).clip(1, 60000).astype(np.uint16)

# --- blocks of Blosc -----------------------------------------------------------------------


@settings(max_examples=150)
@given(
    cname=st.sampled_from(["zstd", "lz4", "lz4hc", "blosclz", "zlib"]),
    level=st.integers(0, 9),
    shuffle=st.integers(0, 2),
    dtype=st.sampled_from(["u1", "u2", "u4", "i8"]),
    block=st.sampled_from([0, 1000, 4096, 65536]),
    size=st.integers(1, 40_000),
    noisy=st.booleans(),
    data=st.data(),
)
def test_some_blocks_of_a_frame_decode_as_all_of_it(
    cname: str, level: int, shuffle: int, dtype: str, block: int, size: int, noisy: bool, data: Any
) -> None:
    rng = np.random.default_rng(size)
    values = rng.integers(0, 2**31, size) if noisy else (rng.normal(size=size).cumsum() * 3).astype(np.int64)
    plain = values.astype(dtype).tobytes()
    numcodecs.blosc.use_threads = data.draw(st.booleans())  # with threads blocks are stored in any order
    stored = numcodecs.Blosc(cname, level, shuffle, block).encode(np.frombuffer(plain, dtype))
    frame = blosc_frames.parse_header(stored, len(plain), "x")
    if frame.is_raw:
        assert stored[blosc_frames.HEADER_BYTES :] == plain
        return
    spans = blosc_frames.find_blocks(frame, stored[blosc_frames.HEADER_BYTES : frame.data_start], "x")
    first = data.draw(st.integers(0, frame.count - 1))
    last = data.draw(st.integers(first + 1, frame.count))
    part = blosc_frames.assemble(frame, [stored[start:stop] for start, stop in spans[first:last]], first)
    expected = plain[first * frame.block : last * frame.block]
    assert bytes(imagecodecs.blosc_decode(part)) == expected
    assert bytes(numcodecs.Blosc().decode(part)) == expected


def test_modes_of_splitting_are_covered() -> None:
    """Blocks of some codecs are split by byte of the values, those of zstd are not."""
    flags = {name: numcodecs.Blosc(name, 5, 1).encode(VALUES)[2] & 0x10 for name in ("blosclz", "lz4", "zstd")}
    assert flags["zstd"] and not flags["lz4"]


def test_crc32c_is_that_of_the_standard() -> None:
    assert crc32c.crc32c(b"123456789") == 0xE3069283
    assert crc32c.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


# --- arrays --------------------------------------------------------------------------------

V2_CODECS = {
    "blosc": numcodecs.Blosc("zstd", 3, 2), "split": numcodecs.Blosc("lz4", 5, 1, blocksize=4096),
    "zstd": numcodecs.Zstd(3), "gzip": numcodecs.GZip(3), "zlib": numcodecs.Zlib(3), "none": None,
}  # fmt: skip


def opened(path: Path) -> zarr_chunks.ChunkReader:
    if (path / ".zarray").exists():
        array = zarr_metadata.parse_v2(json.loads((path / ".zarray").read_bytes()), {}, "x")
    else:
        array = zarr_metadata.parse_v3(json.loads((path / "zarr.json").read_bytes()), "x")
    return zarr_chunks.ChunkReader(array=array, folder=ObjectFolder(href=str(path)))


def read(path: Path, window: Window, fill: int) -> Array:
    return np.concatenate([*map(np.copy, opened(path).strips(window, fill))])


def compare_windows(path: Path, expected: Array) -> None:
    """Compare windows read by this project with an array that the zarr library wrote."""
    rng = np.random.default_rng(1)
    height, width = expected.shape
    for _ in range(5):
        row, col = int(rng.integers(height)), int(rng.integers(width))
        window = Window(
            row=row, col=col, height=int(rng.integers(1, height - row + 1)), width=int(rng.integers(1, width - col + 1))
        )
        values = read(path, window, 7)
        assert np.array_equal(values, expected[window.slices])
        assert values.dtype.isnative


@pytest.mark.parametrize("codec", V2_CODECS)
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "|u1"])
def test_windows_of_format_2(tmp_path: Path, codec: str, dtype: str) -> None:
    values = VALUES.astype(dtype)
    for name, chunks in (("whole", values.shape), ("parts", (128, 96))):
        about: Any = {"shape": values.shape, "chunks": chunks, "dtype": dtype, "compressors": V2_CODECS[codec]}
        zarr.create_array(tmp_path / name, **about, zarr_format=2, fill_value=0)[:] = values
        compare_windows(tmp_path / name, values)


@pytest.mark.parametrize("codec", ["blosc", "zstd", "gzip", "none", "zstd+crc32c", "blosc+crc32c"])
@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("shards", [None, (200, 256)])
def test_windows_of_format_3(tmp_path: Path, codec: str, endian: str, shards: tuple[int, int] | None) -> None:
    made = {
        "blosc": zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), "zstd": zarr.codecs.ZstdCodec(),
        "gzip": zarr.codecs.GzipCodec(), "crc32c": zarr.codecs.Crc32cCodec(),
    }  # fmt: skip
    codecs: Any = [made[name] for name in codec.split("+") if name != "none"] or None
    zarr.create_array(
        tmp_path / "a", shape=VALUES.shape, chunks=(100, 128), shards=shards, dtype="u2", compressors=codecs,
        serializer=zarr.codecs.BytesCodec(endian=endian), zarr_format=3, fill_value=0,
    )[:] = VALUES  # fmt: skip
    compare_windows(tmp_path / "a", VALUES)


@pytest.mark.parametrize("index", ["start", "end"])
def test_chunks_that_do_not_exist_have_no_data(tmp_path: Path, index: Any) -> None:
    holed = VALUES.copy()
    holed[100:200, :128] = 0  # the library does not store what is fill as a whole
    sharding = zarr.codecs.ShardingCodec(
        chunk_shape=(100, 128), index_location=index, codecs=[zarr.codecs.BytesCodec(), zarr.codecs.ZstdCodec()]
    )
    zarr.create_array(
        tmp_path / "a", shape=VALUES.shape, chunks=(300, 256), dtype="u2", serializer=sharding, compressors=None,
        filters=None, zarr_format=3, fill_value=0,
    )[:] = holed  # fmt: skip
    (tmp_path / "a" / "c" / "0" / "1").unlink()
    whole = Window(row=0, col=0, height=300, width=400)
    holed[100:200, :128] = 9
    holed[:, 256:] = 9
    assert np.array_equal(read(tmp_path / "a", whole, 9), holed)


def test_a_few_rows_read_a_few_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 rows of a chunk as L2A products have it, of 60 MB, cost 8 % of its file."""
    noise = np.random.default_rng(2).integers(0, 1000, (5490, 5490), np.uint16)
    about: Any = {"shape": noise.shape, "chunks": noise.shape, "dtype": "<u2"}
    codec = numcodecs.Blosc("zstd", 3, 2)
    zarr.create_array(tmp_path / "a", **about, compressors=codec, zarr_format=2, fill_value=0)[:] = noise
    sizes, plain = [], objects.StoredObject.read

    def counted(self: objects.StoredObject, start: int, stop: int) -> bytes:
        sizes.append(stop - start)
        return plain(self, start, stop)

    monkeypatch.setattr(objects.StoredObject, "read", counted)
    window = Window(row=2000, col=3000, height=404, width=404)
    values = read(tmp_path / "a", window, 0)
    assert np.array_equal(values, noise[window.slices])
    assert len(sizes) <= 6  # header and table, then runs of blocks, which threads may store in any order
    assert sum(sizes) <= 0.085 * (tmp_path / "a" / "0.0").stat().st_size


# --- products ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(city: Path) -> Path:
    return sorted(path for path in (city / "sentinel-2-l2a").iterdir() if path.is_dir())[0]


@pytest.fixture(scope="module")
def bounds(scene: Path) -> Bounds:
    """Return an area inside the scene."""
    with geotiff.open_raster(str(scene / "B02.tif")) as dataset:
        west, south, east, north = geotiff.read_header(dataset).grid.bounds
    return (west + 480, south + 360, east - 600, north - 240)


@pytest.fixture(scope="module")
def plain(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a product as the simulator writes it."""
    return zarr_stores.product(scene, tmp_path_factory.mktemp("plain"))


def request(href: Path | str, bounds: Bounds, target: Path, crs: str = "EPSG:32632", **asset: Any) -> Any:
    return scene_files.WindowRequest(
        name="S B04", asset=Asset(href=str(href), **asset), crs=crs, bounds=bounds, target=target, kernel="bilinear"
    )


@pytest.mark.parametrize("kind", zarr_stores.KINDS)
def test_windows_equal_those_of_geotiffs(kind: str, scene: Path, bounds: Bounds, tmp_path: Path) -> None:
    store = zarr_stores.rewrite(zarr_stores.product(scene, tmp_path / "a"), kind)
    zone_33 = transform_bounds("EPSG:32632", "EPSG:32633", *bounds)
    for band in ("B01", "B04", "B8A", "SCL"):
        array = store / array_paths()[band]
        for crs, area in (("EPSG:32632", bounds), ("EPSG:32633", zone_33)):
            one, two = (
                window_staging.stage(request(href, area, tmp_path / f"{band}-{crs[-2:]}-{href.suffix}", crs))
                for href in (scene / f"{band}.tif", array)
            )
            assert (one.grid, one.dtype, one.holes) == (two.grid, two.dtype, two.holes)
            assert one.pixels.any()
            assert one.sha256 == two.sha256, (band, crs)


def test_what_the_simulator_writes_opens_with_the_zarr_library(scene: Path, tmp_path: Path) -> None:
    store = zarr_stores.product(scene, tmp_path / "a", offset=True)
    root = zarr.open_group(store, mode="r")
    for band, path in (("B02", "measurements/reflectance/r10m/b02"), ("B01", "measurements/reflectance/r60m/b01")):
        with rasterio.open(scene / f"{band}.tif") as dataset:
            assert np.array_equal(root[path][:], dataset.read(1))
            west = dataset.transform.c
        attributes = root[path].attrs
        assert (attributes["scale_factor"], attributes["add_offset"], attributes["proj:epsg"]) == (0.0001, -0.1, 32632)
        gsd = attributes["proj:transform"][0]
        assert root[path.replace("b0", "x")[:-1]][0] == west + gsd / 2
    assert root["measurements/reflectance/r20m/b01"].shape == root["measurements/reflectance/r20m/b05"].shape
    assert root["quality/probability/r20m/cld"][:].max() <= 100


def test_a_changed_array_is_read_again(scene: Path, bounds: Bounds, tmp_path: Path) -> None:
    store = zarr_stores.product(scene, tmp_path / "a")
    array = store / "measurements" / "reflectance" / "r10m" / "b04"
    first = window_staging.stage(request(array, bounds, tmp_path / "w"))
    before = Path(first.path).stat().st_mtime_ns
    assert Path(window_staging.stage(request(array, bounds, tmp_path / "w")).path).stat().st_mtime_ns == before
    zarr.open_array(array, mode="r+")[50:60, 50:60] += 1
    again = window_staging.stage(request(array, bounds, tmp_path / "w"))
    assert again.sha256 != first.sha256


def test_a_mask_without_chunk_is_no_clear_ground(scene: Path, bounds: Bounds, tmp_path: Path) -> None:
    store = zarr_stores.product(scene, tmp_path / "a")
    (store / array_paths()["SCL"] / "0.0").unlink()  # else a band must have data
    for path, expected in (
        ("quality/probability/r20m/cld", MASK_NODATA),
        ("measurements/reflectance/r10m/b04", 0),
    ):
        (store / path / "0.0").unlink()
        window = window_staging.stage(request(store / path, bounds, tmp_path / path.rpartition("/")[2]))
        assert set(np.unique(window.pixels)) == {expected}


@pytest.mark.parametrize("kind", zarr_stores.KINDS)
@pytest.mark.parametrize("band", ["B01", "B04"])
def test_a_lost_chunk_of_a_band_is_not_dark_ground(
    band: str, kind: str, scene: Path, bounds: Bounds, tmp_path: Path
) -> None:
    """A chunk of a band that does not exist, though the classification has data there, on the grid and warped."""
    store = zarr_stores.rewrite(zarr_stores.product(scene, tmp_path / "a"), kind)
    bands, layer = store / array_paths()[band], store / array_paths()["SCL"]
    zone_33 = transform_bounds("EPSG:32632", "EPSG:32633", *bounds)

    def drop(array: Path) -> None:
        for path in [path for path in array.rglob("*") if path.is_file() and not path.name.startswith((".", "zarr"))]:
            path.unlink()

    drop(bands)
    for crs, area in (("EPSG:32632", bounds), ("EPSG:32633", zone_33)):
        with pytest.raises(SourceError, match=f"{band.lower()}/.*: does not exist, but the classification has data"):
            window_staging.stage(request(bands, area, tmp_path / crs[-2:], crs))
    drop(layer)
    assert not window_staging.stage(request(bands, bounds, tmp_path / "none")).pixels.any()


@pytest.mark.parametrize("kind", zarr_stores.KINDS)
def test_a_lost_chunk_of_the_classification_does_not_drop_the_date(
    kind: str, scene: Path, bounds: Bounds, tmp_path: Path
) -> None:
    store = zarr_stores.rewrite(zarr_stores.product(scene, tmp_path / "a"), kind)
    layer, paths = store / array_paths()["SCL"], array_paths().values()

    def drop(array: Path) -> None:
        for path in [path for path in array.rglob("*") if path.is_file() and not path.name.startswith((".", "zarr"))]:
            path.unlink()

    drop(layer)
    drop(store / array_paths()["B01"])
    with pytest.raises(SourceError, match="scl/.*: does not exist, but B02 has data there"):
        window_staging.stage(request(layer, bounds, tmp_path / "w"))
    for path in paths:
        drop(store / path)
    staged = window_staging.stage(request(layer, bounds, tmp_path / "w"))
    assert set(np.unique(staged.pixels)) <= {0, MASK_NODATA}


# --- hostile stores ------------------------------------------------------------------------


def chunk(store: Path) -> Path:
    return store / "measurements" / "reflectance" / "r10m" / "b04" / "0.0"


def array_edit(**changes: Any) -> Callable[[Path], None]:
    """Return what changes the metadata of B04 in the consolidated document."""

    def change(store: Path) -> None:
        document = json.loads((store / ".zmetadata").read_bytes())
        for part in (".zarray", ".zattrs"):
            about = document["metadata"][f"measurements/reflectance/r10m/b04/{part}"]
            about.update({key: value for key, value in changes.items() if (key in about)})
        (store / ".zmetadata").write_text(json.dumps(document))

    return change


def chunk_edit(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda store: (chunk(store).write_bytes(change(chunk(store).read_bytes())), None)[1]


def word(content: bytes, at: int, value: int) -> bytes:
    return content[:at] + struct.pack("<I", value) + content[at + 4 :]


def to_fifo(store: Path) -> None:
    chunk(store).unlink()
    os.mkfifo(chunk(store))


def to_link(store: Path) -> None:
    outside = store.parent / "outside"
    outside.write_bytes(chunk(store).read_bytes())
    chunk(store).unlink()
    chunk(store).symlink_to(outside)


def other_axis(store: Path) -> None:
    document = json.loads((store / ".zmetadata").read_bytes())
    document["metadata"]["measurements/reflectance/r10m/x/.zarray"]["shape"] = [9]
    (store / ".zmetadata").write_text(json.dumps(document))


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (array_edit(compressor={"id": "pickle"}), r"codec 'pickle' is not read, expected one of blosc"),
    "object filter": (array_edit(filters=[{"id": "json2"}]), r"filters 'json2', expected none"),
    "object dtype": (array_edit(dtype="|O"), r"dtype '\|O', expected integers or floats"),
    "three dimensions": (array_edit(shape=[3, 10, 10]), r"shape \(3, 10, 10\) in chunks"),
    "huge chunk": (array_edit(chunks=[2**20, 2**20]), r"2,199,023,255,552 bytes in one block, at most"),
    "huge array": (array_edit(shape=[2**30, 2**30]), r"pixels, at most"),
    "negative": (array_edit(chunks=[-1, 5]), r"chunks is \[-1, 5\], expected positive"),
    "columns first": (array_edit(order="F"), r"order 'F', expected 'C'"),
    "other dtype": (array_edit(dtype="<f4"), r"pixels are float32, expected uint8 or uint16"),
    "other transform": (array_edit(**{"proj:transform": [10, 0, 0, 0, -10, 0]}), r"coordinates give pixels of 10 m"),
    "rotated": (array_edit(**{"proj:transform": [10, 1, 0, 0, -10, 0]}), r"expected square north-up pixels"),
    "other x": (other_axis, r"has shape \(9,\), expected one coordinate for \d+ pixels"),
    "other scale": (array_edit(scale_factor=0.0002), r"scale 0\.0002, expected 0\.0001"),
    "other chunks": (array_edit(chunks=[100, 100]), "does not exist, but the classification has data there"),
    "much too long": (chunk_edit(lambda c: c + bytes(10**6)), r"chunk of [0-9,]+ bytes, decoded it has 162,288 by"),
    "cut in the table": (chunk_edit(lambda c: c[:18]), r"chunk ends too soon|too short"),
    "cut in a block": (chunk_edit(lambda c: c[: len(c) * 6 // 10]), r"chunk ends too soon"),
    "empty": (chunk_edit(lambda c: b""), r"chunk of 0 bytes is no Blosc frame"),
    "Blosc 2": (chunk_edit(lambda c: b"\x05" + c[1:]), r"Blosc format 5, expected 2"),
    "bomb": (chunk_edit(lambda c: word(c, 4, 2**31)), r"chunk decodes to 2,147,483,648 bytes"),
    "blocks of 0": (chunk_edit(lambda c: word(c, 8, 0)), r"Blosc header with blocks of 0"),
    "table outside": (chunk_edit(lambda c: word(c, 16, 2**31)), r"table of Blosc blocks leads outside"),
    "damaged": (chunk_edit(lambda c: c[:40] + b"\xff" * 60 + c[100:]), r"cannot be decoded by Blosc"),
    "pipe": (to_fifo, r"is no file of its store"),
    "link": (to_link, r"is no file of its store"),
    "no JSON": (lambda s: (s / ".zmetadata").write_text("{"), r"cannot be read as JSON"),
    "no metadata": (lambda s: (s / ".zmetadata").write_text("[]"), r"has no 'metadata'"),
    "no array": (lambda s: zarr_stores.edit(s / ".zmetadata", metadata={}), r"the product has no such array"),
}  # fmt: skip


@pytest.mark.parametrize("fill", ["NaN", -1, 1e30, 0.5, None])
def test_fill_values_that_no_pixel_can_have_mark_nothing(
    fill: Any, plain: Path, bounds: Bounds, tmp_path: Path
) -> None:
    store = shutil.copytree(plain, tmp_path / "S.zarr")
    array_edit(fill_value=fill)(store)
    for crs in ("EPSG:32632", "EPSG:32633"):
        area = bounds if crs.endswith("2") else transform_bounds("EPSG:32632", crs, *bounds)
        assert window_staging.stage(request(chunk(store).parent, area, tmp_path / crs[-2:], crs)).pixels.any()


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_stores_are_refused_in_one_line(case: str, plain: Path, bounds: Bounds, tmp_path: Path) -> None:
    change, expected = HOSTILE[case]
    store = shutil.copytree(plain, tmp_path / "S.zarr")
    change(store)
    with pytest.raises(SourceError, match=expected) as refused:
        window_staging.stage(request(chunk(store).parent, bounds, tmp_path / "w"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "w.bin").exists()


V3: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [8, 8], "data_type": "uint16", "fill_value": 0, "attributes": {},
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 8]}}, "codecs": [{"name": "bytes"}],
    "chunk_key_encoding": {"name": "default"},
}  # fmt: skip
SHARD: dict[str, Any] = {
    "name": "sharding_indexed",
    "configuration": {"chunk_shape": [4, 4], "codecs": [{"name": "bytes"}], "index_codecs": [{"name": "bytes"}]},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"node_type": "group"}, "node_type 'group', expected 3 and 'array'"),
        ({"codecs": [{"name": "pickle"}]}, "codec 'pickle' is not read"),
        ({"codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}]}, "codec 'numcodecs.pickle' is not read"),
        ({"codecs": [SHARD, {"name": "zstd"}]}, "compressed as a whole"),
        ({"codecs": []}, "has no codecs"),
        ({"codecs": "bytes"}, "codecs is 'bytes', expected a list"),
        ({"data_type": {"name": "object"}}, "expected integers or floats"),
        ({"chunk_grid": {"name": "rectangular"}}, "chunk_grid 'rectangular'"),
        ({"chunk_key_encoding": {"name": "../x"}}, "chunk_key_encoding '../x'"),
        (
            {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "/../"}}},
            "separator of chunk keys",
        ),
        ({"storage_transformers": [{}]}, "has storage_transformers"),
        ({"fill_value": "0x00"}, "fill_value is '0x00'"),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": []}}]}, "endian [], expected"),
        ({"chunk_key_encoding": {"name": "v2", "configuration": {"separator": []}}}, "separator of chunk keys is []"),
        ({"shape": [8, True]}, "expected positive whole numbers"),
    ],
)
def test_metadata_of_format_3_are_refused_by_name(changes: dict[str, Any], expected: str) -> None:
    assert zarr_metadata.parse_v3(V3, "x").key((1, 2)) == "c/1/2"
    with pytest.raises(SourceError, match=expected.replace(".", r"\.").replace("[", r"\[")):
        zarr_metadata.parse_v3(V3 | changes, "x")


def test_deeply_nested_shards_are_refused() -> None:
    codec: dict[str, Any] = {"name": "bytes"}
    for _ in range(400):
        inside = {"chunk_shape": [4, 4], "codecs": [codec], "index_codecs": [{"name": "bytes"}]}
        codec = {"name": "sharding_indexed", "configuration": inside}
    with pytest.raises(SourceError, match="shards inside shards"):
        zarr_metadata.parse_v3(V3 | {"codecs": [codec]}, "x")


@pytest.mark.parametrize(("at", "value"), [(0, 2**63), (8, 2**40), (0, 10**9)])
def test_damaged_index_of_a_shard_is_refused(tmp_path: Path, at: int, value: int) -> None:
    zarr.create_array(
        tmp_path / "a", shape=(8, 8), chunks=(4, 4), shards=(8, 8), dtype="u2", compressors=None, zarr_format=3,
        fill_value=0,
    )[:] = VALUES[:8, :8]  # fmt: skip
    path = tmp_path / "a" / "c" / "0" / "0"
    content, start = bytearray(path.read_bytes()), path.stat().st_size - 4 * 16 - 4
    whole = Window(row=0, col=0, height=8, width=8)
    content[start + at : start + at + 8] = struct.pack("<Q", value)
    path.write_bytes(content)
    with pytest.raises(SourceError, match="checksum CRC-32C differs"):
        read(tmp_path / "a", whole, 0)
    content[-4:] = struct.pack("<I", crc32c.crc32c(bytes(content[start:-4])))
    path.write_bytes(content)
    with pytest.raises(SourceError, match="shard has a chunk of|ends too soon"):
        read(tmp_path / "a", whole, 0)


# --- real metadata -------------------------------------------------------------------------


def test_arrays_of_real_products_are_understood(real: Path) -> None:
    names = sorted((real / "eopf").glob("*.json"))
    assert len(names) == 3
    for name in names:
        tree = json.loads(name.read_bytes())
        metadata = dict(flat(tree, ""))
        level = name.name[7:10]
        for band, path in array_paths().items():
            if path not in metadata:
                assert (band == "B10") if level == "L2A" else band in {"SCL", "cloud"}, (level, band)
                continue
            node = metadata[path]
            about = {key: value for key, value in node.items() if key != "attributes"}
            array = zarr_metadata.parse_v2(about, node["attributes"], path)
            assert array.shape[0] * float(node["attributes"]["proj:transform"][0]) == 109_800
            assert array.inner_codecs == ("blosc",)
            assert (array.fill == 0) == (band in MSI.by_name)


def flat(node: dict[str, Any], path: str) -> Any:
    for name, one in node.get("members", {}).items():
        yield from flat(one, f"{path}/{name}" if path else name)
    if "shape" in node:
        yield path, node


def test_locations_are_parts_of_names_only() -> None:
    where = zarr_addresses.locate("https://h/x.zarr/measurements/r10m/b02?sig=1")
    assert (where.store, where.path) == ("https://h/x.zarr?sig=1", "measurements/r10m/b02")
    for href in ("/a/x.zarr", "/a/x.zarr/../../etc", "/a/x.zarr/a//b", "/a/x.tif", "https://h/x.zarr/a b"):
        with pytest.raises(SourceError, match="names no array"):
            zarr_addresses.locate(href)


# --- on servers ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", zarr_stores.KINDS)
def test_windows_on_a_server_equal_those_on_disk(kind: str, scene: Path, bounds: Bounds, tmp_path: Path) -> None:
    store = zarr_stores.rewrite(zarr_stores.product(scene, tmp_path / "a"), kind)
    with served.serving(tmp_path) as server:
        for band in ("B04", "SCL"):
            path = f"a/{store.name}/{array_paths()[band]}"
            one = window_staging.stage(request(tmp_path / path, bounds, tmp_path / band))
            two = window_staging.stage(request(f"{server.url}/{path}", bounds, tmp_path / f"{band}-remote"))
            assert (one.grid, one.sha256) == (two.grid, two.sha256)
        asked = [path for path in server.asked if "/b04/" in path]
        if kind == "v2":  # head and table, then the blocks; a small chunk comes with the first request
            assert len(asked) <= 2


def test_a_failed_request_is_an_error_and_a_missing_chunk_is_none(
    scene: Path, bounds: Bounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = zarr_stores.product(scene, tmp_path / "a")
    path = array_paths()["B04"]
    once = partial(ObjectFolder, retries=RangeRetries(count=0))
    monkeypatch.setattr(zarr_store, "ObjectFolder", once)
    monkeypatch.setattr(window_staging, "RETRY", retry.RetryPolicy(tries=1))
    status, lost = 0, False

    def fault(handler: served.Files, content: bytes) -> bool:
        if not status or not ("/b04/" in handler.path or (status == 404 and "/scl/0.0" in handler.path and lost)):
            return False
        handler.give(status, b"no")
        return True

    with served.serving(tmp_path, fault) as server:
        asset = f"{server.url}/a/{store.name}/{path}"
        for status in (403, 500, 503):
            with pytest.raises(SourceError, match=f"cannot be read: HTTP response code {status}"):
                window_staging.stage(request(asset, bounds, tmp_path / "w"))
        status = 404
        with pytest.raises(SourceError, match="does not exist, but the classification has data"):
            window_staging.stage(request(asset, bounds, tmp_path / "w"))
        lost = True
        assert not window_staging.stage(request(asset, bounds, tmp_path / "w")).pixels.any()


def test_a_changed_chunk_on_a_server_is_read_again(scene: Path, bounds: Bounds, tmp_path: Path) -> None:
    store = zarr_stores.product(scene, tmp_path / "a")
    path = store / array_paths()["B04"]

    def tagged(handler: served.Files, content: bytes) -> bool:
        file = tmp_path / handler.path.lstrip("/")
        total, (first, last) = file.stat().st_size, handler.headers["Range"].removeprefix("bytes=").split("-")
        headers = {
            "ETag": f'"{file.stat().st_mtime_ns}"',
            "Content-Range": f"bytes {first}-{min(int(last), total - 1)}/{total}",
        }
        handler.give(206, content, headers)
        return True

    with served.serving(tmp_path, tagged) as server:
        asked = request(f"{server.url}/{path.relative_to(tmp_path)}", bounds, tmp_path / "w")
        first = window_staging.stage(asked)
        written = Path(first.path).stat().st_mtime_ns
        assert first.source
        assert Path(window_staging.stage(asked).path).stat().st_mtime_ns == written
        zarr.open_array(path, mode="r+")[50, 50] += 1
        assert window_staging.stage(asked).sha256 != first.sha256


@pytest.mark.parametrize("kind", zarr_stores.KINDS)
def test_what_is_kept_of_a_store_is_not_asked_for_again(kind: str, scene: Path, bounds: Bounds, tmp_path: Path) -> None:
    store = zarr_stores.rewrite(zarr_stores.product(scene, tmp_path / "a"), kind)
    path = store / array_paths()["B04"]
    sent: list[tuple[str, int]] = []

    def dated(handler: served.Files, content: bytes) -> bool:
        file = tmp_path / handler.path.lstrip("/")
        total, (first, last) = file.stat().st_size, handler.headers["Range"].removeprefix("bytes=").split("-")
        tag = f'"{file.stat().st_mtime_ns}"'
        sent.append((file.name, len(content)))
        if handler.headers.get("If-Match", tag) != tag:
            handler.give(412, b"")
        else:
            span = f"bytes {first}-{min(int(last), total - 1)}/{total}"
            handler.give(206, content, {"ETag": tag, "Content-Range": span})
        return True

    def stage(name: str) -> str:
        zarr_store._consolidated.cache_clear()
        zarr_store._read_axis.cache_clear()
        server.asked.clear()
        sent.clear()
        asked = request(f"{server.url}/{path.relative_to(tmp_path)}", bounds, tmp_path / name)
        return window_staging.stage(replace(asked, headers=tmp_path / "kept")).sha256

    with served.serving(tmp_path, dated) as server:
        first = stage("first")
        chunks = {name for name in server.asked if "/b04/" in name}
        assert len(server.asked) > len(chunks)
        assert stage("second") == first
        # Pixels alone, and whether the metadata are still those.
        (metadata,) = {name for name in server.asked if name not in chunks}
        assert [size for name, size in sent if name == Path(metadata).name] == [1]
        large = path / "0.0"
        if large.is_file() and large.stat().st_size > objects.HEAD_BYTES:
            zarr.open_array(path, mode="r+")[50:60, 50:60] += 1
            assert stage("third") != first  # given up, and read again
        document = tmp_path / metadata.lstrip("/")
        document.write_text(document.read_text().replace('"scale_factor": 0.0001', '"scale_factor": 0.0002'))
        with pytest.raises(SourceError, match="0.0002"):
            stage("other metadata")


def test_chunks_of_one_array_are_requested_at_a_time(scene: Path, bounds: Bounds, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 60000, (256, 256), np.uint16)
    about: Any = {"shape": values.shape, "chunks": (128, 64), "dtype": "<u2", "compressors": V2_CODECS["blosc"]}
    zarr.create_array(tmp_path / "s.zarr" / "a", **about, zarr_format=2, fill_value=0)[:] = values
    flying, most, lock = 0, 0, threading.Lock()

    def slow(handler: served.Files, content: bytes) -> bool:
        nonlocal flying, most
        with lock:
            flying += 1
            most = max(most, flying)
        time.sleep(0.1)
        with lock:
            flying -= 1
        return False

    with served.serving(tmp_path, slow) as server:
        reader = zarr_store.open_array(f"{server.url}/s.zarr/a")
        most = 0
        strips = reader.strips(Window(row=0, col=0, height=256, width=256), 0)
        assert np.array_equal(np.concatenate([*map(np.copy, strips)]), values)
    assert most >= 4


def test_windows_in_a_bucket(scene: Path, bounds: Bounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = zarr_stores.product(scene, tmp_path / "bucket")
    path = array_paths()["B04"]
    payers = set()

    def note(handler: served.Files, content: bytes) -> bool:
        payers.add((handler.headers.get("Authorization", "")[:4], handler.headers.get("x-amz-request-payer", "")))
        return False

    with served.serving(tmp_path, note) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
        remote = window_staging.stage(request(f"s3://bucket/{store.name}/{path}", bounds, tmp_path / "w"))
        again = window_staging.stage(request(f"s3://bucket/{store.name}/{path}", bounds, tmp_path / "w"))
        assert (
            again.sha256 == remote.sha256 == window_staging.stage(request(store / path, bounds, tmp_path / "v")).sha256
        )
        assert payers == {("AWS4", "requester")}
        for lost in (path, array_paths()["SCL"]):
            (store / lost / "0.0").unlink()
        assert not window_staging.stage(
            request(f"s3://bucket/{store.name}/{path}", bounds, tmp_path / "u")
        ).pixels.any()


def test_no_chunk_is_loaded_after_one_failed() -> None:
    array = zarr_metadata.ZarrArray(shape=(1, 2), chunks=(1, 1), dtype="<u2", fill=0, codecs=())
    reader = zarr_chunks.ChunkReader(array=array, folder=ObjectFolder(href="http://127.0.0.1/a.zarr/b"))
    loaded = []

    def load(place: tuple[int, int]) -> None:
        if place == (0, 0):
            raise SourceError("lost")
        time.sleep(0.2)
        loaded.append(place)

    with pytest.raises(SourceError, match="lost"):
        reader._for_each([(0, 0), (0, 1)], load)
    assert loaded == [(0, 1)]
