"""Test that tars of shards have the bytes of `tarfile`, as webdataset writes them."""

from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdata.errors import SourceError
from sgdata.shards import plain_tar


def by_tarfile(samples: dict[str, dict[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for key, contents in samples.items():
            for name, content in contents.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


NAMES = st.text("abcXYZ019_-.", min_size=1, max_size=40)


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, st.binary(max_size=1100), min_size=1, max_size=3), max_size=4))
def test_tars_are_those_of_tarfile(samples: dict[str, dict[str, bytes]]) -> None:
    buffer = io.BytesIO()
    tar = plain_tar.HashedTar(buffer)
    for key, contents in samples.items():
        tar.add(key, contents)
    tar.close()
    assert buffer.getvalue() == by_tarfile(samples)
    assert tar.digest.hexdigest() == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert tar.size == len(buffer.getvalue())


def test_tars_are_those_of_webdataset() -> None:
    from webdataset import TarWriter

    contents = {"image.blosc": np.arange(4000, dtype=np.uint16).tobytes(), "meta.json": b"{}\n"}
    buffer, other = io.BytesIO(), io.BytesIO()
    tar = plain_tar.HashedTar(buffer)
    with TarWriter(other, user="", group="", mode=0o644, mtime=0, encoder=False) as peer:
        for key in ("a", "k" * 80):
            tar.add(key, contents)
            peer.write({"__key__": key, **contents})
    tar.close()
    assert buffer.getvalue() == other.getvalue()


def test_large_members_and_long_names() -> None:
    info = tarfile.TarInfo("a")
    info.size, info.mode = 8**11 - 1, 0o644
    assert plain_tar.header("a", info.size) == info.tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(SourceError, match="has 8589934592 bytes, expected at most 8589934591"):
        plain_tar.header("a", 8**11)
    with pytest.raises(SourceError, match="its name has 101 bytes, expected at most 100"):
        plain_tar.header("n" * 101, 1)
