"""A large plan in small: three MGRS tiles of two UTM zones from the simulator, and servers that misbehave by a seed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject

from sgdata.rasters import grids
from sgdata.scenes import aoi
from sgdata.simulation import items, scenarios, traps
from sgdata.simulation.archive import simulate
from sgdata.types import Grid, Window

SIZE_KM = 2.0
LAYOUT = "planetary-computer"
"""The provider whose addresses are signed; its scenes to 2020 have one baseline, so that no offset is in doubt."""
AREA = Window(row=66, col=42, height=180, width=180)
"""The area to build, in 10 m pixels of the simulated granule."""
TILES = {
    "32UPU": Window(row=54, col=30, height=174, width=174),
    "32UQU": Window(row=54, col=138, height=174, width=126),
    "33UTP": Window(row=180, col=24, height=90, width=240),
}
"""Ground of each tile: only the second has the last columns of the area, only the third (next zone) its last rows."""
BUSY = (429, 500, 502, 503, 504)


# --- the archive ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A static catalogue of three tiles, its area, its OpenStreetMap data, and the items that lack a band."""

    folder: Path
    area: Grid
    osm: Path
    overpass: Path
    ids: tuple[str, ...]
    twins: tuple[str, ...]
    lacking: tuple[str, ...]


def make(folder: Path, *, dates: int, lacking: int, workers: int = 1, seed: int = 3) -> Archive:
    """Simulate a city, and cut it into tiles; a fifth as many twins as scenes, and some items without a band."""
    city = simulate(
        folder / "city", seed=seed, size_km=SIZE_KM, dates=dates, layout=LAYOUT, ground="plain", workers=workers
    )
    granule = scenarios.create(seed, SIZE_KM, dates, LAYOUT).granule
    planted = json.loads((city / "truth" / "traps.json").read_text())
    home = folder / "archive" / items.COLLECTION
    documents: dict[str, dict[str, Any]] = {}
    for name, about in sorted(planted.items()):
        if about.get("epoch") != 1 or "of" in about:
            continue
        for tile, window in TILES.items():
            document = _cut(city / items.COLLECTION / name, granule, tile, window, home)
            documents[document["id"]] = document
    originals = sorted(documents)
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(originals))
    without = tuple(originals[n] for n in order[:lacking])
    twins = [_twin(documents[originals[n]], home) for n in order[-(len(originals) // 5) :]]
    documents |= {twin["id"]: twin for twin in twins}
    for name in without:
        del documents[name]["assets"]["B08"]
    _write_catalogue(folder / "archive", documents)
    return Archive(
        folder=folder / "archive",
        area=grids.crop(granule, AREA),
        osm=city / "osm" / "city.osm",
        overpass=city / "osm" / "overpass.json",
        ids=tuple(sorted(documents)),
        twins=tuple(sorted(twin["id"] for twin in twins)),
        lacking=without,
    )


def _cut(source: Path, granule: Grid, tile: str, window: Window, home: Path) -> dict[str, Any]:
    """Write the part of a scene that a tile has, and return its item."""
    document: dict[str, Any] = json.loads((source / f"{source.name}.json").read_text())
    ground = grids.crop(granule, window)
    grid = ground if tile.startswith("32") else traps.next_zone(ground)
    document["id"] = source.name.replace(scenarios.TILE, tile)
    target = home / document["id"]
    target.mkdir(parents=True)
    for asset in document["assets"].values():
        name = asset["href"].removeprefix("./")
        with rasterio.open(source / name) as dataset:
            gsd = int(dataset.transform.a)
            part = grids.coarsen(grid, gsd // 10)
            if grid is ground:
                pixels = dataset.read(1)
                rows, cols = (slice(s.start * 10 // gsd, s.stop * 10 // gsd) for s in window.slices)
                pixels = pixels[rows, cols]
            else:
                pixels = np.zeros(part.shape, dataset.dtypes[0])
                reproject(
                    dataset.read(1), pixels, src_transform=dataset.transform, src_crs=dataset.crs,
                    dst_transform=Affine(*part.transform), dst_crs=part.crs, resampling=Resampling.nearest,
                )  # fmt: skip
        _write(target / name, pixels, part)
        if "proj:shape" in asset:  # some items of the simulator have lost their projection
            asset |= {"proj:shape": list(part.shape), "proj:transform": list(part.transform)}
    properties = document["properties"]
    for key, value in (("proj:code", grid.crs), ("proj:epsg", int(grid.crs.removeprefix("EPSG:")))):
        if key in properties:
            properties[key] = value
    properties["s2:mgrs_tile"] = tile
    properties["s2:product_uri"] = properties["s2:product_uri"].replace(scenarios.TILE, tile)
    geometry = items.polygon(shapely.box(*grid.bounds), grid.crs)
    return document | {"geometry": geometry, "bbox": items.bbox(geometry), "links": []}


def _write(path: Path, pixels: Any, grid: Grid) -> None:
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": pixels.dtype, "count": 1, "nodata": 0, "crs": grid.crs, "tiled": True,
        "height": pixels.shape[0], "width": pixels.shape[1], "transform": Affine(*grid.transform),
        "compress": "deflate", "predictor": 2, "blockxsize": 64, "blockysize": 64,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels, 1)


def _twin(original: dict[str, Any], home: Path) -> dict[str, Any]:
    """Return the item of the same acquisition as it was processed first, with files of its own."""
    document: dict[str, Any] = json.loads(json.dumps(original))
    document["id"] = re.sub(r"_\d{8}T\d{6}$", "_20190101T000000", original["id"])
    properties = document["properties"]
    properties |= {"s2:processing_baseline": scenarios.OLDEST, "s2:generation_time": properties["datetime"]}
    properties["s2:datatake_id"] = re.sub(r"N\d\d\.\d\d$", f"N{scenarios.OLDEST}", properties["s2:datatake_id"])
    (home / document["id"]).mkdir()
    for asset in document["assets"].values():
        os.link(home / original["id"] / asset["href"], home / document["id"] / asset["href"])
    return document


def _write_catalogue(folder: Path, documents: dict[str, dict[str, Any]]) -> None:
    home = folder / items.COLLECTION
    for name, document in documents.items():
        document = document | {"links": [{"rel": "collection", "href": "../collection.json"}]}
        (home / name / f"{name}.json").write_text(json.dumps(document))
    collection = {
        "type": "Collection", "stac_version": "1.0.0", "id": items.COLLECTION, "description": "rehearsal",
        "license": "proprietary",
        "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
        "links": [{"rel": "item", "href": f"./{name}/{name}.json"} for name in sorted(documents)],
    }  # fmt: skip
    child = [{"rel": "child", "href": f"./{items.COLLECTION}/collection.json"}]
    root = {"type": "Catalog", "stac_version": "1.0.0", "id": "r", "description": "rehearsal", "links": child}
    (home / "collection.json").write_text(json.dumps(collection))
    (folder / "catalog.json").write_text(json.dumps(root))


def in_degrees(grid: Grid) -> tuple[float, float, float, float]:
    """Return west, south, east and north of a grid."""
    return aoi.in_degrees(grid)


# --- a proxy that misbehaves ---------------------------------------------------------------


@dataclass(kw_only=True)
class Request:
    """One HTTP request, and how often its path was asked for before."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    before: int

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(kw_only=True)
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def share(*parts: object) -> float:
    """Return a number in [0, 1) that depends on the parts alone, so that no order of requests changes it."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclass(kw_only=True)
class Proxy:
    """Forwards requests to `upstream`, with faults by `seed`; counts what it did in `counts`.

    `busy` is the share of requests answered with 5xx, or with 429 and Retry-After; `damaged` the share of rasters that
    are missing or end early, for ever; `sign_for`, if not 0, the number of requests that one signature is good for.
    """

    upstream: str
    seed: int = 1
    busy: float = 0.0
    damaged: float = 0.0
    sign_for: int = 0
    url: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    issued: int = 0
    used: Counter[int] = field(default_factory=Counter)

    def damage(self, path: str) -> str:
        """Return what is wrong with a raster: "missing", "truncated" or ""."""
        drawn = share(self.seed, "damaged", path)
        if not path.endswith(".tif") or drawn >= self.damaged:
            return ""
        return "missing" if drawn < self.damaged / 2 else "truncated"

    def fault(self, request: Request) -> Answer | None:
        """Return a wrong answer, or None for the right one."""
        if request.path.startswith("/token/"):
            self.issued += 1
            until = datetime.now(UTC) + timedelta(minutes=45)
            token = {"token": f"sig=n{self.issued}", "msft:expiry": until.isoformat()}
            return Answer(status=200, body=json.dumps(token).encode())
        if share(self.seed, "busy", request.path, request.before) < self.busy:
            status = BUSY[int(share(self.seed, "status", request.path, request.before) * len(BUSY))]
            headers = {"Retry-After": "1"} if status in {429, 503} else {}
            return Answer(status=status, headers=headers, body=b"<html>busy</html>")
        if self.sign_for and request.path.endswith(".tif"):
            number = int((re.search(r"sig=n(\d+)", request.target) or [0, 0])[1])
            self.used[number] += 1
            if not 0 < number <= self.issued or self.used[number] > self.sign_for:
                return Answer(status=403, body=b"expired")
        if self.damage(request.path) == "missing":
            return Answer(status=404)
        return None

    async def answer(self, request: Request, upstream: Upstream) -> Answer:
        wrong = self.fault(request)
        if wrong is not None:
            self.counts[str(wrong.status)] += 1
            return wrong
        self.counts["forwarded"] += 1
        if self.damage(request.path) == "truncated":
            whole = await upstream.ask("GET", request.path, {}, b"")
            return _ranged(whole.body[: len(whole.body) * 6 // 10], request)
        passed = {name: value for name, value in request.headers.items() if name in {"range", "content-type", "accept"}}
        target = request.path if self.sign_for else request.target
        found = await upstream.ask(request.method, target, passed, request.body)
        if "json" in found.headers.get("content-type", ""):
            # Links of an API carry its own address.
            found.body = found.body.replace(self.upstream.encode(), self.url.encode())
        return found


def _ranged(content: bytes, request: Request) -> Answer:
    asked = re.match(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not asked:
        return Answer(status=200, body=content)
    first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    if first > last:
        return Answer(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
    about = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return Answer(status=206, headers=about, body=content[first : last + 1])


class Upstream:
    """One connection to the server behind a proxy, opened again when the server has closed it."""

    def __init__(self, url: str) -> None:
        self.host = urllib.parse.urlsplit(url)
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        for last in (False, True):
            if self.streams is None:
                self.streams = await asyncio.open_connection(self.host.hostname, self.host.port)
            reader, writer = self.streams
            lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host.netloc}", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            try:
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                return await _response(reader, method)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.close()
                if last:
                    raise
        raise AssertionError

    def close(self) -> None:
        if self.streams:
            self.streams[1].close()
        self.streams = None


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
    pairs = (line.partition(":") for line in rest if line)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _response(reader: asyncio.StreamReader, method: str) -> Answer:
    first, headers = await _head(reader)
    body = b""
    if method != "HEAD":
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
    kept = {"content-type", "content-range", "accept-ranges", "last-modified", "etag"}
    if method == "HEAD":
        kept |= {"content-length"}
    return Answer(status=int(first.split()[1]), headers={k: v for k, v in headers.items() if k in kept}, body=body)


async def _serve(proxy: Proxy | Overpass, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    upstream = Upstream(proxy.upstream)
    try:
        while True:
            first, headers = await _head(reader)
            method, target, _ = first.split()
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            key = f"{method} {target.partition('?')[0]}"
            request = Request(method=method, target=target, headers=headers, body=body, before=proxy.asked[key])
            proxy.asked[key] += 1
            found = await proxy.answer(request, upstream)
            length = {} if "content-length" in found.headers else {"Content-Length": str(len(found.body))}
            lines = [f"HTTP/1.1 {found.status} -", *(f"{k}: {v}" for k, v in (found.headers | length).items())]
            writer.write("\r\n".join([*lines, "", ""]).encode("latin1") + (b"" if method == "HEAD" else found.body))
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the client has hung up
    finally:
        upstream.close()
        writer.close()


@contextmanager
def running(proxy: Proxy | Overpass) -> Iterator[None]:
    """Run a proxy on loopback, in a thread of its own; its `url` is set."""
    loops: list[asyncio.AbstractEventLoop] = []
    stopped, started = asyncio.Event(), threading.Event()

    async def run() -> None:
        server = await asyncio.start_server(lambda reader, writer: _serve(proxy, reader, writer), "127.0.0.1", 0)
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        proxy.upstream = proxy.upstream.rstrip("/")
        loops.append(asyncio.get_running_loop())
        started.set()
        async with server:
            await stopped.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield
    finally:
        loops[0].call_soon_threadsafe(stopped.set)
        thread.join(30)


# --- an Overpass server --------------------------------------------------------------------


class Overpass:
    """Answers the queries of `sgdata.labels.overpass` from simulated data, in the place of a `Proxy`.

    The first query is refused with 429; a box larger than `most` square degrees runs out of time.
    """

    def __init__(self, answer: Path, *, most: float = 1e9) -> None:
        self.document: dict[str, Any] = json.loads(answer.read_bytes())
        self.most, self.queries, self.timed_out = most, 0, 0
        self.url, self.upstream = "", "http://127.0.0.1:9"
        self.asked: Counter[str] = Counter()
        kinds: dict[str, dict[int, dict[str, Any]]] = {"node": {}, "way": {}, "relation": {}}
        for element in self.document["elements"]:
            kinds[element["type"]][element["id"]] = element
        self.nodes, self.ways, self.relations = kinds["node"], kinds["way"], kinds["relation"]

    async def answer(self, request: Request, upstream: Upstream) -> Answer:
        self.queries += 1
        if self.queries == 1:
            return Answer(status=429, headers={"Retry-After": "1"})
        query = urllib.parse.parse_qs(request.body.decode())["data"][0]
        south, west, north, east = map(float, re.findall(r"\[bbox:([^\]]*)\]", query)[0].split(","))
        if (north - south) * (east - west) > self.most:
            self.timed_out += 1
            remark = 'runtime error: Query timed out in "query" at line 1 after 181 seconds.'
            return Answer(status=200, body=json.dumps({"elements": [], "remark": remark}).encode())
        elements = self._select(query, shapely.box(west, south, east, north))
        count = {"type": "count", "id": 0, "tags": {"total": str(len(elements))}}
        return Answer(status=200, body=json.dumps(self.document | {"elements": [count, *elements]}).encode())

    def _select(self, query: str, box: Any) -> list[dict[str, Any]]:
        keys = {kind: set(re.findall(rf'{kind}\["([^"]*)"\]', query)) for kind in ("way", "relation")}
        near = {number for number, way in self.ways.items() if self._meets(way, box)}
        relations = [
            relation
            for relation in self.relations.values()
            if keys["relation"] & relation["tags"].keys() and any(m["ref"] in near for m in relation["members"])
        ]
        ways = {number: self.ways[number] for number in near if keys["way"] & self.ways[number].get("tags", {}).keys()}
        for relation in relations:
            ways |= {member["ref"]: self.ways[member["ref"]] for member in relation["members"]}
        nodes = {ref: self.nodes[ref] for way in ways.values() for ref in way["nodes"]}
        return [*nodes.values(), *ways.values(), *relations]

    def _meets(self, way: dict[str, Any], box: Any) -> bool:
        points = [(self.nodes[ref]["lon"], self.nodes[ref]["lat"]) for ref in way["nodes"]]
        return bool(shapely.intersects(shapely.LineString(points), box))
