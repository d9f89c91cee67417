"""Test scenes from catalogues: real answers of three providers, removal of duplicates, and named missing data."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pystac
import pytest
from stac_wrap import COLLECTION, Wrapped, wrap

from sgdata.errors import ServiceError, SettingError, SourceError
from sgdata.remote.retry import RetryPolicy
from sgdata.scenes import parse_items, search, twins
from sgdata.scenes.types import Scene
from sgdata.sentinel2 import L2A_BANDS

BANDS = (*L2A_BANDS, "SCL")
HERE = (10.36, 48.72, 10.37, 48.74)
"""Inside the small rasters that `scene` makes at the upper left of tile 32UPU."""


def scene(name: str, time: str, **changes: Any) -> Wrapped:
    layers: dict[str, tuple[Any, float]] = {"B02": (np.full((64, 64), 300, np.uint16), 100.0)}
    return Wrapped(id=name, time=time, layers=layers, **changes)


def query(**changes: Any) -> search.Query:
    base = search.Query(collection=COLLECTION, bounds=HERE, dates="2019-01-01/2019-12-31", bands=("B02",))
    return replace(base, **changes)


def parsed(path: Path) -> list[Scene]:
    return [parse_items.parse(item, BANDS) for item in pystac.ItemCollection.from_file(str(path))]


# --- real answers --------------------------------------------------------------------------


def test_planetary_computer(real: Path) -> None:
    scenes = parsed(real / "stac" / "planetary_computer" / "site2-2020_jun_jul-35MNM.geojson")
    assert len(scenes) == 13
    newest = max(scenes, key=lambda s: s.time)
    assert (newest.provider, newest.tile, newest.orbit) == ("planetary-computer", "35MNM", 78)
    assert (newest.crs, newest.baseline, newest.time) == ("EPSG:32735", "02.12", "2020-07-31T08:06:11Z")
    assert newest.datatake == "GS2A_20200731T080611_026673"
    assert newest.assets["SCL"].href.endswith("_SCL_20m.tif")
    assert newest.assets["B8A"].transform == (20.0, 0.0, 499980.0, 0.0, -20.0, 9200020.0)


def test_copernicus_data_space(real: Path) -> None:
    (only,) = parsed(real / "stac" / "cdse" / "FeatureCollection_36NYH.json")
    assert (only.provider, only.tile, only.orbit, only.baseline) == ("cdse", "36NYH", 135, "05.00")
    assert only.assets["B01"].href.endswith("_B01_60m.jp2")
    assert (only.assets["B02"].dtype, only.assets["B02"].crs) == ("uint16", "EPSG:32636")


def test_twins_of_one_acquisition(real: Path) -> None:
    path = real / "stac" / "earth_search_v1" / "munich_tile_32UPU" / "two_items_of_one_acquisition.json"
    kept, dropped = twins.drop_twins(parsed(path))
    assert [(s.id, s.baseline, s.orbit) for s in kept] == [("S2B_32UPU_20210531_1_L2A", "05.00", 65)]
    assert [d.id for d in dropped] == ["S2B_32UPU_20210531_0_L2A"]
    assert "S2B_32UPU_20210531_1_L2A" in dropped[0].reason


# --- a catalogue on disk -------------------------------------------------------------------


def test_scenes_come_in_order_with_hrefs_that_do_not_name_the_machine(tmp_path: Path) -> None:
    names = [("S2A_32UPU_20190705_0_L2A", "2019-07-05"), ("S2A_32UPU_20190301_0_L2A", "2019-03-01")]
    wrap(tmp_path / "c", [scene(name, f"{day}T10:00:00Z") for name, day in names])
    scenes, dropped = search.search(str(tmp_path / "c"), query())
    assert [s.id for s in scenes] == [names[1][0], names[0][0]]
    assert not dropped
    href = scenes[0].assets["B02"].href
    assert href == f"{COLLECTION}/{names[1][0]}/B02.tif"
    assert Path(search.resolve_hrefs(scenes[0], str(tmp_path / "c" / "catalog.json")).assets["B02"].href).exists()
    assert search.search(str(tmp_path / "c" / "catalog.json"), query()) == (scenes, ())


def test_twins_and_dates_are_distinguished(tmp_path: Path) -> None:
    day = "2019-07-05T10:00:00Z"
    wrap(
        tmp_path,
        [
            scene("S2A_32UPU_20190705_0_L2A", day, baseline="02.12"),
            scene("S2A_32UPU_20190705_1_L2A", day, baseline="05.00"),
            scene("S2A_32UPU_20200705_0_L2A", "2020-07-05T10:00:00Z"),
        ],
    )
    scenes, dropped = search.search(str(tmp_path), query())
    assert [s.id for s in scenes] == ["S2A_32UPU_20190705_1_L2A"]
    assert [d.id for d in dropped] == ["S2A_32UPU_20190705_0_L2A"]


def test_twins_across_a_second_are_twins(tmp_path: Path) -> None:
    times = ("2019-07-05T10:00:00.990Z", "2019-07-05T10:00:01.010Z", "2019-07-15T10:00:01Z")
    baselines = ("02.12", "05.00", "02.12")
    wrap(
        tmp_path,
        [scene(f"S2A_32UPU_{n}", t, baseline=b) for n, (t, b) in enumerate(zip(times, baselines, strict=True))],
    )
    scenes, dropped = search.search(str(tmp_path), query())
    assert [s.id for s in scenes] == ["S2A_32UPU_1", "S2A_32UPU_2"]
    assert [d.reason for d in dropped] == ["twin of S2A_32UPU_1 (baseline 02.12 after 05.00)"]
    # Pinned to one baseline, and in an order of choice.
    scenes, dropped = search.search(str(tmp_path), query(baselines=("02.12",)))
    assert [s.baseline for s in scenes] == ["02.12", "02.12"]
    assert [d.reason for d in dropped] == ["baseline 05.00, expected one of source.baselines 02.12"]
    scenes, dropped = search.search(str(tmp_path), query(baselines=("02.12", "05.00")))
    assert [s.id for s in scenes] == ["S2A_32UPU_0", "S2A_32UPU_2"]
    assert [d.id for d in dropped] == ["S2A_32UPU_1"]
    with pytest.raises(SettingError, match="0 of 3 scenes .* baseline 02.12, expected one of source.baselines 09.99"):
        search.search(str(tmp_path), query(baselines=("09.99",)))


def test_an_area_outside_names_area_and_extent(tmp_path: Path) -> None:
    wrap(tmp_path, [scene("S2A_32UPU_20190705_0_L2A", "2019-07-05T10:00:00Z")])
    with pytest.raises(SettingError, match=r"\(20\.0000, .* 0 items .* covers \(10\.3.*2019-07-05"):
        search.search(str(tmp_path), query(bounds=(20.0, 48.0, 21.0, 49.0)))


def test_a_missing_asset_is_named_with_its_key(tmp_path: Path) -> None:
    wrap(tmp_path, [scene("S2A_32UPU_20190705_0_L2A", "2019-07-05T10:00:00Z")])
    with pytest.raises(SourceError, match=r"S2A_32UPU_20190705_0_L2A: has no asset for B03 \('green'\)"):
        search.search(str(tmp_path), query(bands=("B02", "B03")))


def test_an_item_in_the_words_of_two_providers_is_refused(tmp_path: Path) -> None:
    wrap(tmp_path, [scene("S2A_32UPU_20190705_0_L2A", "2019-07-05T10:00:00Z")])
    path = next(tmp_path.rglob("S2A*.json"))
    item = json.loads(path.read_text())
    item["assets"]["B02"] = item["assets"]["blue"]
    path.write_text(json.dumps(item))
    with pytest.raises(SourceError, match="named as earth-search and as planetary-computer do"):
        search.search(str(tmp_path), query(bands=("B02",)))


def test_an_item_without_projection_gets_the_zone_of_its_tile(tmp_path: Path) -> None:
    folder = wrap(tmp_path, [scene("S2A_32UPU_20190705_0_L2A", "2019-07-05T10:00:00Z")])
    path = next(folder.rglob("S2A*.json"))
    item = json.loads(path.read_text())
    del item["properties"]["proj:epsg"]
    for key in ("proj:shape", "proj:transform"):
        del item["assets"]["blue"][key]
    path.write_text(json.dumps(item))
    ((only,), _) = search.search(str(folder), query())
    assert (only.crs, only.assets["B02"].transform) == ("EPSG:32632", None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "type None is no STAC; give --stac a STAC API, catalogue"),
        ('{"type": "Topology"}', "type 'Topology' is no STAC"),
        ("not json", "neither STAC nor a list of addresses, begins with 'not json'; give --stac"),
        ("<!doctype html>", "neither STAC nor a list of addresses, begins with '<!doctype html>'; give --stac"),
        ("", "neither STAC nor a list of addresses, is empty; give --stac"),
        ("[1, 2]", "holds a int, expected STAC objects; give --stac"),
        ('{"type": "Feature"}', "cannot be read as STAC"),
        ('{"type": "Catalog", "links": 7}', "cannot be read as STAC"),
    ],
)
def test_inputs_that_are_not_catalogues_are_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "catalog.json").write_text(content)
    with pytest.raises((SettingError, SourceError), match=words) as caught:
        search.search(str(tmp_path), query())
    assert "\n" not in str(caught.value)


def test_no_catalogue_there(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no such file"):
        search.search(str(tmp_path / "nowhere"), query())


@pytest.mark.parametrize("dates", ["2019", "2019-01-01", "2019-01-01/", "2020-01-01/2019-01-01"])
def test_invalid_dates_are_refused(dates: str) -> None:
    with pytest.raises(SettingError, match=dates):
        search.parse_dates(dates)


# --- a server ------------------------------------------------------------------------------


class TwoPages(BaseHTTPRequestHandler):
    """A minimal STAC API: a landing page and a search that answers in two pages by POST."""

    items: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        here = f"http://127.0.0.1:{self.server.server_address[1]}"
        core = "https://api.stacspec.org/v1.0.0"
        links = [
            {"rel": "self", "href": here},
            {"rel": "root", "href": here},
            {"rel": "search", "href": f"{here}/search", "method": "POST", "type": "application/geo+json"},
        ]
        landing = {"type": "Catalog", "stac_version": "1.0.0", "id": "two", "description": "two pages", "links": links}
        self.answer(landing | {"conformsTo": [f"{core}/core", f"{core}/item-search"]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(asked)
        page = asked.get("page", 1)
        there = f"http://127.0.0.1:{self.server.server_address[1]}/search"
        following = {"rel": "next", "href": there, "method": "POST", "body": asked | {"page": 2}}
        features = self.items[:1] if page == 1 else self.items[1:]
        links = [following] if page == 1 and len(self.items) > 1 else []
        self.answer({"type": "FeatureCollection", "features": features, "links": links})

    def answer(self, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/geo+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


def test_an_api_is_asked_page_by_page_and_year_by_year(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [("S2A_32UPU_20190705_0_L2A", "2019-07-05"), ("S2A_32UPU_20190301_0_L2A", "2019-03-01")]
    folder = wrap(tmp_path / "c", [scene(name, f"{day}T10:00:00Z") for name, day in names])
    items = [json.loads(path.read_text()) for path in sorted(folder.rglob("S2A*.json"))]
    for item in items:
        item["assets"]["blue"]["href"] = f"https://example.org/{item['id']}/B02.tif"
    monkeypatch.setattr(TwoPages, "items", items)
    monkeypatch.setattr(TwoPages, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), TwoPages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        scenes, _ = search.search(url, query(dates="2018-06-01/2019-12-31"))
        server.shutdown()
    assert [s.id for s in scenes] == sorted(name for name, _ in names)
    assert scenes[0].assets["B02"].href == "https://example.org/S2A_32UPU_20190301_0_L2A/B02.tif"
    assert [asked.get("page", 1) for asked in TwoPages.asked] == [1, 2, 1, 2]
    assert TwoPages.asked[0]["datetime"].startswith("2018-06-01")
    assert TwoPages.asked[2]["datetime"].startswith("2019-01-01")


class Circle(TwoPages):
    """A STAC API in which every page links to itself as the next one."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append({})
        there = f"http://127.0.0.1:{self.server.server_address[1]}/search"
        following = {"rel": "next", "href": there, "method": "POST", "body": {"page": len(self.asked)}}
        self.answer({"type": "FeatureCollection", "features": self.items, "links": [following]})


def test_paging_that_goes_in_a_circle_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = wrap(tmp_path / "c", [scene("S2A_32UPU_20190705_0_L2A", "2019-07-05T10:00:00Z")])
    monkeypatch.setattr(Circle, "items", [json.loads(path.read_text()) for path in folder.rglob("S2A*.json")])
    monkeypatch.setattr(Circle, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Circle) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ServiceError, match="3 pages in a row repeat items after 1 of them"):
            search.search(f"http://127.0.0.1:{server.server_address[1]}", query())
        server.shutdown()
    assert len(Circle.asked) == 4


def test_strips_of_two_stations_are_both_kept(tmp_path: Path) -> None:
    names = ["S2A_32UPU_20190705_0_L2A", "S2A_32UPU_20190705_1_L2A"]
    folder = wrap(tmp_path / "c", [scene(name, "2019-07-05T10:00:00Z") for name in names])
    assert len(search.search(str(folder), query())[0]) == 1
    for name, (south, north) in zip(names, ((48.70, 48.722), (48.72, 48.75)), strict=True):
        path = next(folder.rglob(f"{name}.json"))
        item = json.loads(path.read_text())
        ring = [[10.3, south], [10.5, south], [10.5, north], [10.3, north], [10.3, south]]
        item["geometry"] = {"type": "Polygon", "coordinates": [ring]}
        path.write_text(json.dumps(item))
    scenes, dropped = search.search(str(folder), query())
    assert [one.id for one in scenes] == names
    assert not dropped
    assert len({one.overpass for one in scenes}) == 1


def test_an_unreachable_server_is_one_line_after_finite_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "RETRY", RetryPolicy(tries=2, wait_s=0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ServiceError, match="no answer") as caught:
        search.search(url, query())
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)


# --- items as other catalogues write them ---------------------------------------------------


def changed_scene(folder: Path, change: Callable[[dict[str, Any]], None]) -> Scene:
    """Return the single scene of a catalogue after a change of its item."""
    wrap(folder, [scene("S2A_32UPU_20190705_0_L2A", "2019-07-05T10:00:00Z")])
    path = next(folder.rglob("S2A*.json"))
    item = json.loads(path.read_text())
    change(item)
    path.write_text(json.dumps(item))
    ((only,), _) = search.search(str(folder), query())
    return only


def properties(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda item: item["properties"].update(changes)


def heights(item: dict[str, Any]) -> None:
    west, south, east, north = item["bbox"]
    item["bbox"] = [west, south, 0, east, north, 900]


def boxless(item: dict[str, Any]) -> None:
    del item["bbox"]


def newer(item: dict[str, Any]) -> None:
    """Convert to STAC 1.1: one `bands`, transforms of nine numbers."""
    asset = item["assets"]["blue"]
    asset |= {"bands": [{"data_type": "uint16", "raster:offset": -0.1}], "proj:transform": [*TRANSFORM, 0, 0, 1]}
    del asset["raster:bands"]


def lower(item: dict[str, Any]) -> None:
    item["assets"] = {"b02": item["assets"]["blue"]}


TRANSFORM = (100.0, 0.0, 600000.0, 0.0, -100.0, 5400000.0)
SPAN = {"datetime": None, "start_datetime": "2019-07-05T10:00:00Z", "end_datetime": "2019-07-05T10:00:09Z"}


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        (properties(datetime="2019-07-05T12:00:00+02:00"), "time", "2019-07-05T10:00:00Z"),
        (properties(**SPAN), "time", "2019-07-05T10:00:00Z"),
        (properties(**{"grid:code": "mgrs-32upu"}), "tile", "32UPU"),
        (properties(**{"proj:code": "epsg:32632"}), "crs", "EPSG:32632"),
        (properties(**{"s2:processing_baseline": "N0500"}), "baseline", "05.00"),
        (
            properties(**{"s2:processing_baseline": None, "s2:product_uri": "S2A_MSIL2A_2019_N0211_R022_T32UPU"}),
            "baseline",
            "02.11",
        ),
        (properties(**{"sat:relative_orbit": "R022"}), "orbit", 22),
        (properties(**{"eo:cloud_cover": "12.5"}), "cloud_cover", 12.5),
        (newer, "declared_offset", -1000),
        (lower, "provider", "planetary-computer"),
        (heights, "tile", "32UPU"),
        (boxless, "tile", "32UPU"),
    ],
)
def test_items_in_other_words_mean_the_same(
    change: Callable[[dict[str, Any]], None], name: str, expected: object, tmp_path: Path
) -> None:
    found = changed_scene(tmp_path, change)
    assert getattr(found, name) == expected
    assert found.assets["B02"].transform == TRANSFORM
    assert len(found.bbox) == 4


@pytest.mark.parametrize("box", [(179.1, -17.2, -179.9, -16.2), (179.1, -17.2, 180.1, -16.2)])
@pytest.mark.parametrize("area", [(179.5, -17.0, 179.6, -16.9), (-179.95, -17.0, -179.94, -16.9)])
def test_an_item_across_the_date_line_is_found_from_both_sides(
    box: tuple[float, ...], area: tuple[float, float, float, float], tmp_path: Path
) -> None:
    wrap(tmp_path, [scene("S2A_60KYF_20190705_0_L2A", "2019-07-05T10:00:00Z")])
    path = next(tmp_path.rglob("S2A*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bbox": box}))
    assert len(search.search(str(tmp_path), query(bounds=area))[0]) == 1
    with pytest.raises(SettingError, match="0 items"):
        search.search(str(tmp_path), query(bounds=(10.0, -17.0, 10.1, -16.9)))


@pytest.mark.parametrize(
    "change",
    [
        lambda item: item["assets"]["blue"].update({"proj:transform": ["a", "b"]}),
        lambda item: item.update(properties=None),
        lambda item: item.update(assets=None),
        lambda item: item.update(type="Feature?"),
        lambda item: item.update(assets={"blue": {}}),
        lambda item: item["properties"].update(datetime="yesterday"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_item_that_is_none_is_one_line(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be (read|parsed)") as caught:
        changed_scene(tmp_path, change)
    assert "\n" not in str(caught.value)


def test_items_without_a_time_have_an_extent(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", '
        '"stac_version": "1.0.0", "id": "x", "geometry": null, "bbox": [0, 0, 1, 1], "links": [], "assets": {}, '
        '"properties": {"datetime": "2019-07-05T10:00:00Z"}, "collection": "sentinel-2-l2a"}]}'
    )
    with pytest.raises(SettingError, match="covers"):
        search.search(str(tmp_path / "items.json"), query())


class Careless(TwoPages):
    """A STAC API that ignores the query, repeats items, and pages by `merge`, with the changed fields only."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(asked)
        page = asked.get("page", 1)
        there = f"http://127.0.0.1:{self.server.server_address[1]}/search"
        following = {"rel": "next", "href": there, "method": "POST", "merge": True, "body": {"page": page + 1}}
        self.answer(
            {"type": "FeatureCollection", "features": self.items[page - 1 :], "links": [following] * (page < 3)}
        )


def test_an_api_that_ignores_the_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [("S2A_32UPU_20190705_0_L2A", "2019-07-05"), ("S2A_32UPU_20160301_0_L2A", "2016-03-01")]
    folder = wrap(tmp_path / "c", [scene(name, f"{day}T10:00:00Z") for name, day in names])
    items = [json.loads(path.read_text()) for path in sorted(folder.rglob("S2A*.json"), reverse=True)]
    monkeypatch.setattr(Careless, "items", [*items, items[0] | {"id": "other", "collection": "landsat"}])
    monkeypatch.setattr(Careless, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Careless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        scenes, _ = search.search(f"http://127.0.0.1:{server.server_address[1]}", query())
        server.shutdown()
    assert [s.id for s in scenes] == [names[0][0]]
    assert [asked.get("page", 1) for asked in Careless.asked] == [1, 2, 3]
    assert all(asked["collections"] == [COLLECTION] for asked in Careless.asked)


class Nonsense(TwoPages):
    """A server whose answers are JSON but not STAC."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"features": [None]})


def test_an_answer_that_is_not_stac_is_reported_in_one_line() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Nonsense) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(SourceError, match="cannot be read as STAC") as caught:
            search.search(f"http://127.0.0.1:{server.server_address[1]}", query())
        server.shutdown()
    assert "\n" not in str(caught.value)
