"""Run loopback servers for tests: files with range requests and faults, nginx and a STAC API as processes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Fault = Callable[["Files", bytes], bool]
"""Answers a request wrongly and returns True, or leaves it to the server; gets the handler and the right content."""


class Files(BaseHTTPRequestHandler):
    """Handle GET and HEAD with ranges for the server's `folder`; `fault` runs first, `asked` lists the requests."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.give(404, b"")
            return
        content, status, headers = path.read_bytes(), 200, {}
        total, asked = len(content), self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or total - 1), total - 1)
            if start >= total:
                self.give(416, b"", {"Content-Range": f"bytes */{total}"})
                return
            content, status = content[start : end + 1], 206
            headers = {"Content-Range": f"bytes {start}-{end}/{total}"}
        if not self.server.fault(self, content):
            self.give(status, content, headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def give(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Accept-Ranges": "bytes", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def drop(self) -> None:
        """Close the connection without an answer."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


class Quiet(ThreadingHTTPServer):
    """A server that does not report closed connections."""

    daemon_threads = True

    def handle_error(self, *arguments: Any) -> None:
        """Log nothing."""


@contextmanager
def serving(folder: Path, fault: Fault = lambda handler, content: False) -> Iterator[Any]:
    """Serve a folder; `.url` of the server is its address."""
    server: Any = Quiet(("127.0.0.1", 0), Files)
    server.folder, server.fault, server.asked = folder, fault, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(command: list[str], url: str) -> Iterator[str]:
    """Run a server process that answers at `url` until the context ends."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            for _ in range(100):
                try:
                    urllib.request.urlopen(url, timeout=1).close()
                    break
                except OSError:
                    assert running.poll() is None, f"{command[0]} ended with {running.returncode}"
                    time.sleep(0.1)
            yield url
        finally:
            running.terminate()


def nginx(folder: Path, work: Path) -> tuple[list[str], str]:
    """Return command and URL of an nginx for `folder`; nginx must be installed."""
    port, work = free_port(), work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    own = "".join(f"{kind}_temp_path {work};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (work / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {work}/pid; error_log {work}/error.log;"
        f"events {{}} http {{ access_log off; {own} server {{ listen 127.0.0.1:{port}; root {folder.resolve()}; }} }}"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    return [program, "-c", str(work / "nginx.conf"), "-e", str(work / "error.log")], f"http://127.0.0.1:{port}/"


def rustac(items: Path) -> tuple[list[str], str]:
    """Return command and URL of a STAC API for an item collection."""
    address = f"127.0.0.1:{free_port()}"
    program = shutil.which("rustac") or str(Path(sys.executable).parent / "rustac")
    return [program, "serve", "--create-collections", "--addr", address, str(items)], f"http://{address}"


def item_collection(archive: Path, url: str, target: Path) -> Path:
    """Write all items of an archive to one file, with hrefs on a web server."""
    features = []
    for path in sorted(archive.glob("*/*/*.json")):
        item = json.loads(path.read_text())
        for asset in item["assets"].values():
            asset["href"] = f"{url.rstrip('/')}/{path.parent.relative_to(archive)}/{asset['href'].removeprefix('./')}"
        item["links"] = []
        features.append(item)
    target.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return target
