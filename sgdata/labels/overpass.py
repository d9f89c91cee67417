"""Query Overpass for the features of an area as of a date, store raw answers and check that they are complete.

A server that runs out of time answers with status 200 and a part of the data; a busy one answers with an HTML page.
Both are detected: each query also asks for the number of the elements that it asks for. A query for which the server
lacks time or memory is halved, since the same query would fail again, or be refused as one that is still running; a
busy server is asked again; any other refusal is final.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgdata import documents, earth, files
from sgdata.errors import ServiceError, SettingError, SourceError
from sgdata.labels import tag_rules
from sgdata.limits import ANSWER_BYTES, ANSWER_SECONDS, ANSWER_VALUES
from sgdata.remote import retry, web

log = logging.getLogger("sgdata")

# Keys of one query each, so that no answer is too large; other keys of a class table share one more query.
KEY_GROUPS = (
    ("landuse", "landcover"),
    ("natural", "water", "waterway", "wetland"),
    ("leisure", "tourism", "sport"),
    ("highway", "area:highway", "railway", "aeroway"),
    ("amenity", "shop", "office"),
    ("building",),
)
TILE_KM = 20  # at most 400 km2 a query
KM_PER_DEGREE = earth.EQUATOR_LONGITUDE_M / 1000
RETRY = retry.RetryPolicy(tries=5, wait_s=5)
LIMIT_WAIT_S = 30.0
"""First wait after 429 (Too Many Requests) without Retry-After; it doubles. A slot is seldom free earlier."""
MOST_HALVINGS = 6
"""Greatest number of times that a query is halved: from 400 km2 down to 6 km2."""
TOO_LARGE = re.compile("timed out|out of memory|duplicate_query", re.IGNORECASE)
TOO_BUSY = re.compile("too busy|overcrowded|Dispatcher_Client|rate_limited", re.IGNORECASE)
BBOX = re.compile(r"\[bbox:([^\]]*)\]")


class TooLargeError(Exception):
    """A query for which the server lacks time or memory."""


def user_agent() -> str:
    """Return the User-Agent header: the program and a contact, as operators of public servers ask for.

    SGDATA_CONTACT is the contact address to send.
    """
    from importlib.metadata import version

    contact = os.environ.get("SGDATA_CONTACT", "").strip()
    return f"sgdata/{version('sgdata')} ({f'+{contact}' if contact else 'no contact given'})"


@dataclass(frozen=True, kw_only=True)
class OverpassServer:
    """Overpass server and its limits.

    Attributes:
        url: Address of the interpreter.
        timeout_s: Limit of a query in seconds.
        maxsize: Limit of the memory of a query in bytes.
        policy: Retry policy.
        user_agent: User-Agent header, with a contact.
    """

    url: str = "https://overpass-api.de/api/interpreter"
    timeout_s: int = 180
    maxsize: int = 1 << 29
    policy: retry.RetryPolicy = RETRY
    user_agent: str = field(default_factory=user_agent)


def fetch(
    area: Any,
    rules: tag_rules.RuleTable,
    *,
    date: str,
    store: Path,
    service: OverpassServer,
    offline: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> list[Path]:
    """Download the raw answers that cover an area; stored ones are used again.

    Args:
        area: Polygon (shapely) in WGS84.
        rules: Rules whose keys are queried.
        date: State of the data, YYYY-MM-DD or an ISO time in UTC.
        store: Folder for the answers, `overpass-<hash of query>.json.gz`.
        service: The server.
        offline: Use stored answers only.
        sleep: Function that waits between tries; tests replace it.
        clock: Function that returns the seconds since 1970; tests replace it.

    Returns:
        Paths of the answers.

    Raises:
        SettingError: The date is invalid.
        ServiceError: The server refuses, cannot be reached, or gives no complete answer after all tries.
        SourceError: `offline`, and an answer is not stored.
    """
    if service.url == OverpassServer.url and not offline and not os.environ.get("SGDATA_CONTACT"):
        log.warning("%s: set SGDATA_CONTACT to your address; its operators ask for one", service.url)

    def covering(query: str, halvings: int) -> Iterator[Path]:
        path = store / f"overpass-{files.sha256(query.encode())[:16]}.json.gz"
        halved = path.with_name(path.name.replace(".json.gz", ".halved"))
        if not path.is_file() and not halved.is_file():
            if offline:
                raise SourceError(f"{path}: no stored answer for this area, date and tag table; run without --offline")
            try:
                files.write(path, gzip.compress(_download(query, service, sleep, clock), mtime=0))
            except TooLargeError as error:
                if halvings == MOST_HALVINGS:
                    raise ServiceError(
                        f"{service.url}: {error!s:.300}, also for a box of {BBOX.findall(query)[0]}; try later, or "
                        "another --osm source"
                    ) from None
                files.write(halved, f"{error}\n".encode())
            files.write(path.with_name(path.name.replace(".json.gz", ".overpassql")), query.encode())
        if path.is_file():
            yield path
        else:
            for half in halve(query):
                yield from covering(half, halvings + 1)

    return [
        path for query in build_queries(area, rules, date=date, service=service) for path in covering(query, halvings=0)
    ]


def halve(query: str) -> list[str]:
    """Return the query for each half of its box, cut across the longer side."""
    south, west, north, east = (float(value) for value in BBOX.findall(query)[0].split(","))
    if (east - west) * math.cos(math.radians((south + north) / 2)) > north - south:
        middle = (west + east) / 2
        boxes = [(south, west, north, middle), (south, middle, north, east)]
    else:
        middle = (south + north) / 2
        boxes = [(south, west, middle, east), (middle, west, north, east)]
    return [BBOX.sub(f"[bbox:{','.join(f'{value:.6f}' for value in box)}]", query, count=1) for box in boxes]


def build_queries(area: Any, rules: tag_rules.RuleTable, *, date: str, service: OverpassServer) -> list[str]:
    """Return one query per group of keys and tile that meets the area. Raises SettingError if the date is invalid."""
    import shapely

    if not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?", date):
        raise SettingError(f"OpenStreetMap date {date!r}: expected YYYY-MM-DD")
    moment = date if "T" in date else f"{date}T00:00:00Z"
    head = f'[out:json][timeout:{service.timeout_s}][maxsize:{service.maxsize}][date:"{moment}"]'
    areas, lines = set(tag_rules.keys(rules, "polygon")), set(tag_rules.keys(rules, "line"))
    other_keys = tuple(sorted((areas | lines).difference(*KEY_GROUPS)))
    texts = []
    for tile in cut_tiles(area.bounds):
        if not shapely.intersects(area, shapely.box(*tile)):
            continue
        west, south, east, north = (f"{value:.6f}" for value in tile)
        for group in (*KEY_GROUPS, other_keys):
            statements = [f'way["{key}"];' for key in group if key in areas | lines]
            # Only these relations are areas; members of routes and sites may cover half a city.
            statements += [f'relation["{key}"]["type"~"^(multipolygon|boundary)$"];' for key in group if key in areas]
            if statements:
                body = f"({''.join(statements)});(._;>;)->.all;.all out count;.all out body;"
                texts.append(f"{head}[bbox:{south},{west},{north},{east}];{body}")
    return texts


def cut_tiles(bounds: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """Return boxes (west, south, east, north) of at most TILE_KM x TILE_KM that cover `bounds`, in degrees."""
    west, south, east, north = bounds
    middle = math.cos(math.radians((south + north) / 2))
    cols = max(1, math.ceil((east - west) * KM_PER_DEGREE * middle / TILE_KM))
    rows = max(1, math.ceil((north - south) * KM_PER_DEGREE / TILE_KM))
    # The last edge is exactly the area's, without rounding.
    x = [west + (east - west) * i / cols for i in range(cols)] + [east]
    y = [south + (north - south) * i / rows for i in range(rows)] + [north]
    return [(x[i], y[j], x[i + 1], y[j + 1]) for j in range(rows) for i in range(cols)]


def _download(query: str, service: OverpassServer, sleep: Callable[[float], None], clock: Callable[[], float]) -> bytes:
    """Return the raw, complete answer to one query. Raises ServiceError, and TooLargeError as `_request` does."""
    limited = 0

    def attempt() -> bytes:
        nonlocal limited
        try:
            return _request(query, service, clock)
        except retry.BusyError as error:
            if error.answer.status_code == 429:
                error.wait_s = error.wait_s or LIMIT_WAIT_S * 2**limited
                limited += 1
            raise

    try:
        return retry.call(attempt, service.policy, sleep=sleep)
    except retry.TransientError as error:
        if isinstance(error, retry.BusyError) and error.answer.status_code == 504:
            raise TooLargeError(str(error)) from None  # a gateway in front of the server ran out of time
        tries = service.policy.tries
        raise ServiceError(
            f"{service.url}: {error!s:.300} ({tries} tries); try later, or another --osm source"
        ) from None


def _request(query: str, service: OverpassServer, clock: Callable[[], float]) -> bytes:
    """Send a query once.

    Raises:
        TransientError: The server is busy or its answer incomplete; the same query again may succeed.
        TooLargeError: The server lacks time or memory for the query.
        ServiceError: Any other refusal.
    """
    import requests

    try:
        response = web.ask(
            "POST",
            service.url,
            limit=ANSWER_BYTES,
            seconds=ANSWER_SECONDS,
            data={"data": query},
            headers={"User-Agent": service.user_agent},
            timeout=(30, service.timeout_s + 30),
        )
    except SourceError as error:
        raise TooLargeError(str(error).removeprefix(f"{service.url}: ")) from None
    except requests.ReadTimeout as error:
        raise TooLargeError(f"no answer in {service.timeout_s + 30} s: {error}") from None
    except requests.RequestException as error:
        raise retry.TransientError(f"cannot be reached: {error}") from None
    page = "" if response.content.startswith(b"{") else re.sub(r"<[^>]*>|\s+", " ", response.text[:20_000]).strip()
    if response.status_code == 200:
        try:
            answer_of(response.content, service.url)
            return response.content
        except SourceError as error:
            reason = str(error).removeprefix(f"{service.url}: ")
    else:
        reason = f"answers {response.status_code} {response.reason}: {page[-200:]}"
    if TOO_LARGE.search(f"{reason} {page}"):
        raise TooLargeError(reason)
    if response.status_code in retry.TRANSIENT_STATUS:
        raise retry.BusyError(response, clock=clock)
    if response.status_code == 200 and ("the server remarks" not in reason or TOO_BUSY.search(reason)):
        raise retry.TransientError(reason)
    raise ServiceError(f"{service.url}: {reason}; try later, or give --osm FILE")


# --- answers -------------------------------------------------------------------------------


def unpack(path: Path) -> bytes:
    """Read an answer, gzipped on disk or not. Raises SourceError."""
    return documents.unpack_gzip(documents.read_bytes(path, ANSWER_BYTES), str(path), ANSWER_BYTES)


def answer_of(content: bytes, origin: str) -> dict[str, Any]:
    """Parse a raw Overpass answer and check that it is complete.

    Args:
        content: The answer.
        origin: Name of its source, for messages.

    Raises:
        SourceError: The answer is not JSON (an HTML error page), has no elements or fewer than counted, or has a
            `remark`, which Overpass adds to partial answers when it runs out of time or memory.
    """
    try:
        document = documents.parse_bounded_json(content, origin, ANSWER_VALUES)
    except SourceError as error:
        raise SourceError(f"{error}; expected an Overpass answer in JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("elements"), list):
        raise SourceError(f"{origin}: has no list 'elements', expected an Overpass answer in JSON; fetch it again")
    if document.get("remark"):
        raise SourceError(f"{origin}: a part only, the server remarks {document['remark']!r}; ask for less or again")
    count_elements = [
        element for element in document["elements"] if isinstance(element, dict) and element.get("type") == "count"
    ]
    try:
        total = int(count_elements[0]["tags"]["total"]) if count_elements else None
        stamp = document.get("osm3s", {}).get("timestamp_osm_base")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{origin}: count or date is not as Overpass writes it ({error!r:.80}); fetch again"
        ) from None
    if not isinstance(stamp, str | None):
        raise SourceError(
            f"{origin}: its date is {stamp!r:.80}, expected a text such as 2020-04-01T00:00:00Z; fetch it again"
        )
    if count_elements and total != len(document["elements"]) - len(count_elements):
        raise SourceError(f"{origin}: a part only, {len(document['elements']) - 1} of {total} elements; fetch it again")
    return document
