"""Test how files with signed URLs are read while their tokens expire: nothing is lost, and refusals are reported."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from sgdata.errors import SourceError
from sgdata.scenes.types import Asset
from sgdata.staging import window_staging
from sgdata.staging.scene_files import WindowRequest
from tests import served
from tests.served import Files

FILES = 24


class Service:
    """A token service, and files that only its newest token opens, for `good_for` requests; some files never."""

    def __init__(self, good_for: int, forbidden: str = "-", minutes: int = 45) -> None:
        self.good_for, self.forbidden, self.minutes, self.lock = good_for, forbidden, minutes, threading.Lock()
        self.issued, self.used, self.statuses = 0, 0, Counter[int]()

    def __call__(self, handler: Files, content: bytes) -> bool:
        path, _, token = handler.path.partition("?sig=n")
        with self.lock:
            if path.startswith("/token/"):
                self.issued, self.used = self.issued + 1, 0
                until = (datetime.now(UTC) + timedelta(minutes=self.minutes)).isoformat()
                handler.give(200, json.dumps({"token": f"sig=n{self.issued}", "msft:expiry": until}).encode())
                return True
            self.used += token == str(self.issued)
            valid = token == str(self.issued) and self.used <= self.good_for and self.forbidden not in path
            self.statuses[200 if valid else 403] += 1
        if not valid:
            handler.give(403, b"expired")
        return not valid


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of files whose headers and blocks take two requests."""
    (tmp_path / "box").mkdir()
    values = np.random.default_rng(0).integers(1, 9000, (256, 256)).astype(np.uint16)
    about = {"driver": "COG", "count": 1, "dtype": "uint16", "height": 256, "width": 256, "crs": "EPSG:32632"}
    with rasterio.open(tmp_path / "box" / "0.tif", "w", **about, transform=from_origin(600000, 5400000, 10, 10)) as to:
        to.write(values, 1)
    for number in range(1, FILES):
        (tmp_path / "box" / f"{number}.tif").hardlink_to(tmp_path / "box" / "0.tif")
    (tmp_path / "token" / "127").mkdir(parents=True)
    (tmp_path / "token" / "127" / "box").write_text("{}")
    monkeypatch.setattr(window_staging, "RETRY", replace(window_staging.RETRY, wait_s=0.05))
    return tmp_path


def request_for(number: int, folder: Path, url: str) -> WindowRequest:
    return WindowRequest(
        name=f"{number}", asset=Asset(href=f"{url}/box/{number}.tif"), crs="EPSG:32632",
        bounds=(600000.0, 5397440.0, 602560.0, 5400000.0), target=folder / f"{number}", tokens=f"{url}/token",
    )  # fmt: skip


def stage_all(folder: Path, url: str) -> list[str | SourceError]:
    """Stage all files at once; return the hash of each, or its error."""

    def stage(number: int) -> str | SourceError:
        try:
            return window_staging.stage(request_for(number, folder, url)).sha256
        except SourceError as error:
            return error

    with ThreadPoolExecutor(FILES) as readers:
        return list(readers.map(stage, range(FILES)))


@pytest.mark.parametrize("good_for", [11, 5])
def test_tokens_that_last_for_a_few_requests_lose_no_file(good_for: int, folder: Path) -> None:
    """Files that are refused together renew the token once, and go on where they were."""
    service = Service(good_for)
    with served.serving(folder, service) as server:
        found = stage_all(folder, server.url)
    assert len(set(map(str, found))) == 1 and isinstance(found[0], str), found
    # What was answered is kept but for a file that three tokens in a row refused, and a token serves what it can.
    assert service.statuses[200] <= 2 * FILES + 2
    assert service.issued <= -(-2 * FILES // good_for) + 2


def test_a_file_that_no_token_opens_is_refused_by_name(folder: Path) -> None:
    service = Service(1000, forbidden="/box/7.tif")
    with served.serving(folder, service) as server:
        found = stage_all(folder, server.url)
    assert [number for number, result in enumerate(found) if isinstance(result, SourceError)] == [7]
    assert "7.tif: cannot be read: HTTP response code 403" in str(found[7])
    assert service.issued <= 10


def test_tokens_that_are_always_about_to_expire_end_by_name(folder: Path) -> None:
    """As those of a service whose clock differs: each request has a new one."""
    service = Service(1000, forbidden="/box/", minutes=-5)
    refused = pytest.raises(SourceError, match=r"0\.tif: cannot be read: HTTP response code 403")
    with served.serving(folder, service) as server, refused:
        window_staging.stage(request_for(0, folder, server.url))
    assert service.issued <= 200
