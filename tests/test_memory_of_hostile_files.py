"""Peak memory and time of inputs that declare more than they are, each read in a process of its own."""

from __future__ import annotations

import gzip
import inspect
import json
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from sgdata import documents, limits
from sgdata.errors import SourceError
from sgdata.limits import Limit

MEMORY_MB = 1000
"""What a hostile input may add to a process."""

CHILD = """
import resource, sys
from pathlib import Path
from sgdata.errors import SgdataError
{prepare}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    {read}
    print("read")
except SgdataError as error:
    print(type(error).__name__, str(error).replace(chr(10), "<newline>"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def outcome(prepare: str, read: str, *arguments: object, timeout_s: float = 60) -> str:
    """The message with which a child process refuses an input; asserts that its memory stayed below the limit."""
    script = CHILD.format(prepare=textwrap.dedent(prepare), read=read)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    *lines, grown = ended.stdout.splitlines()
    assert int(grown) < MEMORY_MB, f"{grown} MB; {lines}"
    assert len(lines) == 1
    assert "<newline>" not in lines[0]
    return lines[0]


def test_every_limit_has_a_unit_and_a_reason() -> None:
    table = {name: value for name, value in vars(limits).items() if isinstance(value, Limit)}
    assert len(table) > 20
    for name, limit in table.items():
        assert limit.most > 0, name
        assert limit.unit, name
        assert any(character.isdigit() for character in limit.reason), f"{name}: no figure in its reason"
        limit.check(limit.most, "x")
        with pytest.raises(SourceError, match="x: .* are read: "):
            limit.check(limit.most + 1, "x")


# --- rasters -------------------------------------------------------------------------------


def tiff(path: Path, width: int, height: int, *, tile: int) -> Path:
    """A classic TIFF of one band in tiles that are all absent: a few hundred bytes, whatever it declares."""
    count = -(-width // tile) * -(-height // tile)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, count, 0), (325, 4, count, 0), (339, 3, 1, 1),
    ]  # fmt: skip
    body = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(body + struct.pack("<I", 0))
    return path


OPEN = "from sgdata.rasters import geotiff"


def test_a_block_of_gigabytes_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", 65536, 65536, tile=65536)
    read = "with geotiff.open_raster(sys.argv[1], use='scene') as it: it.read(1, window=((0, 1), (0, 1)))"
    assert "bytes in one block" in outcome(OPEN, read, path)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize("driver", ["GTiff", "JP2OpenJPEG"])
def test_a_raster_of_a_million_squared_is_refused_by_its_header(driver: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    if driver == "GTiff":
        profile = {"width": 10**6, "height": 10**6, "count": 1, "dtype": "uint8", "SPARSE_OK": True, "tiled": True}
        place = {"crs": "EPSG:32632", "transform": from_origin(6e5, 5e6, 10, 10)}
        rasterio.open(
            path, "w", driver="GTiff", blockxsize=4096, blockysize=4096, BIGTIFF=True, **place, **profile
        ).close()
    else:
        with rasterio.open(path, "w", driver=driver, width=64, height=64, count=1, dtype="uint8") as dataset:
            dataset.write(np.ones((1, 64, 64), np.uint8))
        content = path.read_bytes()
        # SIZ and ihdr declare the size of the image and of its tiles.
        content = content.replace(struct.pack(">II", 64, 64), struct.pack(">II", 10**6, 10**6))
        path.write_bytes(content)
    read = "with geotiff.open_raster(sys.argv[1], use='scene') as it: it.read(1, window=((0, 1), (0, 1)))"
    assert outcome(OPEN, read, path).startswith("SourceError")


def test_strips_that_name_the_same_bytes_are_refused(tmp_path: Path) -> None:
    count, size = 20_000, 160_000
    tags = [
        (256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, count, 8 + size), (277, 3, 1, 1), (278, 4, 1, 64), (279, 4, count, 8 + size + 4 * count),
    ]  # fmt: skip
    start = 8 + size + 8 * count
    content = struct.pack("<2sHI", b"II", 42, start) + b"\1" * size
    content += struct.pack("<I", 8) * count + struct.pack("<I", size) * count
    content += (
        struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 0)
    )
    (tmp_path / "a.tif").write_bytes(content)
    read = "small_tiff.read(Path(sys.argv[1]).read_bytes())"
    assert "claims" in outcome("from sgdata.rasters import small_tiff", read, tmp_path / "a.tif")


# --- documents and archives ----------------------------------------------------------------


def zeros(path: Path, size: int) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as handle:
        for _ in range(size >> 20):
            handle.write(bytes(1 << 20))
    return path


def test_an_answer_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = zeros(tmp_path / "answer.json.gz", 1 << 30)
    read = "overpass.unpack(Path(sys.argv[1]))"
    assert "unpacks to more than" in outcome("from sgdata.labels import overpass", read, path)


@pytest.mark.parametrize("content", ["[" * 100_000, "[" + "{}," * 5_000_000 + "{}]", '{"a":' * 50_000])
def test_json_of_many_or_nested_values_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    prepare = "from sgdata import documents"
    read = "documents.parse_bounded_json(documents.read_bytes(Path(sys.argv[1])), 'a.json')"
    assert outcome(prepare, read, tmp_path / "a.json").startswith("SourceError a.json")


def test_gzip_is_unpacked_whole_or_not_at_all() -> None:
    one = gzip.compress(b"one")
    assert documents.unpack_gzip(one + gzip.compress(b"two"), "x") == b"onetwo"
    assert documents.unpack_gzip(b"plain", "x") == b"plain"
    for damaged in (one[:-3], b"\x1f\x8b" + bytes(20), one + b"junk"):
        with pytest.raises(SourceError, match="cannot be unpacked"):
            documents.unpack_gzip(damaged, "x")


def test_a_member_of_hundreds_of_megabytes_is_rejected_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("big.tif", "w", force_zip64=True) as member:
            for _ in range(900):
                member.write(bytes(1 << 20))
        archive.writestr("small.tif", b"x")
    read = "raise SgdataError(repr(archives.list_members(Path(sys.argv[1]))))"
    said = outcome("from sgdata.datasets import archives", read, tmp_path / "a.zip")
    assert "rejected=(('big.tif', '943718400 bytes, at most 268435456 are read')" in said


# --- OpenStreetMap -------------------------------------------------------------------------

OSM = """
import shapely
from sgdata.builds import build_recipe
from sgdata.labels import make_labels, osm_features
area = shapely.box(11, 48, 12, 49)
rules = make_labels.read_classes(build_recipe.recipe_for("segmunich", {"bbox": (11, 48, 12, 49)}).labels).rules
"""
READ_OSM = "raise SgdataError(repr(dict(osm_features.read(sys.argv[1], area, rules=rules).losses)))"


def way(tag: str, nodes: int) -> str:
    """A way that goes from west to east and back, over and over."""
    points = (
        f'<node id="{i + 1}" lon="{11.1 + 0.8 * (i % 2)}" lat="{48.1 + 0.8 * (i * 7919 % nodes) / nodes:.7f}"/>'
        for i in range(nodes)
    )
    refs = "".join(f'<nd ref="{i + 1}"/>' for i in (*range(nodes), 0))
    return f'<osm version="0.6">{"".join(points)}<way id="1">{refs}{tag}</way></osm>'


@pytest.mark.parametrize(("nodes", "words"), [(1500, "crosses itself more than"), (100_000, "nodes, expected at most")])
@pytest.mark.parametrize("tag", ['<tag k="landuse" v="forest"/>', '<tag k="highway" v="primary"/>'])
def test_a_way_that_zigzags_is_left_out_and_counted(nodes: int, words: str, tag: str, tmp_path: Path) -> None:
    (tmp_path / "a.osm").write_text(way(tag, nodes))
    assert words in outcome(OSM, READ_OSM, tmp_path / "a.osm")


SHAPES: dict[str, Callable[[], str]] = {
    "blanks": lambda: " " * 70_000,
    "comments": lambda: "<!-- -->" * 10_000,
    "comment": lambda: "<!--" + "-" * 70_000,
    "nan": lambda: '<osm version="0.6"><node id="1" lon="nan" lat="48"/></osm>',
    "far": lambda: way('<tag k="landuse" v="forest"/>', 4).replace('lon="11.1"', 'lon="1e999"'),
    "doctype": lambda: "<!DOCTYPE osm><osm/>",
}


@pytest.mark.parametrize("name", SHAPES)
def test_damaged_documents_are_refused_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.osm").write_text(SHAPES[name]())
    assert outcome(OSM, READ_OSM, tmp_path / "a.osm", timeout_s=20).startswith("SourceError")


# --- catalogues ----------------------------------------------------------------------------


def catalogue(path: Path, *links: tuple[str, str]) -> None:
    about = {"type": "Catalog", "stac_version": "1.0.0", "id": path.stem, "description": "x"}
    path.write_text(json.dumps(about | {"links": [{"rel": rel, "href": href} for rel, href in links]}))


SEARCH = """
from sgdata.scenes import search
query = search.Query(collection="c", bounds=(11, 48, 12, 49), dates="2019-01-01/2019-12-31", bands=("B02",))
"""


def test_a_catalogue_that_is_below_itself_stops_with_the_reason(tmp_path: Path) -> None:
    catalogue(tmp_path / "catalog.json", ("child", "./b.json"))
    catalogue(tmp_path / "b.json", ("child", "./catalog.json"))
    said = outcome(SEARCH, "search.search(sys.argv[1], query)", tmp_path)
    assert "is below itself" in said


def test_a_chain_of_catalogues_stops_with_the_reason(tmp_path: Path) -> None:
    for number in range(60):
        catalogue(tmp_path / f"c{number}.json", ("child", f"./c{number + 1}.json"))
    said = outcome(SEARCH, "search.search(sys.argv[1], query)", tmp_path / "c0.json")
    assert "catalogues inside each other" in said


def test_a_catalogue_on_disk_links_to_nothing_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    catalogue(tmp_path / "secret.json")
    for href in ("../secret.json", str(tmp_path / "secret.json"), (tmp_path / "secret.json").as_uri()):
        catalogue(tmp_path / "in" / "catalog.json", ("child", href))
        assert "is outside" in outcome(SEARCH, "search.search(sys.argv[1], query)", tmp_path / "in")


ENDLESS = """
import json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Api(BaseHTTPRequestHandler):
    count = 0
    def do_GET(self):
        here = f"http://127.0.0.1:{self.server.server_address[1]}"
        core = "https://api.stacspec.org/v1.0.0"
        links = [{"rel": "search", "href": f"{here}/search", "method": "POST"}, {"rel": "root", "href": here}]
        about = {"type": "Catalog", "stac_version": "1.0.0", "id": "x", "description": "x", "links": links}
        self.answer(about | {"conformsTo": [f"{core}/core", f"{core}/item-search"]})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        here = f"http://127.0.0.1:{self.server.server_address[1]}/search"
        Api.count += 1
        base = {"type": "Feature", "stac_version": "1.0.0", "collection": "c", "links": [], "assets": {},
                "properties": {"datetime": "2019-06-01T00:00:00Z", "x": ["pad"] * 300}, "bbox": [11, 48, 12, 49],
                "geometry": {"type": "Polygon", "coordinates": [[[11, 48], [12, 48], [12, 49], [11, 48]]]}}
        items = [base | {"id": f"{Api.count}-{n}"} for n in range(int(sys.argv[1]))]
        link = {"rel": "next", "href": here, "method": "POST", "body": {"page": Api.count}}
        self.answer({"type": "FeatureCollection", "features": items, "links": [link]})
    def answer(self, document):
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def log_message(self, *arguments):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}"
"""


@pytest.mark.parametrize(
    ("each", "words"),
    [(1, "at most 3 are read"), pytest.param(100, "items in one year", marks=pytest.mark.slow)],
)
def test_an_api_without_end_stops_with_the_reason(each: int, words: str) -> None:
    prepare = SEARCH + ENDLESS
    if each == 1:
        prepare += inspect.cleandoc("""
            from sgdata.limits import Limit
            from sgdata.scenes import read_catalog
            read_catalog.SEARCH_PAGES = Limit(3, "pages", "a test")
        """)
    assert words in outcome(prepare, "search.search(url, query)", each, timeout_s=300)
