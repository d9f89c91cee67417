"""Test which files and addresses untrusted documents may name, and that no others are requested or opened."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import requests
import shapely
from rasterio.transform import from_origin
from served import Files, Quiet
from test_layers import MODULES

from sgdata.errors import SourceError
from sgdata.limits import DOCUMENT_BYTES, Limit
from sgdata.rasters import geotiff, vectors
from sgdata.remote import allowed_addresses, object_stores, objects, ranges, web
from sgdata.remote.allowed_addresses import Access, access_of, admit, check_host

# --- one place for every reader ------------------------------------------------------------

OPENERS: dict[str, tuple[str, ...]] = {
    "rasterio.open": ("sgdata.rasters.cog", "sgdata.simulation.cogs"),  # to write
    "rasterio.io.DatasetReader": ("sgdata.rasters.allowed_formats",),
    "requests.Session": ("sgdata.remote.web",),
    **dict.fromkeys(("requests.get", "requests.post", "requests.request", "requests.head"), ()),
    **dict.fromkeys(("urllib.request.urlopen", "urlopen", "urllib.request.urlretrieve", "urlretrieve"), ()),
    **dict.fromkeys(("pyogrio.read_dataframe", "pyogrio.read_info"), ("sgdata.rasters.vectors",)),
    **dict.fromkeys(("geopandas.read_file", "fiona.open", "shapely.from_geojson"), ("sgdata.rasters.vectors",)),
    **dict.fromkeys(("httpx.get", "httpx.Client", "http.client.HTTPConnection"), ()),
    # By one driver, after Pillow read the sizes; written by this project itself; opened by geotiff.open_raster.
    "MemoryFile": ("sgdata.rasters.small_jpeg", "sgdata.staging.zarr_files", "sgdata.staging.gdal_files"),
}
"""Calls that open a raster, a vector file or a connection, and the modules that may contain them."""


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_and_connections_are_opened_in_one_place(module: str) -> None:
    for name, _ in calls(module):
        assert module in OPENERS.get(name, {module}), f"{module} calls {name}; use geotiff.open_raster or web.ask"


def test_rasterio_itself_opens_only_to_write() -> None:
    for module in OPENERS["rasterio.open"]:
        for name, call in calls(module):
            if name == "rasterio.open":
                assert ast.literal_eval(call.args[1]) in {"w", "r+"}


# --- addresses -----------------------------------------------------------------------------

REMOTE = Access(hosts=("catalogue.example",))
NOT_REMOTE = (
    "/etc/passwd", "etc/passwd", "../x.tif", "file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd",
    "/vsizip//tmp/a.zip/a.tif", "/vsicurl/http://127.0.0.1/a.tif", "/vsimem/a.tif", "/vsisubfile/0_9,/etc/passwd",
    "zip+file:///tmp/a.zip!/a.tif", "zip+https://example.org/a.zip!/a.tif", "zip:///tmp/a.zip", "tar+http://a/b.tar",
    "GTIFF_DIR:1:/etc/passwd", "NETCDF:/etc/passwd", "ftp://example.org/a.tif", "hdfs://a/b", "http:/etc/passwd",
    "<VRTDataset/>", "", "https://", "https:///a.tif", "s3:///a.tif", "s3://a@b/c.tif", "s3://127.0.0.1:80/c.tif",
    "https://example.org/a.tif\r\nHost: x", "https://example.org/a b.tif", "https://[::1/a.tif",
)  # fmt: skip


@pytest.mark.parametrize("href", NOT_REMOTE)
def test_a_remote_catalogue_names_addresses_of_stores_only(href: str) -> None:
    with pytest.raises(SourceError) as caught:
        admit(href, REMOTE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("href", ["https://a.example/b.tif?sig=x", "http://a/b", "s3://b-1/c", "gs://b/c", "az://b/c"])
def test_addresses_of_stores_are_admitted_from_everywhere(href: str, tmp_path: Path) -> None:
    assert admit(href, REMOTE) == href
    assert admit(href, access_of(str(tmp_path))) == href


def test_a_catalogue_on_disk_names_files_below_its_folder(tmp_path: Path) -> None:
    root, inside = tmp_path / "catalogue", tmp_path / "catalogue" / "deep" / "a.tif"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"")
    (root / "catalog.json").write_text("{}")
    (tmp_path / "secret.tif").write_bytes(b"")
    (root / "link.tif").symlink_to(tmp_path / "secret.tif")
    (root / "good.tif").symlink_to(inside)
    ours = access_of(str(root / "catalog.json"))
    assert ours == access_of(str(root))
    for href in ("deep/a.tif", "./deep/../deep/a.tif", str(inside), inside.as_uri(), "good.tif"):
        assert admit(href, ours) == str(inside)
    assert admit(f"/vsizip/{root}/a.zip/B.tif", ours) == f"/vsizip/{root}/a.zip/B.tif"
    outside = tmp_path / "secret.tif"
    for href in (
        *("../secret.tif", str(outside), outside.as_uri(), "link.tif", "deep/../../secret.tif", "\0"),
        *(f"/vsizip/{outside}/a", f"zip+file://{outside}!/a", f"/vsicurl/{root}/a.tif"),
        *(f"/vsizip/{{{outside}}}/a", f"/vsisparse/{root}/a.xml", "/vsimem/x"),
    ):
        with pytest.raises(SourceError):
            assert not admit(href, ours)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::a00:1"),
    ],
)
def test_addresses_of_the_local_network_are_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str) -> frozenset[str]:
        return frozenset({"93.184.216.34", address} if host == "evil.example" else {"93.184.216.34"})

    monkeypatch.setattr(allowed_addresses, "_addresses", resolve)
    with pytest.raises(SourceError, match="--allow-private-hosts"):
        check_host("https://evil.example/a.tif", REMOTE)
    check_host("https://evil.example/a.tif", Access(hosts=REMOTE.hosts, private=True))
    check_host("https://evil.example/a.tif", Access(hosts=("evil.example",)))
    check_host("https://good.example/a.tif", REMOTE)


# --- servers -------------------------------------------------------------------------------


class Sly(Files):
    """Files, redirects, and bodies that are longer than they should be."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "to":
            self.server.asked.append(self.path)
            self.give(302, b"moved", {"Location": self.path.removeprefix("/to/")})
        elif kind == "endless":
            self.server.asked.append(self.path)
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while self.command == "GET":
                self.wfile.write(b"10000\r\n" + b"<" * 2**16 + b"\r\n")
        else:
            super().do_GET()


@contextmanager
def server(address: str, folder: Path) -> Iterator[Any]:
    opened: Any = Quiet((address, 0), Sly)
    opened.folder, opened.fault, opened.asked = folder, lambda handler, content: False, []
    opened.url = f"http://{address}:{opened.server_address[1]}"
    threading.Thread(target=opened.serve_forever, daemon=True).start()
    try:
        yield opened
    finally:
        opened.shutdown()
        opened.server_close()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """The server that the user named, and another one of the local network; both hold `a.tif`."""
    pixels = np.ones((1, 64, 64), np.uint16)
    profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": "uint16", "crs": "EPSG:32632"}
    with rasterio.open(tmp_path / "a.tif", "w", transform=from_origin(6e5, 5e6, 10, 10), **profile) as dataset:
        dataset.write(pixels)
    (tmp_path / "a.json").write_text("{}")
    try:
        with server("127.0.0.1", tmp_path) as typed, server("127.0.0.2", tmp_path) as other:
            yield typed, other
    except OSError:
        pytest.skip("this machine has no second loopback address")


@pytest.mark.allow_hosts(["127.0.0.1", "127.0.0.2"])
def test_rasters_come_from_the_host_that_was_named_and_no_other(two: tuple[Any, Any]) -> None:
    typed, other = two
    ours = access_of(typed.url)
    with geotiff.open_raster(f"{typed.url}/a.tif", use="scene", access=ours) as dataset:
        assert dataset.read(1).all()
    for url in (f"{other.url}/a.tif", f"{typed.url}/to/{other.url}/a.tif"):
        with pytest.raises(SourceError, match="--allow-private-hosts"), geotiff.open_raster(url, access=ours):
            pass
    assert other.asked == []
    with geotiff.open_raster(f"{typed.url}/to/{other.url}/a.tif", access=Access(private=True)) as dataset:
        assert dataset.read(1).all()
    with (
        pytest.raises(SourceError, match="neither ranges nor a length"),
        geotiff.open_raster(f"{typed.url}/endless/a.tif"),
    ):
        pass


def test_requests_follow_redirects_to_admitted_hosts_only(two: tuple[Any, Any]) -> None:
    typed, other = two
    assert web.ask("GET", f"{typed.url}/to/{typed.url}/a.json").content == b"{}"
    with pytest.raises(SourceError, match="--allow-private-hosts"):
        web.ask("GET", f"{typed.url}/to/{other.url}/a.json")
    assert other.asked == []
    with pytest.raises(requests.TooManyRedirects):
        web.ask("GET", f"{typed.url}" + f"/to/{typed.url}" * 12 + "/a.json")


@pytest.mark.allow_hosts(["127.0.0.1", "127.0.0.2"])
def test_later_ranges_are_redirected_to_admitted_hosts_only(two: tuple[Any, Any], tmp_path: Path) -> None:
    """A server that answers the first request of a file, and sends those that follow it elsewhere: files and stores."""
    typed, other = two
    targets = {"/here/": typed.url, "/away/": other.url}

    def later(handler: Files, content: bytes) -> bool:
        target = next((targets[start] for start in targets if handler.path.startswith(start)), "")
        if target and "bytes=0-" not in handler.headers["Range"]:
            handler.give(302, b"", {"Location": f"{target}/chunk"})
        else:
            start = int(handler.headers["Range"].removeprefix("bytes=").partition("-")[0])
            span = f"bytes {start}-{start + len(content) - 1}/{2 * objects.HEAD_BYTES}"
            handler.give(206, content, {"Content-Range": span, "ETag": '"1"'})
        return True

    stored = bytes(range(256)) * (2 * objects.HEAD_BYTES // 256)
    for name in ("chunk", "here/chunk", "away/chunk"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(stored)
    typed.fault = other.fault = later
    waits = ranges.RangeRetries(count=1, wait_s=0.01)
    ours = access_of(typed.url)
    for folder, admitted in (("here", ours), ("away", Access(private=True))):
        found = objects.ObjectFolder(href=f"{typed.url}/{folder}", access=admitted, retries=waits).open("chunk")
        assert found and found.read(9000, 9500) == stored[9000:9500]
    other.asked.clear()
    opened = ranges.open_file(f"{typed.url}/away/chunk", ours, first_bytes=100, retries=waits)
    assert opened
    file = opened[0]
    with pytest.raises(SourceError, match="--allow-private-hosts"):
        ranges.read(file, 9000, 9500, waits)
    found = objects.ObjectFolder(href=f"{typed.url}/away", access=ours, retries=waits).open("chunk")
    with pytest.raises(SourceError, match="--allow-private-hosts"):
        assert found and found.read(9000, 9500)
    assert other.asked == []


def test_obstore_reads_what_cannot_lead_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores, "getproxies", dict)
    assert object_stores.stays("https://a.example/x") and object_stores.stays("http://127.0.0.1:80/x")
    assert not object_stores.stays("http://a.example/x")  # b.a.example may be any host
    monkeypatch.setattr(object_stores, "getproxies", lambda: {"https": "http://127.0.0.1:3128"})
    assert not object_stores.stays("https://a.example/x")


def test_bodies_end_at_a_size_and_a_time(two: tuple[Any, Any]) -> None:
    typed, _ = two
    with pytest.raises(SourceError, match="at most 1,000,000 are read"):
        web.ask("GET", f"{typed.url}/endless/", limit=Limit(10**6, "bytes", "a test"))
    ticks = iter(range(1000))
    with web.ask("GET", f"{typed.url}/endless/", stream=True) as answer, pytest.raises(requests.Timeout):
        list(web.chunks(answer, limit=DOCUMENT_BYTES, deadline=5, clock=lambda: next(ticks)))


# --- rasters -------------------------------------------------------------------------------


def vrt(path: Path, band: str) -> Path:
    head = '<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32632</SRS>'
    path.write_text(f"{head}<GeoTransform>600000,10,0,5000000,0,-10</GeoTransform>{band}</VRTDataset>")
    return path


def source(name: object, relative: int = 0, kind: str = "SimpleSource") -> str:
    inner = f'<SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>1</SourceBand>'
    return f'<VRTRasterBand dataType="UInt16" band="1"><{kind}>{inner}</{kind}></VRTRasterBand>'


def plain(path: Path, driver: str = "GTiff") -> Path:
    profile = {"driver": driver, "width": 64, "height": 64, "count": 1, "dtype": "uint8", "crs": "EPSG:32632"}
    with rasterio.open(path, "w", transform=from_origin(6e5, 5e6, 10, 10), **profile) as dataset:
        dataset.write(np.ones((1, 64, 64), np.uint8))
    return path


def test_a_virtual_raster_is_read_where_the_user_names_it_and_its_sources_are_rasters(tmp_path: Path) -> None:
    plain(tmp_path / "a.tif")
    (tmp_path / "in").mkdir()
    inner = vrt(tmp_path / "in" / "inner.vrt", source("../a.tif", relative=1))
    outer = vrt(tmp_path / "named.tif", source(inner))
    with geotiff.open_raster(str(outer), use="user") as dataset:
        assert dataset.read(1).all()
    for use in ("scene", "output", "dataset"):
        with pytest.raises(SourceError, match="virtual raster"), geotiff.open_raster(str(outer), use=use):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize(
    "band",
    [
        source("/etc/hostname"),
        source("nowhere.tif", relative=1),
        source("a.vrt", relative=1),
        source("/vsicurl/http://127.0.0.1:9/a.tif"),
        source("http://127.0.0.1:9/a.tif"),
        source("text.tif", relative=1),
        source("a.tif", relative=1, kind="KernelFilteredSource"),
        source("a.tif", relative=1).replace("<VRTRasterBand ", '<VRTRasterBand subClass="VRTDerivedRasterBand" '),
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand"><SourceFilename>/etc/hostname'
        "</SourceFilename></VRTRasterBand>",
        "<GDALWarpOptions><SourceDataset>/etc/hostname</SourceDataset></GDALWarpOptions>",
        source("a.tif", relative=1) + "<OverviewList><SourceDataset>/etc/hostname</SourceDataset></OverviewList>",
    ],
)
def test_a_virtual_raster_with_anything_else_is_refused(band: str, tmp_path: Path) -> None:
    plain(tmp_path / "a.tif")
    (tmp_path / "text.tif").write_text("not a raster")
    path = vrt(tmp_path / "a.vrt", band)
    with pytest.raises(SourceError), geotiff.open_raster(str(path), use="user"):
        pass


@pytest.mark.parametrize(
    ("driver", "name"), [("GPKG", "a.gpkg"), ("ENVI", "a.bin"), ("PNG", "a.png"), ("AAIGrid", "a.asc")]
)
def test_other_formats_are_not_opened_as_scenes(driver: str, name: str, tmp_path: Path) -> None:
    if driver == "AAIGrid":
        (tmp_path / name).write_text("ncols 2\nnrows 2\nxllcorner 0\nyllcorner 0\ncellsize 10\n1 2\n3 4\n")
    else:
        plain(tmp_path / name, driver)
    with pytest.raises(SourceError), geotiff.open_raster(str(tmp_path / name), use="scene"):
        pass


def test_sidecars_are_not_followed(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.tif")
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><Metadata><MDI key='x'>y</MDI></Metadata></PAMDataset>")
    for suffix in (".ovr", ".msk"):
        plain(tmp_path / f"a.tif{suffix}")
    with geotiff.open_raster(str(path)) as dataset:
        assert "x" not in dataset.tags()
        assert dataset.overviews(1) == []
        assert [flag.name for flag in dataset.mask_flag_enums[0]] == ["all_valid"]


# --- areas ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "name"), [("GPKG", "a.gpkg"), ("ESRI Shapefile", "a.shp"), ("KML", "a.kml"), ("", "a.parquet")]
)
def test_areas_come_from_the_formats_of_the_list_in_degrees(driver: str, name: str, tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(11.0, 48.0, 11.1, 48.1)], crs="EPSG:4326")
    path = tmp_path / name
    if driver:
        frame.to_file(path, driver=driver)
    else:
        frame.to_crs(32632).to_parquet(path)
    (geometry,) = vectors.read_geometries(path)
    assert np.allclose(geometry.bounds, (11.0, 48.0, 11.1, 48.1), atol=1e-6)


@pytest.mark.parametrize(
    "content",
    [
        b"<OGRVRTDataSource><OGRVRTLayer name='a'><SrcDataSource>/etc/passwd</SrcDataSource></OGRVRTLayer>",
        b"id,wkt\n1,POINT(1 2)\n",
        b"<!DOCTYPE kml [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><kml>&x;</kml>",
        b"PAR1 and no more",
        b"SQLite format 3\0" + bytes(52) + b"GPKG" + bytes(100),
        b"\0\0\x27\x0a",
        b'{"type": "Topology"}',
        b"",
    ],
)
def test_areas_in_anything_else_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.shp"
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        vectors.read_geometries(path)
    assert "\n" not in str(caught.value)
