"""Secrets in addresses: a build, shards, a release and a read over HTTP leave them in no file and no message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
import synthetic_shards
from served import Files
from stac_wrap import Wrapped, wrap
from test_segment import TINY

from sgdata import output_names, urls
from sgmodel.data import loader, tar_source

CANARIES = {"signature": "CANARYsig", "password": "CANARYpw", "token": "CANARYtoken", "user": "CANARYuser"}
AREA = '{grid = {crs = "EPSG:32632", origin = [600060.0, 5399940.0], gsd_m = 10.0, shape = [120, 120]}}'
SETTINGS = (
    f"area={AREA}", 'bands=["B04"]', "patches.size=32", "patches.stride=32", "split.block_px=32", "split.gap_px=0",
    "composite.method=median", "source.stac=https://u:CANARYpw@nowhere.example/v1?token=CANARYtoken",
)  # fmt: skip


def clean(text: str) -> bool:
    return not any(canary in text for canary in CANARIES.values())


def command(home: Path, *words: str, codes: tuple[int, ...] = (0, 3), package: str = "sgdata") -> None:
    """Run a command; its messages are kept beside the outputs, which are searched in the end."""
    done = subprocess.run(
        [sys.executable, "-m", f"{package}.cli", *words], cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode in codes, done.stderr
    with (home / "messages.txt").open("a") as log:
        log.write(done.stdout + done.stderr)


def archive(folder: Path) -> Path:
    rng = np.random.Generator(np.random.Philox(key=5))
    scenes = []
    for month in (5, 6):
        layers: dict[str, tuple[Any, float]] = {
            "B04": (rng.integers(100, 900, (600, 600)).astype(np.uint16), 10.0),
            "SCL": (np.full((300, 300), 4, np.uint8), 20.0),
        }
        scenes.append(Wrapped(id=f"S2A_32UPU_20190{month}01_0_L2A", time=f"2019-0{month}-01T10:00:00Z", layers=layers))
    return wrap(folder, scenes)


def sign(folder: Path, url: str) -> None:
    """Give every asset an absolute, signed address, and every item product metadata that cannot be had."""
    for path in folder.glob("*/S2A*/*.json"):
        item = json.loads(path.read_text())
        for asset in item["assets"].values():
            place = path.parent.relative_to(folder) / asset["href"].removeprefix("./")
            asset["href"] = f"{url}/{place}?st=2024-01-01&se=2024-01-02&sp=rl&sig=CANARYsig%3D"
        item["assets"]["product_metadata"] = {"href": f"{url}/absent.xml?X-Amz-Signature=CANARYsig"}
        path.write_text(json.dumps(item))


def nothing_leaked(home: Path) -> None:
    for path in home.rglob("*"):
        assert clean(str(path))
        if path.is_file():
            content = path.read_bytes()
            for canary in CANARIES.values():
                assert canary.encode() not in content, path


@pytest.mark.slow
def test_no_secret_reaches_a_file_or_a_message(tmp_path: Path) -> None:
    home, store = tmp_path / "home", archive(tmp_path / "store")
    home.mkdir()
    opened = []

    def doorkeeper(handler: Files, content: bytes) -> bool:
        if not handler.path.partition("?")[0].endswith(".tif"):
            return False
        opened.append(handler.path)
        if "sig=CANARYsig" in handler.path:
            return False
        handler.give(403, b"")
        return True

    with served.serving(store, doorkeeper) as server:
        sign(store, server.url)
        typed = server.url.replace("://", "://CANARYuser:CANARYpw@") + "/catalog.json?token=CANARYtoken"
        sets = [word for text in SETTINGS for word in ("--set", text)]
        command(
            home, "build", "segmunich", "--dates", "2019-01-01/2019-12-31", "--stac", typed, "--osm", "none",
            "--out", "build", "--workers", "2", "--scratch", "scratch", *sets,
        )  # fmt: skip
        command(home, "drift", "build", "--stac", typed)
    assert opened
    command(home, "plan", "segmunich", "--stac", typed, "--out", "plan", *sets, codes=(2,))  # the server is gone
    command(home, "build", "segmunich", "--stac", typed, "--osm", typed, "--out", "dead", *sets, codes=(2,))
    command(home, "shard", "segmunich", "--source", "build", "--out", "shards")
    command(
        home, "release", "tiny", "1.0", "--source", "shards", "--build", "build", "--out", "rel", "--register", "cat"
    )
    command(home, "show", "build")
    with served.serving(home / "shards") as server:
        address = server.url.replace("://", "://CANARYuser:CANARYpw@") + "?sig=CANARYsig&sp=r"
        folder = tar_source.mirror(address, home / "cache", cache_gb=0.01)
        assert len(loader.Samples(folder, "train", ("image",))) > 0
        assert all("sig=CANARYsig" in path for path in server.asked)
    nothing_leaked(home)
    assert "S2A_32UPU" in (home / "build" / output_names.LOCK).read_text()
    assert (home / "build" / output_names.SUMS).is_file()
    assert "nowhere.example" in (home / "build" / output_names.RECIPE).read_text()


@pytest.mark.slow
def test_a_training_over_http_keeps_its_password_to_itself(tmp_path: Path) -> None:
    home, shards = tmp_path / "home", synthetic_shards.write(tmp_path / "shards", train=6, val=3)
    home.mkdir()
    sets = [word for text in TINY for word in ("--set", text)]
    with served.serving(shards) as server:
        address = server.url.replace("://", "://CANARYuser:CANARYpw@") + "?sig=CANARYsig"
        words = ("segment", "segment-demo-tiny", "--shards", address, "--cache", "cache", "--threads", "1", *sets)
        command(home, *words, "--out", "run", package="sgmodel")
        assert all("sig=CANARYsig" in path for path in server.asked)
    # The server is gone.
    command(home, *words, "--out", "dead", "--retry-minutes", "0", package="sgmodel", codes=(2,))
    assert (home / "run" / output_names.SUMS).is_file()
    nothing_leaked(home)


@pytest.mark.parametrize("text", ["https://u:CANARYpw@h/x", "https://h/x?sig=CANARYsig"])
def test_an_uncaught_exception_has_no_secret(text: str) -> None:
    program = f"from sgdata import terminal; terminal.clean_output(); raise RuntimeError({text!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "RuntimeError: " + urls.redact(text) in done.stderr
    # The line of the program itself is source text, which Python shows as it is in the file.
    assert done.returncode == 1
