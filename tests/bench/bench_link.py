"""Read windows of scenes through a long line, with the block reader and with the reader of commit 7dbe2a5.

    python tests/bench/bench_link.py [--mb 500] [--ms 20,80,200] [--blocks 1024,256,jp2] [--http 1,2]
        [--rate 20] [--window 2048] [--older DIR]

nginx serves COGs behind a proxy that adds latency and limits the rate. Bytes needed are those of the blocks that a
window touches, by the tables in the files; the link needs the time of these bytes at its rate. Requests are counted in
nginx's log. `--older` is a checkout of the older commit (`git worktree add --detach DIR 7dbe2a5`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(ROOT))
import served  # noqa: E402

from sgdata.rasters import grids, tiff_blocks, tiff_header  # noqa: E402

SIDE, JP2_SIDE, FIRST_PX = 4096, 2048, 900
CRS, ORIGIN = "EPSG:32632", (600000.0, 5400000.0)
BANDS = 12


@dataclass(frozen=True, kw_only=True)
class Needed:
    """Bytes of the blocks that a window of one file needs, and the number of ranges that hold them."""

    size: int
    ranges: int


def write(path: Path, block: str, seed: int) -> None:
    import rasterio
    from rasterio.transform import from_origin

    random = np.random.Generator(np.random.Philox(key=seed))
    side = JP2_SIDE if block == "jp2" else SIDE
    values = random.integers(1, 2000, (side, side)).astype(np.uint16)
    about = {"count": 1, "dtype": "uint16", "height": side, "width": side, "crs": CRS}
    about |= {"transform": from_origin(*ORIGIN, 10, 10)}
    if block == "jp2":
        about |= {"driver": "JP2OpenJPEG", "blockxsize": 1024, "blockysize": 1024, "quality": 100, "reversible": True}
    else:
        about |= {"driver": "COG", "blocksize": int(block), "compress": "DEFLATE", "level": 1, "overviews": "NONE"}
    with rasterio.open(path, "w", **about) as dataset:
        dataset.write(values, 1)


def bounds_of(window: int) -> tuple[float, float, float, float]:
    """Return the bounds of a square of `window` pixels of 10 m that begins FIRST_PX from the corner of the files."""
    west, north = ORIGIN[0] + 10 * FIRST_PX, ORIGIN[1] - 10 * FIRST_PX
    return (west, north - 10 * window, west + 10 * window, north)


def needed(path: Path, window: int) -> Needed:
    """Return what the window of a file needs, by the table of its blocks."""
    if path.suffix == ".jp2":
        return Needed(size=sum(jp2_tiles(path.read_bytes(), window)), ranges=0)
    table = tiff_header.parse({0: path.read_bytes()}, path.stat().st_size, path.name)
    joined = tiff_blocks.plan_ranges(table, [grids.window_over(table.grid, bounds_of(window), margin=2)])
    return Needed(size=sum(int(table.sizes[index]) for span in joined for index in span.blocks), ranges=len(joined))


def jp2_tiles(content: bytes, window: int) -> list[int]:
    """Return the bytes of the tiles that a window touches, by the markers SOT of ISO/IEC 15444-1, A.4.2."""
    at, sizes = content.index(b"\xff\x90\x00\x0a"), []
    across = -(-JP2_SIDE // 1024)
    inside = range((FIRST_PX - 2) // 1024, -(-min(FIRST_PX + window + 2, JP2_SIDE) // 1024))
    while content[at : at + 2] == b"\xff\x90":
        tile, size = struct.unpack_from(">HI", content, at + 4)
        if tile // across in inside and tile % across in inside:
            sizes.append(size)
        at += size
    return sizes


@contextmanager
def nginx(folder: Path, work: Path) -> Iterator[tuple[int, int]]:
    """Serve a folder by HTTP/1.1 and by HTTP/2; yield both ports. Requests go to `work`/access.log."""
    work.mkdir(parents=True)
    plain, tls = served.free_port(), served.free_port()
    certificate(work)
    own = "".join(f"{kind}_temp_path {work};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (work / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {work}/pid; error_log {work}/error.log; worker_rlimit_nofile 4096;"
        "events { worker_connections 1024; } http { keepalive_requests 100000;"
        "log_format asked '$request_method $status $body_bytes_sent $server_protocol $connection $http_range';"
        f"access_log {work}/access.log asked; {own} sendfile on; root {folder};"
        f"server {{ listen 127.0.0.1:{plain}; }}"
        f"server {{ listen 127.0.0.1:{tls} ssl http2; ssl_certificate {work}/leaf.pem;"
        f"ssl_certificate_key {work}/leaf.key; }} }}"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    command = [program, "-c", str(work / "nginx.conf"), "-e", str(work / "error.log")]
    with served.process(command, f"http://127.0.0.1:{plain}/"):
        yield plain, tls


def certificate(work: Path) -> None:
    """Write a certificate of an authority, `ca.pem`, and one of this machine signed by it."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, cwd=work, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=bench")
    openssl("req", *key, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=127.0.0.1")
    (work / "names").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "names")
    openssl("x509", "-req", "-in", "leaf.csr", *signed, "-out", "leaf.pem")


@contextmanager
def link(target: int, ms: float, rate_mb: float) -> Iterator[int]:
    port = served.free_port()
    command = [sys.executable, str(HERE / "slow_link.py"), str(port), str(target), str(ms), str(rate_mb)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:  # asyncio reports connections that end
        time.sleep(1)
        try:
            yield port
        finally:
            running.kill()


def stage(tree: Path, plan: dict[str, Any], work: Path, ca: Path) -> dict[str, Any]:
    """Stage the windows of a plan in a process with the packages of `tree`."""
    (work / "plan.json").write_text(json.dumps(plan))
    bundles = dict.fromkeys(("GDAL_CURL_CA_BUNDLE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), str(ca))
    environment = os.environ | {"PYTHONPATH": str(tree), **bundles, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "stage_windows.py"), str(work / "plan.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def requests_in(log: Path) -> dict[str, Any]:
    """Return requests by method, bytes and connections in nginx's log, and empty it."""
    lines = [line.split(" ", 5) for line in log.read_text().splitlines()]
    log.write_text("")
    return {
        "methods": dict(Counter(line[0] for line in lines)),
        "protocols": dict(Counter(line[3] for line in lines)),
        "bytes": sum(int(line[2]) for line in lines),
        "connections": len({line[4] for line in lines}),
        "headers": sum(line[5].startswith("bytes=0-") for line in lines),
    }


def compare(chosen: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """Yield the figures of each layout, protocol and latency."""
    folder = work / "files"
    folder.mkdir()
    for block in chosen.blocks.split(","):
        ending = "jp2" if block == "jp2" else "tif"
        sources = [folder / f"{block}-{seed}.{ending}" for seed in range(2)]
        for seed, path in enumerate(sources):
            write(path, block, seed)
        one = needed(sources[0], chosen.window)
        count = max(round(chosen.mb * 1e6 / one.size / BANDS), 1) * BANDS
        for number in range(count):
            os.link(sources[number % 2], folder / f"{block}-{number // BANDS}-B{number % BANDS}.{ending}")
        names = [[f"{block}-{n}-B{b}.{ending}" for b in range(BANDS)] for n in range(count // BANDS)]
        total = Needed(size=one.size * count, ranges=one.ranges * count)
        with nginx(folder, work / f"nginx-{block}") as ports:
            for http in chosen.http.split(","):
                for ms in chosen.ms.split(","):
                    yield measure(chosen, work, block, total, names, ports[int(http) - 1], http, float(ms), count)


def measure(
    chosen: argparse.Namespace, work: Path, block: str, total: Needed, names: list[list[str]], port: int, http: str,
    ms: float, count: int,
) -> dict[str, Any]:  # fmt: skip
    log, ca = work / f"nginx-{block}" / "access.log", work / f"nginx-{block}" / "ca.pem"
    figures: dict[str, Any] = {"blocks": block, "http": http, "ms": ms, "files": count, "needed_mb": total.size / 1e6}
    figures |= {"window": chosen.window, "rate_mb": chosen.rate}
    figures["link_s"] = total.size / chosen.rate / 1e6
    hashes = []
    trees = {"own": ROOT, "again": ROOT} | ({"older": chosen.older} if chosen.older else {})
    with ExitStack() as stack:
        there = stack.enter_context(link(port, ms, chosen.rate))
        scheme = "https" if http == "2" else "http"
        for who, tree in trees.items():
            out = work / "out" / who
            shutil.rmtree(out, ignore_errors=True)
            if who == "own":
                shutil.rmtree(work / "out", ignore_errors=True)
            out.mkdir(parents=True)
            plan: dict[str, Any] = {"folder": str(out), "crs": CRS, "bounds": bounds_of(chosen.window)}
            plan["headers"] = str(work / "out" / ("older-headers" if who == "older" else "headers"))
            plan["scenes"] = [[f"{scheme}://127.0.0.1:{there}/{name}" for name in scene] for scene in names]
            log.write_text("")
            done = stage(tree, plan, work, ca)
            time.sleep(2 * ms / 1e3 + 0.2)
            asked = requests_in(log)
            hashes.append(done["sha256"])
            figures[who] = {"seconds": done["seconds"], "cpu_seconds": done["cpu_seconds"], **asked}
            figures[who]["of_link"] = figures["link_s"] / done["seconds"]
            figures[who]["read_over_needed"] = asked["bytes"] / total.size
            if total.ranges:
                figures[who]["requests_per_range"] = (sum(asked["methods"].values()) - asked["headers"]) / total.ranges
    assert all(found == hashes[0] for found in hashes), "pixels differ"
    return figures


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of the speed table."""
    chosen = argparse.Namespace(mb=60.0, ms="80", blocks="1024", http="1", older=None, window=2048, rate=20.0)
    with tempfile.TemporaryDirectory() as work:
        for figures in compare(chosen, Path(work)):
            yield "reading over a link of 80 ms", "the bytes needed at its rate", "", f"{figures['own']['of_link']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=60, help="megabytes to read for each layout, protocol and latency")
    parser.add_argument("--ms", default="20,80,200", help="round trips")
    parser.add_argument("--rate", type=float, default=20, help="rate of the link in MB a second")
    parser.add_argument("--window", type=int, default=2048, help="side of the window in pixels")
    parser.add_argument("--blocks", default="1024,256,jp2")
    parser.add_argument("--http", default="1,2")
    parser.add_argument("--older", type=Path, help="a checkout of an older commit to compare with")
    with tempfile.TemporaryDirectory() as work:
        for figures in compare(parser.parse_args(), Path(work)):
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
