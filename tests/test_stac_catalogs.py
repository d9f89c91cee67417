"""Test that a catalogue of any kind gives the same scenes, on disk and over HTTP, with its faults and its secrets."""

from __future__ import annotations

import gzip
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pystac
import pytest
import served
from stac_wrap import COLLECTION, Wrapped, wrap

from sgdata.errors import ServiceError, SettingError, SourceError
from sgdata.rasters import geotiff
from sgdata.remote.retry import RetryPolicy
from sgdata.scenes import catalog_io, parse_items, search
from sgdata.scenes.types import Unusable

QUERY = search.Query(
    collection=COLLECTION, bounds=(10.36, 48.72, 10.37, 48.74), dates="2018-11-01/2019-12-31", bands=("B02", "SCL")
)
IDS = [f"S2A_32UPU_2019070{day}_0_L2A" for day in (1, 2, 3)]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    layers: dict[str, tuple[Any, float]] = {
        "B02": (np.full((64, 64), 300, np.uint16), 10.0),
        "SCL": (np.full((32, 32), 4, np.uint8), 20.0),
    }
    scenes = [Wrapped(id=name, time=f"2019-07-0{n}T10:00:00Z", layers=layers) for n, name in enumerate(IDS, 1)]
    return wrap(tmp_path / "archive", scenes)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "RETRY", RetryPolicy(tries=2, wait_s=0.01))


def documents(archive: Path) -> list[dict[str, Any]]:
    """Return the items of an archive, with hrefs that start at its folder."""
    items = []
    for path in sorted(archive.rglob("S2A*.json")):
        item = json.loads(path.read_text())
        for asset in item["assets"].values():
            asset["href"] = f"./{path.parent.relative_to(archive)}/{Path(asset['href']).name}"
        items.append(item)
    return items


def found(where: str, **options: Any) -> list[str]:
    return [scene.id for scene in search.search(where, QUERY, **options)[0]]


# --- files ---------------------------------------------------------------------------------


def test_assets_beside_a_file_win_over_its_link_to_itself(archive: Path) -> None:
    """Items that were published elsewhere and copied with their pixels."""
    items = documents(archive)
    for item in items:
        item["links"] = [{"rel": "self", "href": f"http://127.0.0.1:9/published/{item['id']}.json"}]
    (archive / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    scenes = search.search(str(archive / "items.json"), QUERY)[0]
    assert [scene.assets["B02"].href for scene in scenes] == [f"{COLLECTION}/{name}/B02.tif" for name in IDS]
    for path in archive.rglob("*.tif"):
        path.unlink()
    scenes = search.search(str(archive / "items.json"), QUERY)[0]
    assert scenes[0].assets["B02"].href == f"http://127.0.0.1:9/published/{COLLECTION}/{IDS[0]}/B02.tif"


def _table(archive: Path) -> bytes:
    import rustac

    path = archive / "made.parquet"
    rustac.write_sync(str(path), {"type": "FeatureCollection", "features": documents(archive)})
    return path.read_bytes()


def _paths(archive: Path) -> list[str]:
    return [path.relative_to(archive).as_posix() for path in sorted(archive.rglob("S2A*.json"))]


KINDS: dict[str, Callable[[Path], bytes]] = {
    "items.json": lambda a: json.dumps({"type": "FeatureCollection", "features": documents(a)}).encode(),
    "pretty.json": lambda a: json.dumps({"type": "FeatureCollection", "features": documents(a)}, indent=1).encode(),
    "list.json": lambda a: json.dumps(documents(a)).encode(),
    "hrefs.json": lambda a: json.dumps(_paths(a)).encode(),
    "hrefs.txt": lambda a: "\r\n".join(["", *_paths(a), ""]).encode(),
    "collections.txt": lambda a: f"{COLLECTION}/collection.json\n".encode(),
    "items.ndjson": lambda a: "\n".join(map(json.dumps, documents(a))).encode(),
    "bom.json": lambda a: b"\xef\xbb\xbf" + json.dumps(documents(a)).encode(),
    "items.ndjson.gz": lambda a: gzip.compress("\n".join(map(json.dumps, documents(a))).encode()),
    "items.parquet": _table,
}


@pytest.mark.parametrize("name", [*KINDS, "catalog.json", f"{COLLECTION}/collection.json"])
def test_every_kind_of_file_gives_the_same_scenes_from_disk_and_over_http(name: str, archive: Path) -> None:
    if name in KINDS:
        (archive / name).write_bytes(KINDS[name](archive))
    assert found(str(archive / name)) == IDS
    (scene, *_), dropped = search.search(str(archive / name), QUERY)
    assert not dropped
    assert Path(search.resolve_hrefs(scene, str(archive / name)).assets["B02"].href).is_file()
    with served.serving(archive) as server:
        (scene, *_), dropped = search.search(f"{server.url}/{name}", QUERY)
        assert not dropped
        with geotiff.open_raster(search.resolve_hrefs(scene, server.url).assets["B02"].href, use="scene") as dataset:
            assert dataset.read(1).max() == 300
        assert found(f"{server.url}/{name}") == IDS


@pytest.mark.parametrize("in_collection", [True, False])
def test_one_item_is_a_catalogue(in_collection: bool, archive: Path) -> None:
    path = next(archive.rglob(f"{IDS[1]}.json"))
    item = json.loads(path.read_text())
    if not in_collection:
        del item["collection"]
        path.write_text(json.dumps(item))
    assert found(str(path)) == [IDS[1]]
    with served.serving(archive) as server:
        assert found(f"{server.url}/{path.relative_to(archive)}") == [IDS[1]]
        # The same item below a catalogue.
        assert found(f"{server.url}/catalog.json") == IDS


def test_another_collection_is_named(archive: Path) -> None:
    items = [item | {"collection": "sentinel-2-c1-l2a"} for item in documents(archive)]
    (archive / "items.json").write_text(json.dumps(items))
    with pytest.raises(SettingError, match="source.collection=sentinel-2-c1-l2a"):
        search.search(str(archive / "items.json"), QUERY)


def test_a_folder_may_hold_a_collection(archive: Path) -> None:
    assert found(str(archive / COLLECTION)) == IDS


@pytest.mark.parametrize("fault", ["gone", "no JSON", "null", "an item without an id"])
def test_one_bad_document_is_left_out_with_its_reason(fault: str, archive: Path) -> None:
    path = next(archive.rglob(f"{IDS[1]}.json"))
    if fault == "gone":
        path.unlink()
    else:
        item = json.loads(path.read_text())
        del item["id"]
        path.write_text({"no JSON": "{", "null": "null"}.get(fault, json.dumps(item)))
    with served.serving(archive) as server:
        for where in (str(archive), f"{server.url}/catalog.json"):
            scenes, (dropped,) = search.search(where, QUERY)
            assert [scene.id for scene in scenes] == [IDS[0], IDS[2]]
            assert isinstance(dropped, Unusable)
            assert "cannot be read" in dropped.reason


@pytest.mark.parametrize("content", ["<html><body>Log in</body></html>", "[1, 2]", "PAR1 but no table", "[[]]", ""])
def test_anything_else_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text(content)
    with served.serving(tmp_path) as server:
        for where in (str(tmp_path / "items.json"), f"{server.url}/items.json"):
            with pytest.raises(SourceError) as caught:
                search.search(where, QUERY)
            assert "\n" not in str(caught.value)


def test_a_child_catalogue_that_is_missing_stops_the_search(archive: Path) -> None:
    (archive / COLLECTION / "collection.json").unlink()
    with pytest.raises(SettingError, match="no such file"):
        search.search(str(archive), QUERY)


# --- APIs ----------------------------------------------------------------------------------


class Api(BaseHTTPRequestHandler):
    """A STAC API with one of several faults, two items a page; `asked` lists method, path and the key it was given."""

    fault: ClassVar[str] = ""
    items: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[tuple[str, str, str | None]]] = []

    @property
    def here(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"  # type: ignore[str-bytes-safe]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.asked.append(("GET", self.path, self.headers.get("x-api-key")))
        if self.fault == "key" and self.headers.get("x-api-key") != "open sesame":
            self.give(401, {"description": f"no such key: {self.headers.get('x-api-key')}"})
        elif url.path == "/":
            self.give(200, self.landing())
        elif url.path == f"/collections/{COLLECTION}":
            items = {"rel": "items", "href": f"{self.here}{url.path}/items", "type": "application/geo+json"}
            root = {"rel": "root", "href": self.here}
            self.give(200, {"type": "Collection", "stac_version": "1.0.0", "id": COLLECTION, "links": [root, items]})
        elif url.path == "/search" or url.path.endswith("/items"):
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            page = int(query.get("page", 1))
            more = f"{self.here}{url.path}?{url.query}&page={page + 1}".replace(f"&page={page}&", "&")
            following = {"rel": "next", "href": more, "type": "application/geo+json"}
            self.page(page, following, everything="datetime" not in query)
        else:
            self.give(404, {"code": "NotFound"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(("POST", self.path, self.headers.get("x-api-key")))
        if self.fault.startswith("get"):
            self.give(int(self.fault[-3:]), {"message": "POST is not for you"})
            return
        page = body.get("page", 1)
        following = {"rel": "next", "method": "POST", "href": f"{self.here}/search", "body": body | {"page": page + 1}}
        self.page(page, following)

    def landing(self) -> dict[str, Any]:
        link = {"rel": "search", "href": f"{self.here}/search", "type": "application/geo+json"}
        if self.fault.startswith("get") and "unsaid" not in self.fault:
            link["method"] = "GET"
        page = {"rel": "search", "href": f"{self.here}/page.html", "type": "text/html"}
        child = {"rel": "child", "href": f"{self.here}/collections/{COLLECTION}"}
        links = [page, *([] if self.fault in {"no link", "only items"} else [link]), child]
        core = "https://api.stacspec.org/v1.0.0"
        classes = [f"{core}/core", *([] if self.fault in {"noconf", "only items"} else [f"{core}/item-search"])]
        document = {"type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "api", "links": links}
        return document if self.fault == "noconformsto" else document | {"conformsTo": classes}

    def page(self, number: int, following: dict[str, Any], *, everything: bool = False) -> None:
        features = self.items[2 * number - 2 : 2 * number]
        if everything:  # what was not asked for the area and dates has endless pages
            features = self.items[:1]
        links = [following] if 2 * number < len(self.items) or everything else []
        self.give(200, {"type": "FeatureCollection", "features": features, "links": links})

    def give(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/geo+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


@contextmanager
def api(archive: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    items = documents(archive)
    for item in items:
        for asset in item["assets"].values():
            asset["href"] = f"https://example.org/{asset['href'].removeprefix('./')}"
    for name, value in (("fault", fault), ("items", items), ("asked", [])):
        monkeypatch.setattr(Api, name, value)
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


FAULTS = ("get405", "get403", "get unsaid 405", "get unsaid 501", "noconf", "noconformsto", "no link", "only items", "")


@pytest.mark.parametrize("fault", FAULTS)
def test_an_api_is_searched_as_it_answers(fault: str, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(archive, fault, monkeypatch) as url:
        assert found(f"{url}/") == IDS
    asked = [(method, urlsplit(path).path) for method, path, _ in Api.asked]
    if fault.startswith("get4"):  # advertised: POST is not even tried
        assert not any(method == "POST" for method, _ in asked)
    if fault == "":
        assert ("GET", "/search") not in asked


@pytest.mark.parametrize("path", ["/search", f"/collections/{COLLECTION}", f"/collections/{COLLECTION}/items"])
@pytest.mark.parametrize("fault", ["", "get405"])
def test_parts_of_an_api_are_catalogues(path: str, fault: str, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(archive, fault, monkeypatch) as url:
        assert found(url + path) == IDS


def test_a_key_comes_from_the_environment_and_goes_nowhere_else(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(archive, "key", monkeypatch) as url:
        with pytest.raises(ServiceError, match=catalog_io.HEADERS):
            search.search(url, QUERY)
        monkeypatch.setenv(catalog_io.HEADERS, "X-Api-Key: open sesame\nX-Other: 1")
        assert found(url) == IDS
        monkeypatch.setenv(catalog_io.HEADERS, "x-api-key: shibboleth")
        with pytest.raises(ServiceError, match="no such key") as caught:
            search.search(url, QUERY)
        assert "shibboleth" not in str(caught.value)
        # A list elsewhere that names items of this server: the key is not for it.
        (archive / "hrefs.txt").write_text(f"{url}/search\n")
        Api.asked.clear()
        with served.serving(archive) as other, pytest.raises(SourceError):
            search.search(f"{other.url}/hrefs.txt", QUERY)
        assert {key for _, _, key in Api.asked} == {None}


@pytest.mark.parametrize("text", ["secret", "x-api-key:", ": secret", "x api: secret", "x-api-key: a\nsecret"])
def test_headers_that_are_none_are_refused_without_showing_them(
    text: str, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(catalog_io.HEADERS, text)
    with pytest.raises(SettingError, match="NAME: VALUE") as caught:
        search.search(str(archive), QUERY)
    assert "secret" not in str(caught.value)


# --- items in other words ------------------------------------------------------------------

TILE_WORDS: tuple[dict[str, Any], ...] = (
    {"grid:code": "MGRS-32UPU"},
    {"s2:mgrs_tile": "32UPU"},
    {"odc:region_code": "32UPU"},
    {"mgrs:utm_zone": 32, "mgrs:latitude_band": "U", "mgrs:grid_square": "PU"},
    {"sentinel:utm_zone": 32, "sentinel:latitude_band": "U", "sentinel:grid_square": "PU"},
    {"title": "S2A_MSIL2A_20190705T102021_N0213_R065_T32UPU_20190801T143919"},
)


def changed(archive: Path, change: Callable[[dict[str, Any]], None]) -> pystac.Item:
    item = documents(archive)[0]
    change(item)
    (archive / "item.json").write_text(json.dumps(item))
    return pystac.Item.from_file(str(archive / "item.json"))


@pytest.mark.parametrize("words", TILE_WORDS)
def test_tiles_and_baselines_are_read_in_the_words_of_five_catalogues(words: dict[str, Any], archive: Path) -> None:
    def change(item: dict[str, Any]) -> None:
        item["id"] = "8f2e29ec-1075-5eb7-8a86-f7f51a792a6c"
        for key in ("grid:code", "s2:processing_baseline", "sat:relative_orbit"):
            del item["properties"][key]
        item["properties"] |= {"sentinel:processing_baseline": "02.13", **words}

    scene = parse_items.parse(changed(archive, change), ("B02",))
    assert (scene.tile, scene.baseline) == ("32UPU", "02.13")
    assert scene.orbit == (65 if "title" in words else 0)


@pytest.mark.parametrize("name", ["8f2e29ec-1075-5eb7-12ca-f7f51a792a6c", "4bcd1234-0000-11ab-8a86-f7f51a792a6c"])
def test_a_uuid_is_neither_tile_nor_baseline(name: str, archive: Path) -> None:
    def change(item: dict[str, Any]) -> None:
        item["id"] = name
        for key in ("grid:code", "s2:processing_baseline"):
            del item["properties"][key]

    with pytest.raises(SourceError, match="has no tile, processing baseline"):
        parse_items.parse(changed(archive, change), ("B02",))


def test_six_numbers_are_put_in_order(archive: Path) -> None:
    def change(item: dict[str, Any]) -> None:
        for asset in item["assets"].values():
            a, b, c, d, e, f = asset["proj:transform"]
            asset["proj:transform"] = [c, a, b, f, d, e]

    for item in (changed(archive, change), changed(archive, lambda item: None)):
        scene = parse_items.parse(item, QUERY.bands)
        assert scene.assets["SCL"].transform == (20.0, 0.0, 600000.0, 0.0, -20.0, 5400000.0)


def test_an_inherited_grid_is_that_of_its_own_pixel_size_only(archive: Path) -> None:
    def change(item: dict[str, Any]) -> None:
        item["properties"] |= {"proj:transform": [10, 0, 600000, 0, -10, 5400000], "proj:shape": [64, 64]}
        for asset in item["assets"].values():
            del asset["proj:transform"], asset["proj:shape"]

    assets = parse_items.parse(changed(archive, change), QUERY.bands).assets
    assert (assets["B02"].shape, assets["SCL"].shape, assets["SCL"].transform) == ((64, 64), None, None)


def test_the_cloud_layer_of_the_copernicus_data_space_is_a_mask(real: Path) -> None:
    document = json.loads((real / "stac" / "cdse" / "FeatureCollection_36NYH.json").read_text())["features"][0]
    document["assets"]["CLD_20m"] = document["assets"]["SCL_20m"]
    scene = parse_items.parse(pystac.Item.from_dict(document), ("B02", "SCL", "cloud"))
    assert scene.assets["cloud"].href.startswith("s3://eodata/")


# --- files of pixels -----------------------------------------------------------------------


def read(href: str) -> int:
    with geotiff.open_raster(href, use="scene") as dataset:
        return int(dataset.read(1).max())


def test_hrefs_need_no_extension(archive: Path) -> None:
    path = next(archive.rglob("B02.tif"))
    path = path.rename(path.with_suffix(""))
    with served.serving(archive) as server:
        assert read(f"{server.url}/{path.relative_to(archive)}") == 300


def test_percent_escapes_and_members_of_archives_are_read(archive: Path) -> None:
    items = documents(archive)
    blank = archive / "my scene 100%"
    blank.mkdir()
    next(archive.rglob("B02.tif")).rename(blank / "B02.tif")
    with zipfile.ZipFile(archive / "x.SAFE.zip", "w") as out:
        out.write(blank / "B02.tif", "IMG/B02.tif")
    hrefs = ("./my%20scene%20100%25/B02.tif", "./my scene 100%/B02.tif", f"/vsizip/{archive}/x.SAFE.zip/IMG/B02.tif")
    for item, href in zip(items, hrefs, strict=True):
        item["assets"]["blue"]["href"] = href
    (archive / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    scenes, _ = search.search(str(archive / "items.json"), QUERY)
    assert [read(search.resolve_hrefs(scene, str(archive)).assets["B02"].href) for scene in scenes] == [300] * 3
    # A lock does not name the folder of the archive.
    assert str(archive) not in "".join(scene.assets["B02"].href for scene in scenes)
    items[0]["assets"]["blue"]["href"] = "./%2e%2e/%2e%2e/etc/passwd"
    (archive / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    (first, *_), _ = search.search(str(archive / "items.json"), QUERY)
    with pytest.raises(SourceError, match="is outside"):
        search.resolve_hrefs(first, str(archive))


def signed_only(handler: served.Files, content: bytes) -> bool:
    if "Authorization" in handler.headers:
        return False
    handler.give(403, b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>')
    return True


@pytest.mark.parametrize("way", ["none", "keys", "profile", "config file of GDAL", "asks to be anonymous"])
def test_keys_and_endpoints_of_the_user_win(
    way: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (archive / COLLECTION).rename(archive / "eodata")
    name = next(archive.rglob("B02.tif")).relative_to(archive)
    with served.serving(archive, signed_only) as server:
        if way == "config file of GDAL":
            monkeypatch.setenv("AWS_S3_ENDPOINT", urlsplit(server.url).netloc)
            monkeypatch.setenv("AWS_HTTPS", "NO")
        else:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        if way != "none" and way != "profile":
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        if way == "profile":
            (tmp_path / "keys").write_text("[me]\naws_access_key_id = a\naws_secret_access_key = b\n")
            monkeypatch.setenv("AWS_PROFILE", "me")
            monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
        if way == "asks to be anonymous":
            monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
        if way in {"none", "asks to be anonymous"}:
            with pytest.raises(SourceError, match=r"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"):
                read(f"s3://{name}")
        else:
            assert read(f"s3://{name}") == 300
    assert capfd.readouterr().err == ""


def test_the_store_of_the_copernicus_data_space_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_S3_ENDPOINT", "AWS_NO_SIGN_REQUEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    options = geotiff.gdal_options("s3://eodata/Sentinel-2/x.jp2")
    assert options["AWS_S3_ENDPOINT"] == "eodata.dataspace.copernicus.eu"
    assert (options["AWS_VIRTUAL_HOSTING"], options["AWS_NO_SIGN_REQUEST"]) == ("FALSE", "NO")
    assert "AWS_S3_ENDPOINT" not in geotiff.gdal_options("s3://sentinel-cogs/x.tif")
    monkeypatch.setenv("AWS_S3_ENDPOINT", "store.example")
    assert "AWS_S3_ENDPOINT" not in geotiff.gdal_options("s3://eodata/x.jp2")
