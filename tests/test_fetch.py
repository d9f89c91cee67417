"""Test downloads from a loopback server that truncates, stalls, and gives wrong answers."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgdata import cli, output_names, verification
from sgdata.datasets import cards, download
from sgdata.datasets.types import DatasetFile
from sgdata.errors import OutputError, ServiceError, SettingError
from sgdata.packing import select_samples
from sgdata.remote import retry

CONTENT = random.Random(1).randbytes(300_000)
QUICK = retry.RetryPolicy(tries=4, wait_s=0.01)


class Server(ThreadingHTTPServer):
    """Web server; `behaviour` gives the faults of the first answers by path, later answers are correct."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour: dict[str, list[str]] = {}
        self.sent: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.etag = '"one"'
        self.content = CONTENT

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        todo = self.server.behaviour.get(self.path, [])
        act = todo.pop(0) if todo else ""
        content, start = self.server.content, 0
        asked = self.headers.get("Range")
        self.server.ranges.append(asked or "")
        fresh = self.headers.get("If-Range") in (None, self.server.etag)
        if asked and act != "ignore range" and fresh:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if act.isdigit():
            self.send_response(int(act))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if act == "led astray":
            self.send_response(302)
            self.send_header("Location", "http://[nowhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[start:]
        if act == "no length":
            body = body[: len(body) // 2]
        if act == "lie":
            body = bytes(len(body))
        if act == "page":
            body = b"\xef\xbb\xbf\n<!-- sorry --><html><title>log in</title>"
        if act == "too much":
            body += b"more"
        self.send_response(206 if start else 200)
        if act == "no length":
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(1000 if act == "part" and start else len(body)))
        self.send_header("ETag", self.server.etag)
        if start:
            last = start + 999 if act == "part" else len(content) - 1
            body = body[:1000] if act == "part" else body
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        self.end_headers()
        if act in ("truncate", "stall"):
            self.wfile.write(body[: len(body) // 3])
            self.wfile.flush()
            if act == "stall":
                time.sleep(1.0)
            self.close_connection = True
            return
        self.wfile.write(body)
        self.server.sent[self.path] += len(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def source(server: Server, **changes: object) -> DatasetFile:
    known: dict[str, object] = {
        "file": "it.zip",
        "url": server.url("/it"),
        "bytes": len(CONTENT),
        "algorithm": "md5",
        "digest": hashlib.md5(CONTENT, usedforsecurity=False).hexdigest(),
    }
    return DatasetFile(**(known | changes))  # type: ignore[arg-type]


def get(wanted: DatasetFile, out: Path) -> None:
    plan = download.DownloadPlan(sources=(wanted,), bytes=wanted.bytes or 0, unsized=0, free=10**12)
    download.fetch(plan, out, policy=QUICK, stall_s=0.5)


@pytest.mark.parametrize(
    "acts",
    [
        [],
        ["truncate", "truncate"],
        ["stall"],
        ["500", "503", "truncate"],
        ["lie"],
        ["truncate", "lie"],
        ["truncate", "ignore range"],
        ["page", "too much"],
        ["429"],
    ],
    ids=" then ".join,
)
def test_downloads_succeed_despite_a_faulty_server(acts: list[str], server: Server, tmp_path: Path) -> None:
    server.behaviour["/it"] = list(acts)
    get(source(server), tmp_path)
    assert (tmp_path / "it.zip").read_bytes() == CONTENT
    assert {path.name for path in tmp_path.iterdir()} == {"it.zip", ".lock", output_names.SUMS}
    assert verification.verify(tmp_path) == []
    if acts == ["truncate", "truncate"]:
        assert server.ranges == ["", "bytes=65536-", "bytes=131072-"], "what had come is not asked for again"


@pytest.mark.parametrize("act", ["lie", "404", "page", "stall", "too much"])
def test_a_mirror_is_tried_and_without_one_every_attempt_is_reported(act: str, server: Server, tmp_path: Path) -> None:
    server.behaviour["/it"] = [act] * 99
    with pytest.raises(ServiceError, match=r"it.zip: cannot be fetched: http://127.*/it: .*try again later") as error:
        get(source(server), tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "it.zip").exists()
    get(source(server, mirrors=(server.url("/mirror"),)), tmp_path)
    assert (tmp_path / "it.zip").read_bytes() == CONTENT


def test_without_size_and_digest_the_hash_is_recorded(server: Server, tmp_path: Path) -> None:
    server.behaviour["/it"] = ["truncate"]
    get(source(server, bytes=None, algorithm=None, digest=""), tmp_path)
    assert (tmp_path / output_names.SUMS).read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  it.zip\n"


@pytest.mark.parametrize("act", ["page", "no length", "part", "led astray"])
def test_without_size_and_digest_a_partial_file_is_refused(act: str, server: Server, tmp_path: Path) -> None:
    wanted = source(server, bytes=None, algorithm=None, digest="")
    (tmp_path / ".it.zip.partial").write_bytes(CONTENT[:1000])
    server.behaviour["/it"] = [act]
    get(wanted, tmp_path)
    assert (tmp_path / "it.zip").read_bytes() == CONTENT
    server.behaviour["/it"] = [act] * 20
    (tmp_path / "it.zip").unlink()
    (tmp_path / ".it.zip.partial").write_bytes(CONTENT[:1000])
    if act == "part":  # goes on by a thousand bytes a time
        with pytest.raises(ServiceError, match="ended after 5000 of 300000 bytes"):
            get(wanted, tmp_path)
    else:
        with pytest.raises(ServiceError, match="cannot be fetched"):
            get(wanted, tmp_path)
    assert not (tmp_path / "it.zip").exists()


def test_tables_of_own_files_are_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match="images: nothing to download; give files of your own to 'sgdata shard images'"
    ):
        download.plan("images", "table", tmp_path)
    with pytest.raises(SettingError, match="nothing to download; it is made with 'sgdata build'"):
        download.plan("segmunich", "build", tmp_path)


def test_a_partial_file_longer_than_the_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".it.zip.partial").write_bytes(CONTENT + b"of an older version")
    get(source(server, bytes=None, algorithm=None, digest=""), tmp_path)
    assert (tmp_path / "it.zip").read_bytes() == CONTENT


def test_a_full_disk_is_reported(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_append_body", full)
    with pytest.raises(OutputError, match="it.zip: cannot be written: No space left on device"):
        get(source(server), tmp_path)


def test_a_new_version_is_not_appended_to_a_partial_old_one(server: Server, tmp_path: Path) -> None:
    server.behaviour["/it"] = ["truncate"] * 4
    loose = source(server, bytes=None, algorithm=None, digest="")
    with pytest.raises(ServiceError):
        get(loose, tmp_path)
    server.etag, server.content = '"two"', CONTENT[::-1]
    get(loose, tmp_path)
    assert (tmp_path / "it.zip").read_bytes() == CONTENT[::-1]


def test_the_plan_lists_missing_files_without_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = download.plan("bigearthnet", "v2", tmp_path / "new" / "folder")
    assert [each.file for each in need.sources][:2] == ["BigEarthNet-S2.tar.zst", "metadata.parquet"]
    assert need.bytes == 63251710377 + 3616349 + 710162
    assert not (tmp_path / "new").exists()
    (tmp_path / ".BigEarthNet-S2.tar.zst.partial").write_bytes(bytes(1000))
    (tmp_path / "metadata.parquet").write_bytes(b"x")
    (tmp_path / output_names.SUMS).write_text(f"{'0' * 64}  metadata.parquet\n")
    assert download.plan("bigearthnet", "v2", tmp_path).bytes == need.bytes - 1000 - 3616349
    assert [each.file for each in download.plan("bigearthnet", "v2", tmp_path, ["maps"]).sources] == [
        "Reference_Maps.tar.zst"
    ]
    with pytest.raises(SettingError, match=r"no part map; known: images, maps, splits"):
        download.plan("bigearthnet", "v2", tmp_path, ["map"])
    with pytest.raises(OutputError, match="are free"):
        download.fetch(replace(need, free=10**9), tmp_path / "o")


def test_every_source_of_every_card_has_an_address() -> None:
    for card in cards.cards():
        for edition in card.editions:
            for each in edition.sources:
                assert each.url.startswith("https://"), (card.name, each.file)
                assert (each.algorithm is None) == (each.digest == "")


def test_a_dry_run_prints_files_bytes_and_free_space(tmp_path: Path) -> None:
    command = ["fetch", "bigearthnet", "--edition", "v1", "--part", "splits", "--out", str(tmp_path), "--dry-run"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    assert "train.csv.gz: 1,639,745 bytes, https://zenodo.org/" in result.output
    assert "3,247,984 bytes and 0 files of unknown size to fetch" in result.output
    assert list(tmp_path.iterdir()) == []


def test_downloads_do_not_go_where_builds_and_other_outputs_are(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {name: str(select_samples.download_folder(select_samples.recipe_for(name))) for name in cards.names()}
    assert folders["segmunich"] == "data/segmunich" and folders["fmow"] == "data/fmow-sentinel"
    assert all(folder.startswith("data/") for folder in folders.values())
    shown = CliRunner().invoke(cli.app, ["fetch", "segmunich", "--dry-run"])
    assert "bytes free in data/segmunich" in shown.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/image.tif").write_text("")
    need = download.DownloadPlan(sources=(source(server),), bytes=1, unsized=0, free=2**40)
    with pytest.raises(OutputError, match="mine: holds a build"):
        download.fetch(need, tmp_path / "mine", policy=QUICK)
    assert server.sent == Counter()
