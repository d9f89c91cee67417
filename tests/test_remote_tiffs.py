"""Test the block reader of GeoTIFFs on servers: pixels as from GDAL, one request per joined range, faults by name."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import served
from rasterio.transform import from_origin
from served import Files

from sgdata.errors import SourceError
from sgdata.rasters import geotiff, tiff_blocks, tiff_header
from sgdata.rasters.tiff_header import OtherLayoutError
from sgdata.remote import file_identity, host_limits
from sgdata.scenes.types import Asset
from sgdata.sentinel2 import MSI, SceneClass
from sgdata.staging import gdal_files, remote_tiffs, scene_staging, window_staging
from sgdata.staging.scene_files import SceneFile, WindowRequest
from sgdata.staging.scene_staging import StagedScene
from sgdata.types import Array, Bounds, Window

CRS = "EPSG:32632"
SHAPE = (620, 530)
BOUNDS: Bounds = (601000.0, 5395000.0, 603000.0, 5399000.0)


def pixels(dtype: str = "uint16") -> Array:
    values = np.random.Generator(np.random.Philox(key=1)).integers(1, 400, SHAPE).astype(dtype)
    values[100:300], values[::7, ::5] = 0, 9
    return values


def write(path: Path, values: Array, **options: Any) -> Path:
    about = {"driver": "COG", "count": 1, "crs": CRS, "transform": from_origin(600000, 5400000, 10, 10), **options}
    about |= {"dtype": values.dtype, "height": values.shape[0], "width": values.shape[1]}
    with rasterio.open(path, "w", **about) as dataset:
        dataset.write(values, 1)
    return path


def request_for(href: str, folder: Path, **changes: Any) -> WindowRequest:
    request = WindowRequest(name="x B02", asset=Asset(href=href), crs=CRS, bounds=BOUNDS, target=folder / "window")
    return replace(request, **changes)


def whole(file: SceneFile) -> Array:
    return np.concatenate([strip.copy() for strip in file.rows()])


def chosen(driver: str, **options: Any) -> dict[str, Any]:
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 256} if options.pop("tiles", False) else {}
    return {"driver": driver, **(tiles if driver == "GTiff" else {"blocksize": 128}), **options}


TAKEN = [
    *(chosen("COG", compress=name) for name in ("DEFLATE", "LZW", "ZSTD", "NONE")),
    chosen("COG", compress="DEFLATE", predictor="STANDARD", nodata=9, bigtiff="YES"),
    chosen("COG", compress="LZW", predictor="STANDARD", sparse_ok=True, nodata=9),
    chosen("GTiff", compress="DEFLATE", predictor=2, endianness="BIG", tiles=True),
    chosen("GTiff", compress="ZSTD", bigtiff="YES", endianness="BIG", nodata=9, tiles=True, sparse_ok=True),
    chosen("GTiff", compress="LZW", predictor=2, nodata=9, blockysize=100),
    chosen("GTiff", sparse_ok=True, blockysize=64),
]


@pytest.mark.parametrize("options", TAKEN, ids=lambda options: "-".join(map(str, options.values())))
def test_pixels_are_those_of_gdal(options: dict[str, Any], tmp_path: Path) -> None:
    """Every layout that is taken, in both data types, and any part of the window."""
    for dtype in ("uint16", "uint8"):
        values = pixels(dtype)
        if options.get("sparse_ok"):
            values[256:] = 0
        path = write(tmp_path / f"{dtype}.tif", values, **options)
        with served.serving(tmp_path) as server:
            request = request_for(f"{server.url}/{path.name}", tmp_path)
            with gdal_files.open_with_gdal(request, request.asset.href) as file:
                expected = whole(file)
            with remote_tiffs.open_remote_tiff(request, request.asset.href) as own:
                assert replace(own, strips=file.strips, identity="") == replace(file, identity="")
                np.testing.assert_array_equal(whole(own), expected)
                parts = [
                    Window(row=60, col=70, height=200, width=33),
                    Window(row=60, col=120, height=30, width=20),
                    Window(row=100, col=110, height=100, width=90),
                ]
                found, covered = np.zeros_like(expected), np.zeros(expected.shape, bool)
                for at, values in own.strips(parts):
                    found[at.slices], covered[at.slices] = values, True
                for part in parts:
                    np.testing.assert_array_equal(found[part.slices], expected[part.slices])
                assert covered.sum() == sum(part.height * part.width for part in parts)


@pytest.mark.parametrize("nodata", [None, 0, 255])
def test_blocks_that_a_classification_leaves_out_have_no_data(nodata: int | None, tmp_path: Path) -> None:
    values = np.full(SHAPE, SceneClass.DARK, np.uint8)
    values[:128] = 0 if nodata is None else nodata  # not stored
    write(tmp_path / "a.tif", values, **chosen("COG", compress="DEFLATE", sparse_ok=True, nodata=nodata))
    with served.serving(tmp_path) as server:
        for number, href in enumerate((str(tmp_path / "a.tif"), f"{server.url}/a.tif")):
            layer = window_staging.stage(request_for(href, tmp_path, target=tmp_path / str(number)))
            scene = StagedScene(id="x", overpass="x", day=0, offset=0, files={MSI.classes.layer: layer})
            data = scene_staging.data_mask(scene, ("B02", "B03"), layer.grid)
            row = (layer.grid.origin[1] - 5400000) / -10
            np.testing.assert_array_equal(data.all(axis=1), np.arange(layer.grid.shape[0]) + row >= 128)


OTHER = {
    "JPEG": {"compress": "JPEG"},
    "float": {"dtype": "float32"},
    "mask": {"mask": True},
    "two bands": {"count": 2},
    "degrees": {"crs": "EPSG:4326"},
    "no GeoTIFF": {"driver": "PNG"},
}


@pytest.mark.parametrize("name", OTHER)
def test_other_layouts_are_left_to_gdal(name: str, tmp_path: Path) -> None:
    options = {**chosen("GTiff", compress="DEFLATE", tiles=True), **OTHER[name]}
    masked, dtype = options.pop("mask", False), options.pop("dtype", "uint8")
    about = {"crs": CRS, "transform": from_origin(600000, 5400000, 10, 10), "count": 1, **options}
    values = pixels("uint8").astype(dtype)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(tmp_path / "a.tif", "w", dtype=dtype, height=SHAPE[0], width=SHAPE[1], **about) as dataset,
    ):
        for band in dataset.indexes:
            dataset.write(values, band)
        if masked:
            dataset.write_mask(values != 9)
    with served.serving(tmp_path) as server:
        request = request_for(f"{server.url}/a.tif", tmp_path)
        with pytest.raises(OtherLayoutError), remote_tiffs.open_remote_tiff(request, request.asset.href):
            pass


def test_most_of_a_jpeg_2000_file_is_fetched_at_once(tmp_path: Path) -> None:
    about = {"driver": "JP2OpenJPEG", "blockxsize": 128, "blockysize": 128, "quality": 100, "reversible": True}
    write(tmp_path / "a.jp2", pixels(), **about)
    few = (*BOUNDS[:2], BOUNDS[0] + 300, BOUNDS[1] + 300)
    with served.serving(tmp_path) as server:
        for bounds in (BOUNDS, few):
            found = []
            for number, href in enumerate((str(tmp_path / "a.jp2"), f"{server.url}/a.jp2")):
                server.asked.clear()
                target = tmp_path / f"{number}-{bounds[2]:.0f}"
                found.append(window_staging.stage(request_for(href, tmp_path, bounds=bounds, target=target)).sha256)
            assert found[0] == found[1]
            assert len(server.asked) <= 9
        values = (tmp_path / "a.jp2").read_bytes()
        (tmp_path / "a.jp2").write_bytes(values[: len(values) // 2])
        for href in (str(tmp_path / "a.jp2"), f"{server.url}/a.jp2"):
            request = request_for(href, tmp_path, target=tmp_path / "cut")
            with (
                pytest.raises(SourceError, match=r"/a\.jp2: cannot be read"),
                window_staging.open_scene_file(request, href) as file,
            ):
                whole(file)


def test_a_jpeg_2000_file_is_fetched_once_for_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of two files that do not fit in memory together one after the other."""
    about = {"driver": "JP2OpenJPEG", "blockxsize": 128, "blockysize": 128, "quality": 100, "reversible": True}
    write(tmp_path / "a.jp2", pixels(), **about)
    size = (tmp_path / "a.jp2").stat().st_size
    monkeypatch.setattr(gdal_files, "WHOLE_BYTES", size * 3 // 2)
    served_bytes, held = [], []

    def counted(handler: Files, content: bytes) -> bool:
        served_bytes.append(len(content) if handler.command == "GET" else 0)
        held.append(gdal_files._held.bytes)
        return False

    def read(href: str) -> Array:
        request = request_for(href, tmp_path, bounds=(600000.0, 5394000.0, 605000.0, 5400000.0))
        with window_staging.open_scene_file(request, href) as file:
            height, width = file.grid.shape
            halves = [Window(row=0, col=n * width // 2, height=height, width=width // 2) for n in range(2)]
            found = np.zeros(file.grid.shape, np.uint16)
            for at, values in file.strips(halves):
                found[at.slices] = values
            return found

    expected = read(str(tmp_path / "a.jp2"))
    with served.serving(tmp_path, counted) as server:
        np.testing.assert_array_equal(read(f"{server.url}/a.jp2"), expected)
        assert sum(served_bytes) < 1.5 * size
        with ThreadPoolExecutor(2) as threads:
            for found in threads.map(read, [f"{server.url}/a.jp2"] * 2):
                np.testing.assert_array_equal(found, expected)
    assert set(held) == {0, size} and gdal_files._held.bytes == 0


def test_requests_that_settings_change_are_left_to_gdal(monkeypatch: pytest.MonkeyPatch) -> None:
    href = "https://a.example/x/B02.tif"
    assert remote_tiffs.can_read(href) and remote_tiffs.can_read(f"{href}?sig=a%2Fb")
    for other in ("https://a.example/B02.jp2", "https://u:p@a.example/B02.tif", "/disk/B02.tif", f"{href}%20"):
        assert not remote_tiffs.can_read(other)
    monkeypatch.setenv("GDAL_HTTP_HEADERS", "X-Key: 1")
    assert not remote_tiffs.can_read(href)


def test_a_header_is_asked_for_once_and_kept(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", pixels(), **chosen("COG", compress="DEFLATE"))
    state = {"etag": '"1"'}
    heads: list[str] = []

    def tagged(handler: Files, content: bytes) -> bool:
        heads.append(f"{handler.command} {handler.headers['Range']}")
        return answer(handler, content, etag=state["etag"])

    with served.serving(tmp_path, tagged) as server:
        request = request_for(f"{server.url}/a.tif", tmp_path, headers=tmp_path / "headers")
        first = window_staging.stage(request)
        assert heads[0] == f"GET bytes=0-{min(tiff_header.HEADER_BYTES, (tmp_path / 'a.tif').stat().st_size) - 1}" or (
            heads[0] == f"GET bytes=0-{tiff_header.HEADER_BYTES - 1}"
        )
        assert not [line for line in heads if line.startswith("HEAD")]
        asked = len(heads)
        # Another window of the file, as of a rebuild without scratch: only its blocks.
        heads.clear()
        second = window_staging.stage(replace(request, target=tmp_path / "again"))
        assert second.sha256 == first.sha256 and second.source == first.source
        assert len(heads) == asked - 1 and not [line for line in heads if "bytes=0-" in line]
        # The file changes: the kept header is of another one.
        write(tmp_path / "a.tif", pixels() + 1, **chosen("COG", compress="DEFLATE"))
        state["etag"] = '"2"'
        third = window_staging.stage(replace(request, target=tmp_path / "changed"))
        fresh = window_staging.stage(replace(request, target=tmp_path / "fresh", headers=None))
        assert third.sha256 == fresh.sha256 != first.sha256


@pytest.mark.parametrize("about", [{"ETag": '"1"'}, {"Last-Modified": "Mon, 02 Nov 2026 03:04:05 GMT"}, {}])
def test_a_file_is_identified_as_by_other_requests(about: dict[str, str], tmp_path: Path) -> None:
    """A later run compares what the first answer said with an answer to another client."""
    path = write(tmp_path / "a.tif", pixels(), **chosen("COG", compress="DEFLATE"))

    def dated(handler: Files, content: bytes) -> bool:
        start = int(handler.headers["Range"].removeprefix("bytes=").partition("-")[0])
        span = f"bytes {start}-{start + len(content) - 1}/{path.stat().st_size}"
        handler.give(206, content, {"Content-Range": span, **about})
        return True

    with served.serving(tmp_path, dated) as server:
        request = request_for(f"{server.url}/a.tif", tmp_path)
        source = window_staging.stage(request).source
        assert source == file_identity.identify_address(request.asset.href)
    assert bool(source) == bool(about)


@pytest.mark.parametrize("way", ["keys", "endpoint of GDAL", "anonymous", "profile"])
def test_buckets_are_read_with_the_settings_of_the_user(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.tif", pixels(), **chosen("COG", compress="DEFLATE"))
    (tmp_path / "bucket").mkdir()
    (tmp_path / "a.tif").rename(tmp_path / "bucket" / "a.tif")
    expected = window_staging.stage(request_for(str(tmp_path / "bucket" / "a.tif"), tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    asked: list[tuple[str, str, str]] = []

    def signed(handler: Files, content: bytes) -> bool:
        about = handler.headers
        asked.append((handler.command, about.get("Authorization", "")[:9], about.get("x-amz-request-payer", "")))
        return answer(handler, content)

    with served.serving(tmp_path, signed) as server:
        monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
        if way == "endpoint of GDAL":
            for name, value in {
                "AWS_S3_ENDPOINT": server.url.removeprefix("http://"),
                "AWS_HTTPS": "NO",
                "AWS_VIRTUAL_HOSTING": "FALSE",
            }.items():
                monkeypatch.setenv(name, value)
        else:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        if way in ("keys", "endpoint of GDAL"):
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        if way == "profile":
            monkeypatch.setenv("AWS_PROFILE", "me")
            assert not remote_tiffs.can_read("s3://bucket/a.tif")
            return
        assert remote_tiffs.can_read("s3://bucket/a.tif")
        request = request_for("s3://bucket/a.tif", tmp_path, target=tmp_path / "b")
        staged = window_staging.stage(request)
    assert (staged.sha256, staged.source) == (expected.sha256, "")
    sign, payer = ("", "") if way == "anonymous" else ("AWS4-HMAC", "requester")
    assert set(asked) == {("GET", sign, payer)}


def test_ranges_are_joined(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels(), **chosen("COG", compress="DEFLATE"))
    table = tiff_header.parse({0: path.read_bytes()}, path.stat().st_size, "a")
    runs = tiff_blocks.plan_ranges(table, [Window(row=0, col=0, height=SHAPE[0], width=SHAPE[1])])
    assert len(runs) == 1 and len(runs[0].blocks) == table.offsets.size  # leaders of 8 bytes lie between them
    needed = int(table.sizes[:, 1:3].sum())
    runs = tiff_blocks.plan_ranges(table, [Window(row=0, col=128, height=SHAPE[0], width=256)])
    assert len(runs) == table.offsets.shape[0]  # the blocks on either side are too much to read as well
    assert needed <= sum(run.stop - run.start for run in runs) <= (1 + tiff_blocks.GAP_SHARE) * needed


# --- faults --------------------------------------------------------------------------------


def answer(handler: Files, content: bytes, *, etag: str = '"1"', shift: int = 0, status: int = 206) -> bool:
    """Answer a request for a range as asked, or with other headers."""
    start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]) + shift
    size = (handler.server.folder / handler.path.partition("?")[0].lstrip("/")).stat().st_size
    about = {"Content-Range": f"bytes {start}-{start + max(len(content), 1) - 1}/{size}", "ETag": etag}
    if handler.headers.get("If-Match", etag) != etag:
        handler.give(412, b"")
    else:
        handler.give(status, content, about)
    return True


def cut_short(handler: Files, content: bytes) -> bool:
    return answer(handler, content[: len(content) // 2])


def cut_body(handler: Files, content: bytes) -> bool:
    """Say that all bytes come, and send half in an answer that ends properly."""
    start = int(handler.headers["Range"].removeprefix("bytes=").partition("-")[0])
    about = {"Content-Range": f"bytes {start}-{start + len(content) - 1}/{10**6}", "ETag": '"1"'}
    handler.give(206, content[: len(content) // 2], about)
    return True


def too_long(handler: Files, content: bytes) -> bool:
    start = int(handler.headers["Range"].removeprefix("bytes=").partition("-")[0])
    about = {"Content-Range": f"bytes {start}-{start + len(content) - 1}/{10**6}", "ETag": '"1"'}
    handler.give(206, content + bytes(100), about)
    return True


def busy(handler: Files, content: bytes) -> bool:
    handler.give(429, b"busy", {"Retry-After": "0"})
    return True


def dropped(handler: Files, content: bytes) -> bool:
    handler.drop()
    return True


FAULTS = {
    "short range": cut_short,
    "short body": cut_body,
    "long body": too_long,
    "other range": lambda handler, content: answer(handler, content, shift=7),
    "200": lambda handler, content: answer(handler, content, status=200),
    "other file": lambda handler, content: answer(handler, content, etag='"2"'),
    "429": busy,
    "503": lambda handler, content: bool(handler.give(503, b"busy")) or True,
    "500": lambda handler, content: bool(handler.give(500, b"")) or True,
    "403": lambda handler, content: bool(handler.give(403, b"")) or True,
    "404": lambda handler, content: bool(handler.give(404, b"")) or True,
    "dropped": dropped,
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(window_staging, "RETRY", replace(window_staging.RETRY, wait_s=0.01))
    monkeypatch.setitem(geotiff.READING, "GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.setitem(geotiff.READING, "GDAL_HTTP_MAX_RETRY", "2")
    monkeypatch.setattr(tiff_header, "HEADER_BYTES", 2048)
    host_limits.of_host.cache_clear()
    yield
    host_limits.of_host.cache_clear()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("often", [1, 10**6])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_range_gives_the_same_pixels_or_names_the_file(name: str, often: int, tmp_path: Path) -> None:
    """Where the header arrived and the ranges behind it fail, once or always; nothing is answered by GDAL instead."""
    write(tmp_path / "a.tif", pixels(), **chosen("COG", compress="DEFLATE"))
    left, lock = [often], threading.Lock()

    def fault(handler: Files, content: bytes) -> bool:
        with lock:
            left[0] -= 0 if "bytes=0-" in handler.headers["Range"] else 1
            fails = "bytes=0-" not in handler.headers["Range"] and left[0] >= 0
        return FAULTS[name](handler, content) if fails else answer(handler, content)

    expected = window_staging.stage(request_for(str(tmp_path / "a.tif"), tmp_path))
    with served.serving(tmp_path, fault) as server:
        request = request_for(f"{server.url}/a.tif?sig=secret", tmp_path, target=tmp_path / "b")
        if often == 1:
            assert window_staging.stage(request).sha256 == expected.sha256
            return
        with pytest.raises(SourceError, match=r"a\.tif: cannot be read") as caught:
            window_staging.stage(request)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "b.bin").exists() and not (tmp_path / "b.json").exists()


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_down_is_named_without_address_and_query(tmp_path: Path) -> None:
    """The reason of a scene that is left out stands in its lock, which does not depend on ports."""
    port = served.free_port()
    request = request_for(f"http://127.0.0.1:{port}/a.tif?sig=secret&key=secret", tmp_path)
    with pytest.raises(SourceError) as caught:
        window_staging.stage(request)
    reason = str(caught.value).removeprefix(f"http://127.0.0.1:{port}/a.tif: ")
    assert reason == "cannot be read: ConnectionError: Connection refused; fetch it again or leave it out"


def test_a_damaged_block_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels(), **chosen("COG", compress="DEFLATE"))
    table = tiff_header.parse({0: path.read_bytes()}, path.stat().st_size, "a")
    content = bytearray(path.read_bytes())
    at = int(table.offsets[2, 2])
    content[at + 20 : at + 60] = bytes(40)
    path.write_bytes(content)
    with served.serving(tmp_path) as server:
        request = request_for(f"{server.url}/a.tif", tmp_path)
        with (
            pytest.raises(SourceError, match=r"a\.tif: cannot be read: block \(2, 2\)"),
            window_staging.open_scene_file(request, request.asset.href) as file,
        ):
            whole(file)


def test_a_block_at_no_place_is_no_block_without_data(tmp_path: Path) -> None:
    """Offsets of 0 with a size, as of a file that was cut off while it was written, are an error of GDAL's."""
    path = write(tmp_path / "a.tif", pixels(), **chosen("GTiff", compress="DEFLATE", tiles=True))
    content = bytearray(path.read_bytes())
    table = tiff_header.parse({0: bytes(content)}, len(content), "a")
    at = content.index(struct.pack("<3I", *table.offsets.flat[:3]))
    content[at + 4 : at + 8] = bytes(4)
    path.write_bytes(content)
    with served.serving(tmp_path) as server:
        request = request_for(f"{server.url}/a.tif", tmp_path)
        for asset in (request.asset, Asset(href=str(path))):
            with pytest.raises(SourceError, match=r"a\.tif: cannot be read"):
                window_staging.stage(replace(request, asset=asset))


def test_answers_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", pixels(), **chosen("COG", compress="DEFLATE"))
    random = np.random.Generator(np.random.Philox(key=3))

    def late(handler: Files, content: bytes) -> bool:
        time.sleep(float(random.uniform(0, 0.1)))
        return answer(handler, content)

    expected = window_staging.stage(request_for(str(tmp_path / "a.tif"), tmp_path))
    with served.serving(tmp_path, late) as server:
        request = request_for(f"{server.url}/a.tif", tmp_path, target=tmp_path / "b")
        assert window_staging.stage(request).sha256 == expected.sha256


# --- limits --------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("most", [1, 3])
def test_a_server_that_refuses_more_is_asked_for_no_more(most: int, tmp_path: Path) -> None:
    """Six files at a time from a server that answers 429 above `most` requests in flight, each of which takes 30 ms."""
    for number in range(6):
        write(tmp_path / f"{number}.tif", pixels(), **chosen("COG", compress="DEFLATE"))
    flying, lock, crowded = [0], threading.Lock(), [0.0]
    seen: list[tuple[float, int]] = []

    def strict(handler: Files, content: bytes) -> bool:
        with lock:
            flying[0] += 1
            seen.append((time.monotonic(), flying[0]))
            full = flying[0] > most
        if not full:
            time.sleep(0.03)
        with lock:
            flying[0] -= 1
        return busy(handler, content) if full else answer(handler, content)

    failed: list[Exception] = []

    def read(number: int) -> None:
        try:
            request = request_for(f"{server.url}/{number}.tif", tmp_path, target=tmp_path / f"w{number}")
            window_staging.stage(request)
        except Exception as error:
            failed.append(error)

    with served.serving(tmp_path, strict) as server:
        threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    above = [at for at, count in seen if count > most + 1]
    assert not above or max(above) - min(above) < 1, crowded


def test_the_limit_of_a_host_follows_its_answers() -> None:
    now = [0.0]
    limit = host_limits.HostLimit(2, 8, clock=lambda: now[0])
    for _ in range(20):
        limit.answered()
    assert limit.limit == 8
    with limit.slot() as began:
        now[0] = 1.0
        limit.refused(began, 0.0)
        limit.refused(began, 0.0)  # of the same moment
    assert limit.limit == 4
    for _ in range(100):
        limit.answered()
    assert limit.limit == 7  # not what was refused, for a while
    now[0] += host_limits.CAUTIOUS_S
    for _ in range(100):
        limit.answered()
    assert limit.limit == 8


def test_retry_after_holds_back_all_requests_to_a_host() -> None:
    limit = host_limits.HostLimit(2, 8)
    with limit.slot() as began:
        limit.refused(began, 0.2)
    started = time.monotonic()
    with limit.slot():
        assert time.monotonic() - started > 0.1
