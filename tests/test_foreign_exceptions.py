"""Raise exceptions of the system and of libraries through `terminal.run`: one line and an exit code, no traceback."""

from __future__ import annotations

import concurrent.futures.process
import errno
import http.client
import json
import lzma
import os
import re
import socket
import ssl
import struct
import tarfile
import threading
import tomllib
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import aiohttp
import geopandas  # noqa: F401 - its errors are those of pyogrio and shapely
import jinja2
import numpy as np
import osmium
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pyogrio.errors
import pyproj.exceptions
import pystac
import pystac_client.exceptions
import pytest
import rasterio._err
import rasterio.errors
import requests
import safetensors
import shapely.errors
import tifffile
import torch
import typer
import urllib3

from sgdata import terminal
from sgdata.errors import ExitCode, OutputError, SourceError

REFUSED = ExitCode.REFUSED
INTERRUPTED = 130


def nested() -> None:
    nested()


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


def os_error(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), name)


# Each with the exit code, and what the line contains.
KINDS: dict[str, tuple[Callable[[], object], int, str]] = {
    "GDAL, translated": (raising(rasterio.errors.RasterioIOError("Read failed\nsee above")), REFUSED, "Read failed"),
    "GDAL, as it is": (raising(rasterio._err.CPLE_AppDefinedError(3, 1, "bad block")), REFUSED, "bad block"),
    "GDAL, window": (raising(rasterio.errors.WindowError("beside")), REFUSED, "beside"),
    "Arrow": (raising(pa.ArrowInvalid("Parquet magic bytes not found")), REFUSED, "magic bytes"),
    "Arrow's memory": (raising(pa.ArrowMemoryError("malloc of size 9")), REFUSED, "not enough memory"),
    "Arrow's files": (lambda: pa.parquet.read_table("no\x1b[31m.parquet"), REFUSED, r"no\x1b[31m.parquet"),
    "no such file": (Path("nowhere/a\nb").read_bytes, REFUSED, "nowhere/a b: No such file or directory"),
    "a folder": (Path("/tmp").read_bytes, REFUSED, "/tmp: Is a directory"),
    "permission": (raising(os_error(errno.EACCES, "/root/a")), REFUSED, "/root/a: Permission denied"),
    "full disk": (raising(os_error(errno.ENOSPC)), REFUSED, "No space left on device"),
    "quota": (raising(os_error(errno.EDQUOT, "a")), REFUSED, "a: Disk quota exceeded"),
    "bad disk": (raising(os_error(errno.EIO, "a")), REFUSED, "a: Input/output error"),
    "read-only": (raising(os_error(errno.EROFS, "a")), REFUSED, "a: Read-only file system"),
    "too many files": (raising(os_error(errno.EMFILE)), REFUSED, "Too many open files"),
    "stale handle": (raising(os_error(errno.ESTALE, "a")), REFUSED, "a: Stale file handle"),
    "reset": (raising(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")), REFUSED, "reset by peer"),
    "timeout": (raising(TimeoutError("timed out")), REFUSED, "timed out"),
    "name": (raising(socket.gaierror(-2, "Name or service not known")), REFUSED, "service not known"),
    "TLS": (raising(ssl.SSLCertVerificationError(1, "certificate verify failed")), REFUSED, "verify failed"),
    "HTTP, cut": (raising(http.client.IncompleteRead(b"x", 9)), REFUSED, "IncompleteRead"),
    "HTTP, gone": (raising(http.client.RemoteDisconnected("closed without response")), REFUSED, "closed without"),
    "requests": (raising(requests.ConnectionError("https://u:pw@h/?sig=s3cret refused")), REFUSED, "refused"),
    "requests, JSON": (raising(requests.exceptions.JSONDecodeError("bad", "{", 1)), REFUSED, "bad"),
    "requests, URL": (raising(requests.exceptions.InvalidURL("no host")), REFUSED, "no host"),
    "urllib3": (raising(urllib3.exceptions.ProtocolError("broken")), REFUSED, "broken"),
    "urllib3, retries": (raising(urllib3.exceptions.MaxRetryError(None, "/a", OSError("x"))), REFUSED, "/a"),  # type: ignore[arg-type]
    "urllib3, size": (raising(urllib3.exceptions.LocationParseError("h")), REFUSED, "h"),
    "aiohttp": (raising(aiohttp.ClientPayloadError("cut")), REFUSED, "cut"),
    "memory": (raising(MemoryError()), REFUSED, "not enough memory"),
    "memory of arrays": (lambda: np.zeros(2**46), REFUSED, "not enough memory"),
    "memory of torch": (lambda: torch.empty(2**58), REFUSED, "not enough memory"),
    "memory of a GPU": (raising(torch.OutOfMemoryError("CUDA out of memory")), REFUSED, "not enough memory"),
    "recursion": (nested, REFUSED, "RecursionError"),
    "end of file": (raising(EOFError()), REFUSED, "EOFError"),
    "text": (lambda: b"\xe9".decode(), REFUSED, "UnicodeDecodeError"),
    "surrogate": (lambda: "\ud800".encode(), REFUSED, "UnicodeEncodeError"),
    "JSON": (lambda: json.loads("{"), REFUSED, "JSONDecodeError"),
    "TOML": (lambda: tomllib.loads("a ="), REFUSED, "TOMLDecodeError"),
    "XML": (lambda: ET.fromstring("<a>"), REFUSED, "ParseError"),
    "zip": (raising(zipfile.BadZipFile("File is not a zip file")), REFUSED, "not a zip file"),
    "zip, large": (raising(zipfile.LargeZipFile("too large")), REFUSED, "too large"),
    "tar": (raising(tarfile.ReadError("truncated header")), REFUSED, "truncated header"),
    "deflate": (lambda: zlib.decompress(b"x"), REFUSED, "error"),
    "xz": (lambda: lzma.decompress(b"x" * 32), REFUSED, "LZMAError"),
    "struct": (lambda: struct.unpack("I", b"x"), REFUSED, "error"),
    "safetensors": (raising(safetensors.SafetensorError("HeaderTooLarge")), REFUSED, "HeaderTooLarge"),
    "picture": (raising(PIL.UnidentifiedImageError("cannot identify")), REFUSED, "cannot identify"),
    "picture, bomb": (raising(PIL.Image.DecompressionBombError("pixels")), REFUSED, "pixels"),
    "tifffile": (raising(tifffile.TiffFileError("not a TIFF file")), REFUSED, "not a TIFF"),
    "osmium": (raising(osmium.InvalidLocationError("invalid location")), REFUSED, "invalid location"),
    "shapely": (raising(shapely.errors.GEOSException("TopologyException")), REFUSED, "TopologyException"),
    "pyproj": (raising(pyproj.exceptions.CRSError("Invalid projection")), REFUSED, "Invalid projection"),
    "pyogrio": (raising(pyogrio.errors.DataSourceError("not recognized")), REFUSED, "not recognized"),
    "pystac": (raising(pystac.STACTypeError({}, pystac.Item, "not an item")), REFUSED, "not an item"),
    "pystac-client": (raising(pystac_client.exceptions.APIError("502")), REFUSED, "502"),
    "a worker that died": (
        raising(concurrent.futures.process.BrokenProcessPool("terminated abruptly")), REFUSED, "terminated abruptly",
    ),
    "interrupt": (raising(KeyboardInterrupt()), INTERRUPTED, "the same command continues"),
    "our own": (raising(SourceError("a.tif: damaged\nfetch it again")), REFUSED, "a.tif: damaged fetch it again"),
    "our own, disk": (raising(OutputError("a: full")), REFUSED, "a: full"),
}  # fmt: skip


def run(function: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Run a command that calls `function`; return the exit code and what was said."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(lambda: function() and None)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        terminal.run(app, "sgdata", [])
    out, err = capsys.readouterr()
    assert not out
    return ended.value.code, err


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_exception_is_one_line(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    function, code, part = KINDS[kind]
    ended, err = run(function, capsys)
    assert ended == code, err
    assert part in err
    assert "s3cret" not in err and "\x1b" not in err
    assert re.fullmatch(r"sgdata: .{1,4000}\n", err), err


@pytest.mark.parametrize("error", [KeyError("a"), AssertionError(), ZeroDivisionError(), IndexError("b"), TypeError()])
def test_a_bug_is_not_hidden(error: Exception) -> None:
    """Python prints its traceback and exits with 1: it is worth a report."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(raising(error))
    with pytest.raises(type(error)):
        terminal.run(app, "sgdata", [])


def test_a_foreign_exception_in_a_thread_prints_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def in_a_thread() -> None:
        thread = threading.Thread(target=raising(OSError(errno.EIO, "bad disk")))
        thread.start()
        thread.join()

    assert run(in_a_thread, capsys) == (0, "")


def test_templates_are_ours() -> None:
    """A template that fails is a bug, not an input."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(raising(jinja2.UndefinedError("x")))
    with pytest.raises(jinja2.UndefinedError):
        terminal.run(app, "sgdata", [])
