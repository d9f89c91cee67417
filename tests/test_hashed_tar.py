"""Test that tars of shards have the bytes of `tarfile`, and the hash and size of what was written."""

from __future__ import annotations

import hashlib
import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from sgdata.shards import hashed_tar


def by_tarfile(samples: dict[str, dict[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for key, contents in samples.items():
            for name, content in sorted(contents.items()):
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


KEYS, NAMES = st.text("abcXYZ019_-", min_size=1, max_size=40), st.text("abcxyz019.", min_size=1, max_size=40)


@given(st.dictionaries(KEYS, st.dictionaries(NAMES, st.binary(max_size=20_000), min_size=1, max_size=3), max_size=4))
def test_tars_are_those_of_tarfile(samples: dict[str, dict[str, bytes]]) -> None:
    buffer, size = io.BytesIO(), 0
    tar = hashed_tar.HashedTar(buffer)
    for key, contents in samples.items():
        tar.add(key, contents)
        size += sum(512 + -(-len(content) // 512) * 512 for content in contents.values())  # headers and padding
        assert tar.size == size
    tar.close()
    assert buffer.getvalue() == by_tarfile(samples)
    assert tar.sha256 == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert tar.size == len(buffer.getvalue())
