from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgdata import archives
from sgdata.errors import SourceError
from sgdata.types import Member

GOOD = {"a/b.tif": b"one", "a/ü.tif": b"two" * 500, "c.txt": b""}


def as_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def as_tar(path: Path, members: dict[str, bytes], odd: list[tarfile.TarInfo] | None = None) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in odd or []:
            archive.addfile(info)
    return path


def as_folder(path: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def held(source: Path) -> dict[str, bytes]:
    with archives.opened(source) as content:
        return {member.name: content(member) for member in archives.listing(source).members}


@pytest.mark.parametrize("make", [as_zip, as_tar, as_folder])
def test_folder_zip_and_tar_are_listed_and_read_alike(make: object, tmp_path: Path) -> None:
    source = make(tmp_path / "it", GOOD)  # type: ignore[operator]
    assert held(source) == GOOD
    assert [m.name for m in archives.listing(source).members] == sorted(GOOD)


def test_hostile_members_are_rejected_by_name_and_the_rest_is_used(tmp_path: Path) -> None:
    link, device, hard = tarfile.TarInfo("link.tif"), tarfile.TarInfo("null"), tarfile.TarInfo("hard.tif")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    hard.type, hard.linkname = tarfile.LNKTYPE, "a/b.tif"
    bad = {"../up.tif": b"x", "/root.tif": b"x", "a/../../c.tif": b"x", "a\\b.tif": b"x"}
    source = as_tar(tmp_path / "it.tar", GOOD | bad, [link, device, hard])
    with tarfile.open(source, "a") as archive:
        archive.addfile(tarfile.TarInfo("c.txt"))
    listing = archives.listing(source)
    assert [m.name for m in listing.members] == sorted(GOOD)
    told = dict(listing.rejected)
    assert set(told) == {*bad, "link.tif", "null", "hard.tif", "c.txt"}
    assert told["../up.tif"] == "name leads out of the archive"
    assert told["link.tif"] == "not a plain file"
    assert told["c.txt"] == "second member of this name"

    zipped = archives.listing(as_zip(tmp_path / "it.zip", GOOD | bad))
    assert {name for name, _ in zipped.rejected} >= {"../up.tif", "/root.tif", "a/../../c.tif"}
    assert not {m.name for m in zipped.members} & set(bad)


def test_a_link_in_a_zip_and_an_enormous_claim_are_rejected(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert archives.listing(tmp_path / "it.zip").rejected == (("link", "not a plain file"),)
    big = tarfile.TarInfo("zeros")
    big.size = 100 * 2**30
    (tmp_path / "it.tar").write_bytes(big.tobuf() + b"\0" * 1024)
    with pytest.raises(SourceError):
        archives.listing(tmp_path / "it.tar")


def test_a_member_that_is_not_what_was_listed_is_told(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "it", {"a": b"1234", "p": b"version https://git-lfs.github.com/spec/v1\n"})
    with archives.opened(source) as content:
        with pytest.raises(SourceError, match="4 bytes, expected 9"):
            content(Member(name="a", size=9))
        with pytest.raises(SourceError, match="cannot be read"):
            content(Member(name="gone", size=9))
        with pytest.raises(SourceError, match="Git LFS pointer"):
            content(Member(name="p", size=43))


@pytest.mark.parametrize("name", ["it.tar", "it.zip", "it.tar.gz"])
def test_what_is_no_archive_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b no archive at all" * 9)
    with pytest.raises(SourceError, match=r"not a folder, zip or uncompressed tar .*unpack it") as error:
        archives.listing(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(SourceError, match="no such file or folder"):
        archives.listing(tmp_path / "missing")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(make=st.sampled_from([as_zip, as_tar]), data=st.data())
def test_damage_gives_source_errors_or_listed_rejects_only(make: object, data: st.DataObject, tmp_path: Path) -> None:
    source = make(tmp_path / "it", GOOD)  # type: ignore[operator]
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    source.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        members = archives.listing(source).members
        with archives.opened(source) as read:
            for member in members:
                try:
                    assert len(read(member)) == member.size
                except SourceError:
                    continue
    except SourceError:
        return
