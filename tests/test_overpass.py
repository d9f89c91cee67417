"""Test Overpass with a loopback server that refuses, stalls, and gives wrong and partial answers."""

from __future__ import annotations

import gzip
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import shapely

from sgdata import package_data
from sgdata.errors import ServiceError, SettingError, SourceError
from sgdata.labels import osm_features, overpass, tag_rules
from sgdata.remote.retry import RetryPolicy

CODES = {int(row["file_value"]): int(row["train_index"]) for row in package_data.table("segmunich_labels")}
ROWS = package_data.table("osm_lulc_tags")
RULES = tag_rules.rules([row for row in ROWS if row["osm_key"] == "landuse"], CODES, tiers=("core",), groups=())
AREA = shapely.box(11.5, 48.1, 11.6, 48.2)
ELEMENTS: list[dict[str, Any]] = [
    {"type": "count", "id": 0, "tags": {"total": "5"}},
    *({"type": "node", "id": i, "lon": 11.5 + i / 100, "lat": 48.1 + i % 2 / 100} for i in range(1, 5)),
    {"type": "way", "id": 1, "nodes": [1, 2, 4, 3, 1], "tags": {"landuse": "forest"}},
]
WHOLE = json.dumps({"osm3s": {"timestamp_osm_base": "2020-04-01T00:00:00Z"}, "elements": ELEMENTS}).encode()
PART = json.dumps({"elements": ELEMENTS[:3], "remark": "runtime error: Query timed out in query"}).encode()
HEAVY = json.dumps({"elements": [], "remark": "runtime error: Query run out of memory using about 2048 MB."}).encode()
BUSY = json.dumps(
    {"elements": [], "remark": "runtime error: open64: 0 Success Dispatcher_Client::timeout. The server is too busy."}
).encode()
NO_HISTORY = json.dumps({"elements": [], "remark": "runtime error: this database has no attic data"}).encode()
RUNNING = b"<html><p>Error</p>: runtime error: open64: 0 Success Dispatcher_Client::duplicate_query </html>"
SHORT = json.dumps({"elements": ELEMENTS[:3]}).encode()


@dataclass
class Server:
    """Web server that gives the answers of `script`, then complete ones, and records the queries."""

    url: str = ""
    script: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            state.asked.append(urllib.parse.parse_qs(body)["data"][0])
            state.agents.append(self.headers["User-Agent"])
            status, headers, content = state.script.pop(0) if state.script else (200, {}, WHOLE)
            if status == 0:  # hang up in the middle
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + content[:100])
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/api/interpreter"
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def fetch(server: Server, store: Path, pauses: list[float] | None = None, **more: Any) -> list[Path]:
    service = overpass.OverpassServer(url=server.url, policy=RetryPolicy(tries=3, wait_s=5))
    sleep = (pauses if pauses is not None else []).append
    return overpass.fetch(AREA, RULES, date="2020-04-01", store=store, service=service, sleep=sleep, **more)


def test_the_answer_is_stored_as_it_came_and_asked_for_once(server: Server, tmp_path: Path) -> None:
    (path,) = fetch(server, tmp_path)
    assert gzip.decompress(path.read_bytes()) == WHOLE
    assert server.asked == [
        '[out:json][timeout:180][maxsize:536870912][date:"2020-04-01T00:00:00Z"]'
        "[bbox:48.100000,11.500000,48.200000,11.600000];"
        '(way["landuse"];relation["landuse"]["type"~"^(multipolygon|boundary)$"];);'
        "(._;>;)->.all;.all out count;.all out body;"
    ]
    assert path.with_name(path.name.replace(".json.gz", ".overpassql")).read_text() == server.asked[0]
    assert server.agents[0].startswith("sgdata")
    first = path.read_bytes()
    assert fetch(server, tmp_path, offline=True) == [path]
    assert len(server.asked) == 1
    path.unlink()
    assert fetch(server, tmp_path)[0].read_bytes() == first


def test_offline_uses_only_stored_responses(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="without --offline"):
        fetch(server, tmp_path, offline=True)
    assert server.asked == []


def test_a_busy_server_is_retried_after_the_requested_wait(server: Server, tmp_path: Path) -> None:
    page = b"<html>too many requests</html>"
    server.script = [(429, {"Retry-After": "17"}, page), (504, {}, page)]
    pauses: list[float] = []
    assert len(fetch(server, tmp_path, pauses)) == 1
    assert pauses == [17, 10]


@pytest.mark.parametrize(
    ("status", "content", "complaint"),
    [
        (200, BUSY, "a part only, the server remarks 'runtime error: open64.*too busy"),
        (200, SHORT, "a part only, 2 of 5 elements"),
        (200, b"<html>The server is probably too busy</html>", "begins with b'<html>The server"),
        (200, b"", "begins with b''"),
        (429, b"", "answers 429"),
        (503, b"", "answers 503"),
        (0, WHOLE, "cannot be reached"),
    ],
)
def test_a_server_that_stays_wrong_is_an_error_and_leaves_nothing(
    server: Server, tmp_path: Path, status: int, content: bytes, complaint: str
) -> None:
    server.script = [(status, {"Retry-After": "9999"}, content)] * 3
    pauses: list[float] = []
    with pytest.raises(ServiceError, match=f"{complaint}.*3 tries"):
        fetch(server, tmp_path, pauses)
    assert len(server.asked) == 3
    assert len(pauses) == 2
    assert max(pauses) <= 300
    assert list(tmp_path.iterdir()) == []


def test_a_partial_answer_once_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.script = [(200, {}, SHORT), (0, {}, WHOLE)]
    assert gzip.decompress(fetch(server, tmp_path)[0].read_bytes()) == WHOLE


@pytest.mark.parametrize("answer", [(200, {}, PART), (200, {}, HEAVY), (504, {}, RUNNING), (200, {}, RUNNING)])
def test_a_query_that_asks_for_too_much_is_halved_at_once_and_stays_halved(
    server: Server, tmp_path: Path, answer: tuple[int, dict[str, str], bytes]
) -> None:
    server.script = [answer, answer]
    pauses: list[float] = []
    paths = fetch(server, tmp_path, pauses)
    boxes = [query.partition("[bbox:")[2].partition("]")[0] for query in server.asked]
    whole, south, quarter, other, north = boxes
    assert whole == "48.100000,11.500000,48.200000,11.600000"
    assert (south, north) == ("48.100000,11.500000,48.150000,11.600000", "48.150000,11.500000,48.200000,11.600000")
    # The half is wider than high on the ground.
    assert (quarter, other) == ("48.100000,11.500000,48.150000,11.550000", "48.100000,11.550000,48.150000,11.600000")
    assert pauses == []
    # What was halved once is not asked for as a whole again, by a later run or without a network.
    assert [fetch(server, tmp_path), fetch(server, tmp_path, offline=True)] == [paths, paths]
    assert len(server.asked) == 5
    found = osm_features.read_files(paths, AREA, RULES)
    assert found.counts == {"outside": 0, "polygons": 1}


def test_a_query_that_is_too_large_however_small_is_an_error_with_the_reason(server: Server, tmp_path: Path) -> None:
    server.script = [(200, {}, PART)] * 100
    with pytest.raises(ServiceError, match="Query timed out.*also for a box of 48.1"):
        fetch(server, tmp_path)
    assert len(server.asked) == overpass.MOST_HALVINGS + 1


def test_a_gateway_that_times_out_at_every_try_halves_the_query(server: Server, tmp_path: Path) -> None:
    server.script = [(504, {}, b"<html>Gateway Timeout</html>")] * 3
    assert len(fetch(server, tmp_path)) == 2


def test_waits_for_a_slot_begin_at_half_a_minute_and_double(server: Server, tmp_path: Path) -> None:
    server.script = [(429, {}, b""), (429, {}, b"")]
    pauses: list[float] = []
    fetch(server, tmp_path, pauses)
    assert pauses == [30, 60]


def test_a_date_of_retry_after_is_read_by_the_clock_given(server: Server, tmp_path: Path) -> None:
    server.script = [(503, {"Retry-After": "Thu, 01 Jan 1970 00:01:00 GMT"}, b"")]
    pauses: list[float] = []
    fetch(server, tmp_path, pauses, clock=lambda: 20.0)
    assert pauses == [40]


def test_a_server_without_history_is_reported_and_not_retried(server: Server, tmp_path: Path) -> None:
    server.script = [(200, {}, NO_HISTORY)]
    with pytest.raises(ServiceError, match="this database has no attic data"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1
    assert not list(tmp_path.glob("*.json.gz"))


def test_the_user_agent_has_a_contact(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGDATA_CONTACT", "someone@example.org")
    fetch(server, tmp_path)
    assert server.agents[0].endswith("(+someone@example.org)")
    monkeypatch.delenv("SGDATA_CONTACT")
    assert overpass.OverpassServer().user_agent.endswith("(no contact given)")  # and none that is made up


def test_a_refused_query_is_not_repeated(server: Server, tmp_path: Path) -> None:
    server.script = [(400, {}, b"<p><strong>Error</strong>: line 1: parse error: unknown date</p>")]
    with pytest.raises(ServiceError, match="400 Bad Request.*parse error: unknown date"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_an_unreachable_server_is_reported_in_one_line(tmp_path: Path) -> None:
    service = overpass.OverpassServer(url="http://127.0.0.1:9/", policy=RetryPolicy(tries=2))
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9.*2 tries") as caught:
        overpass.fetch(AREA, RULES, date="2020-04-01", store=tmp_path, service=service, sleep=lambda _: None)
    assert "\n" not in str(caught.value)


def test_reading_queries_the_server_and_returns_the_date(server: Server, tmp_path: Path) -> None:
    found = osm_features.read(server.url, AREA, rules=RULES, date="2020-04-01", store=tmp_path)
    assert found.counts == {"outside": 0, "polygons": 1}
    assert found.as_of == "2020-04-01T00:00:00Z"
    (name,) = found.sha256
    again = osm_features.read(server.url, AREA, rules=RULES, date="2020-04-01", store=tmp_path, offline=True)
    assert again.sha256 == found.sha256
    assert name in {path.name for path in tmp_path.iterdir()}


def test_large_areas_are_asked_for_in_tiles_and_by_groups_of_keys() -> None:
    rules = tag_rules.rules(ROWS, CODES, tiers=("core", "ext"), groups=("drive",))
    small = overpass.build_queries(AREA, rules, date="2020-04-01", service=overpass.OverpassServer())
    asked = " ".join(small)
    for kind in ("polygon", "line"):
        for key in tag_rules.keys(rules, kind):  # type: ignore[arg-type]
            assert asked.count(f'way["{key}"]') == 1
    assert 'relation["railway"]' in asked
    wide = shapely.box(11.0, 48.0, 12.0, 48.5)
    assert len(overpass.cut_tiles(wide.bounds)) == 4 * 3
    server = overpass.OverpassServer()
    assert len(overpass.build_queries(wide, rules, date="2020-04-01", service=server)) == 12 * len(small)
    corner = shapely.Polygon([(11.0, 48.0), (12.0, 48.0), (11.0, 48.5)])
    assert len(overpass.build_queries(corner, rules, date="2020-04-01", service=server)) < 12 * len(small)


@pytest.mark.parametrize("date", ["2020", "yesterday", '2020-04-01"];out;', "2020-4-1"])
def test_a_date_that_is_none_is_refused(date: str) -> None:
    with pytest.raises(SettingError, match="YYYY-MM-DD"):
        overpass.build_queries(AREA, RULES, date=date, service=server)
