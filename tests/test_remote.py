"""Test shards over a network: samples equal to those on disk, few requests, and no fault that changes pixels."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_shards import write

from sgdata import output_names
from sgdata.errors import SourceError
from sgmodel.data import loader, tar_source
from sgmodel.train import run_paths

TAR = "toy-train-000000.tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("remote") / "toy", train=9, val=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_source, "RETRY", replace(tar_source.RETRY, wait_s=0))


def epoch(source: loader.Samples, threads: int = 2) -> dict[str, np.ndarray[Any, Any]]:
    return {
        key: image.numpy().copy()
        for batch in loader.load(source, source.stream(3, seed=1, first=0, last=3), threads=threads)
        for key, image in zip(batch.keys, batch.arrays["image"], strict=True)
    }


def opened(url: str, place: Path, *, cache_gb: float = 0.01, stall_s: float = 20.0) -> loader.Samples:
    folder = tar_source.mirror(url, place, cache_gb=cache_gb, stall_s=stall_s, retry_s=0)
    return loader.Samples(folder, "train", ("image", "mask"))


@pytest.mark.parametrize("cache_gb", [0.01, 0.00006])
def test_samples_by_http_are_those_on_disk(folder: Path, tmp_path: Path, cache_gb: float) -> None:
    """Compare also with a cache of two samples at most: evicted ones are fetched again."""
    local = epoch(loader.Samples(folder, "train", ("image",)))
    with served.serving(folder) as server:
        source = opened(server.url, tmp_path, cache_gb=cache_gb)
        for _ in range(3):
            again = epoch(source)
            assert again.keys() == local.keys()
            assert all(np.array_equal(again[key], local[key]) for key in local)
        asked = server.asked.count(f"/{TAR}")
        # Fetched once, nine samples with two members each; neighbours in one request.
        assert asked <= 10 if cache_gb == 0.01 else asked > 10
        before = len(server.asked)
        opened(server.url, tmp_path)
        # Index and contract are still here, and right.
        assert server.asked[before:] == ["/SHA256SUMS", f"/{TAR}"]


def test_memory_and_local_urls(folder: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/toy", recursive=True)
    local = epoch(loader.Samples(folder, "train", ("image",)))
    for url in ("memory://toy", f"file://{folder}"):
        again = epoch(opened(url, tmp_path))
        assert all(np.array_equal(again[key], local[key]) for key in local)


S3 = "from moto.server import main as run; run(['-H', '127.0.0.1', '-p', '{port}'])"
GS = "from gcp_storage_emulator.server import create_server; create_server('127.0.0.1', {port}, True).run()"


@pytest.mark.filterwarnings("ignore")  # of the servers' makers
@pytest.mark.parametrize(("protocol", "client", "server"), [("s3", "s3fs", S3), ("gs", "gcsfs", GS)])
def test_buckets(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, client: str, server: str
) -> None:
    """Test the clients of both object stores against local servers with the same protocols."""
    import fsspec

    # Or gcsfs asks by gRPC what kind of bucket it is, which no local server answers; it reads this once.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for name in (client, server.split()[1].partition(".")[0]):
        pytest.importorskip(name, reason=f"{name} is not installed")
    url = f"http://127.0.0.1:{(port := served.free_port())}"
    # As any user of S3 names a store of another maker: in the environment or in ~/.aws/config.
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "ENDPOINT_URL"):
        monkeypatch.setenv(f"AWS_{name}", url)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    local = epoch(loader.Samples(folder, "train", ("image",)))
    with served.process([sys.executable, "-c", server.format(port=port)], url):
        store = fsspec.filesystem(protocol)
        store.mkdir("shop")
        store.put(str(folder), "shop/sets/toy", recursive=True)
        again = epoch(opened(f"{protocol}://shop/sets/toy", tmp_path / "cache"))
        assert all(np.array_equal(again[key], local[key]) for key in local)
        with pytest.raises(SourceError, match=r"shop/nowhere/SHA256SUMS.*failed 4 times"):
            tar_source.mirror(f"{protocol}://shop/nowhere", tmp_path / "cache", cache_gb=1)


def test_command_line_accepts_urls(folder: Path, tmp_path: Path) -> None:
    named = run_paths.shard_folders([f"toy=file://{folder}"], tmp_path, 20.0, 0.0)
    assert list(named) == ["toy"]
    assert (named["toy"] / tar_source.MARK).is_file()


def drop(handler: served.Files, content: bytes) -> bool:
    handler.drop()
    return True


def stall(handler: served.Files, content: bytes) -> bool:
    handler.server.held.wait(20)
    return True


def cut(handler: served.Files, content: bytes) -> bool:
    handler.give(206, content[: len(content) // 2])
    return True


def zeros(handler: served.Files, content: bytes) -> bool:
    handler.give(206, bytes(len(content)))
    return True


def elsewhere(handler: served.Files, content: bytes) -> bool:
    handler.give(206, content[100:] + content[:100])
    return True


def whole_file(handler: served.Files, content: bytes) -> bool:
    handler.give(200, (handler.server.folder / TAR).read_bytes())
    return True


def refuse(handler: served.Files, content: bytes) -> bool:
    handler.give(503, b"busy")
    return True


@pytest.mark.parametrize("fault", [drop, stall, cut, zeros, elsewhere, whole_file, refuse])
def test_a_fault_is_retried_or_reported_and_never_changes_pixels(
    folder: Path, tmp_path: Path, fault: served.Fault
) -> None:
    import threading

    faults = itertools.chain([False] * 4, itertools.repeat(True))  # the mirror, and the codec of the first sample
    with served.serving(folder, lambda handler, content: next(faults) and fault(handler, content)) as server:
        server.held = threading.Event()
        source = opened(server.url, tmp_path, stall_s=0.3)
        with pytest.raises(SourceError, match=r"http://127.0.0.1.*toy-train-000000.tar"):
            source.read(1, "image")
        faults = itertools.repeat(False)
        assert np.array_equal(source.read(1, "image"), loader.Samples(folder, "train", ("image",)).read(1, "image"))
        if fault not in (zeros, elsewhere):
            faults = itertools.chain([True], itertools.repeat(False))
            source.read(2, "image")  # asked again, and got
        server.held.set()


def test_an_index_that_is_not_listed_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with (copy / output_names.INDEX).open("ab") as handle:
        handle.write(b"x")
    with (
        served.serving(copy) as server,
        pytest.raises(SourceError, match=r"index.parquet: \d+ bytes whose SHA-256 differs"),
    ):
        tar_source.mirror(server.url, tmp_path / "cache", cache_gb=1)
    with pytest.raises(SourceError, match="SHA256SUMS.*FileNotFoundError.*mend the shards there"):
        tar_source.mirror(f"file://{tmp_path}/nothing", tmp_path / "cache", cache_gb=1)
    with pytest.raises(SourceError, match=r"nonsense://x: cannot be opened"):
        tar_source.mirror("nonsense://x", tmp_path / "cache", cache_gb=1)


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 60), sizes=st.lists(st.integers(1, 25), max_size=60))
def test_the_ring_returns_the_stored_value_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, size: int, sizes: list[int]
) -> None:
    ring = tar_source._RingCache(tmp_path_factory.getbasetemp(), size)
    put: dict[tar_source.Span, bytes] = {}
    for number, length in enumerate(sizes):
        span = tar_source.Span("t", number * 100, number * 100 + length)
        put[span] = os.urandom(length)
        ring.put(span, put[span])
        assert (ring.get(span) == put[span]) == (length <= size)
        assert all(ring.get(each) in (None, content) for each, content in put.items())
    assert os.fstat(ring._file).st_size <= size


def test_neighbours_come_together() -> None:
    span = tar_source.Span
    spans = [
        span("a", 600, 700),
        span("a", 2000, 9000),
        span("a", 10**6, 10**6 + 5),
        span("b", 600, 700),
    ]
    runs = tar_source.merge_spans(spans[::-1])
    assert [run for run, _ in runs] == [
        span("a", 88, 9000),
        span("a", 10**6 - 512, 10**6 + 5),
        span("b", 88, 700),
    ]
    assert [members for _, members in runs] == [spans[:2], [spans[2]], [spans[3]]]
