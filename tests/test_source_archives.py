from __future__ import annotations

import bz2
import gzip
import io
import os
import random
import resource
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgdata.datasets import archives
from sgdata.datasets.types import SourceMember
from sgdata.errors import SourceError

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


def compressed(path: Path, plain: bytes) -> Path:
    """Write `plain` to `path`, compressed according to its suffix."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain[:1000], mtime=0) + gzip.compress(plain[1000:], mtime=0))  # as pigz does
    elif path.suffix == ".bz2":
        path.write_bytes(bz2.compress(plain))
    else:
        path.write_bytes(pa.compress(plain, codec="zstd", asbytes=True))
    return path


def streamed(source: Path) -> dict[str, bytes]:
    members = sorted(archives.list_members(source).members, key=lambda member: member.offset or 0)
    with archives.open_stream(source) as content:
        return {member.name: content(member) for member in members}


def held(source: Path) -> dict[str, bytes]:
    if archives.is_stream(source):
        return streamed(source)
    with archives.open_archive(source) as content:
        return {member.name: content(member) for member in archives.list_members(source).members}


@pytest.mark.parametrize("make", [as_zip, as_tar, as_folder])
def test_folder_zip_and_tar_are_listed_and_read_alike(make: object, tmp_path: Path) -> None:
    source = make(tmp_path / "it", GOOD)  # type: ignore[operator]
    assert held(source) == GOOD
    assert [m.name for m in archives.list_members(source).members] == sorted(GOOD)


def test_zips_in_a_folder_are_part_of_it_unless_they_were_unpacked(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "it", {"here.txt": b"here", "b/x.txt": b"unpacked"})
    as_zip(source / "a.zip", GOOD)
    as_zip(source / "b.zip", {"b/x.txt": b"packed"})
    assert held(source) == {"here.txt": b"here", "b/x.txt": b"unpacked"} | {f"a.zip/{n}": c for n, c in GOOD.items()}


def test_links_in_a_folder_are_followed_once_or_reported(tmp_path: Path) -> None:
    store = as_folder(tmp_path / "store", {"x.tif": b"x"})
    source = as_folder(tmp_path / "it", {"a/b.tif": b"b", "a/._b.tif": b"mac"})
    (source / "linked").symlink_to(store)
    (source / "a" / "c.tif").symlink_to(store / "x.tif")
    (source / "a" / "round").symlink_to(source)
    (store / "back").symlink_to(store)
    (source / "a" / "gone.tif").symlink_to(tmp_path / "nothing")
    listing = archives.list_members(source)
    assert [m.name for m in listing.members] == ["a/b.tif", "a/c.tif", "linked/x.tif"]
    assert [name for name, _ in listing.rejected] == ["a/gone.tif", "a/round", "linked/back"]
    assert dict(listing.rejected)["a/gone.tif"] == "not a plain file, or a broken link"


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = as_folder(tmp_path / "it", {"a/b.tif": b"b", "c/d.tif": b"d"})
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("/c"):
            raise PermissionError(13, "Permission denied")  # as root nothing is
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = archives.list_members(source)
    assert [m.name for m in listing.members] == ["a/b.tif"]
    assert listing.rejected == (("c", "cannot be read: Permission denied"),)


def test_macos_metadata_files_are_ignored(tmp_path: Path) -> None:
    beside = {"__MACOSX/a/._b.tif": b"\0\5\x16\7", "a/._b.tif": b"\0\5\x16\7"}
    for make in (as_zip, as_tar):
        listing = archives.list_members(make(tmp_path / make.__name__, GOOD | beside))
        assert [m.name for m in listing.members] == sorted(GOOD)
        assert listing.rejected == ()


def test_hostile_members_are_rejected_by_name_and_the_rest_is_used(tmp_path: Path) -> None:
    link, device, hard = tarfile.TarInfo("link.tif"), tarfile.TarInfo("null"), tarfile.TarInfo("hard.tif")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    hard.type, hard.linkname = tarfile.LNKTYPE, "a/b.tif"
    bad = {"../up.tif": b"x", "/root.tif": b"x", "a/../../c.tif": b"x", "a\\b.tif": b"x"}
    source = as_tar(tmp_path / "it.tar", GOOD | bad, [link, device, hard])
    with tarfile.open(source, "a") as archive:
        archive.addfile(tarfile.TarInfo("c.txt"))
    listing = archives.list_members(source)
    assert [m.name for m in listing.members] == sorted(GOOD)
    reasons = dict(listing.rejected)
    assert set(reasons) == {*bad, "link.tif", "null", "hard.tif", "c.txt"}
    assert reasons["../up.tif"] == "name leads out of the archive"
    assert reasons["link.tif"] == "not a plain file"
    assert reasons["c.txt"] == "second member of this name"

    zipped = archives.list_members(as_zip(tmp_path / "it.zip", GOOD | bad))
    assert {name for name, _ in zipped.rejected} >= {"../up.tif", "/root.tif", "a/../../c.tif"}
    assert not {m.name for m in zipped.members} & set(bad)


def test_a_link_in_a_zip_and_an_enormous_claim_are_rejected(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert archives.list_members(tmp_path / "it.zip").rejected == (("link", "not a plain file"),)
    big = tarfile.TarInfo("zeros")
    big.size = 100 * 2**30
    (tmp_path / "it.tar").write_bytes(big.tobuf() + b"\0" * 1024)
    with pytest.raises(SourceError):
        archives.list_members(tmp_path / "it.tar")


def test_a_member_that_differs_from_the_listing_is_refused(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "it", {"a": b"1234", "p": b"version https://git-lfs.github.com/spec/v1\n"})
    with archives.open_archive(source) as content:
        with pytest.raises(SourceError, match="4 bytes, expected 9"):
            content(SourceMember(name="a", size=9))
        with pytest.raises(SourceError, match="cannot be read"):
            content(SourceMember(name="gone", size=9))
        with pytest.raises(SourceError, match="Git LFS pointer"):
            content(SourceMember(name="p", size=43))


@pytest.mark.parametrize("name", ["it.tar", "it.zip", "it.tar.gz"])
def test_a_file_that_is_not_an_archive_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b no archive at all" * 9)
    with pytest.raises(SourceError, match=r"not a folder, zip or tar .*unpack it") as error:
        archives.list_members(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(SourceError, match="no such file or folder"):
        archives.list_members(tmp_path / "missing")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(make=st.sampled_from([as_zip, as_tar]), data=st.data())
def test_damage_gives_source_errors_or_listed_rejects_only(make: object, data: st.DataObject, tmp_path: Path) -> None:
    source = make(tmp_path / "it", GOOD)  # type: ignore[operator]
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    source.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        members = archives.list_members(source).members
        with archives.open_archive(source) as read:
            for member in members:
                try:
                    assert len(read(member)) == member.size
                except SourceError:
                    continue
    except SourceError:
        return


# --- compressed tars -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.zst", ".tar.bz2"])
def test_a_compressed_tar_is_read_front_to_back(suffix: str, tmp_path: Path) -> None:
    plain = as_tar(tmp_path / "it.tar", GOOD)
    source = compressed(tmp_path / f"it{suffix}", plain.read_bytes())
    assert archives.is_stream(source)
    assert not archives.is_stream(plain)
    assert archives.list_members(source) == archives.list_members(plain)
    assert streamed(source) == GOOD


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.zst"])
def test_a_compressed_tar_truncated_anywhere_is_refused(suffix: str, tmp_path: Path) -> None:
    source = compressed(tmp_path / f"it{suffix}", as_tar(tmp_path / "it.tar", GOOD).read_bytes())
    whole = source.read_bytes()
    for share in range(1, 10):
        source.write_bytes(whole[: len(whole) * share // 10])
        with pytest.raises(SourceError, match="not a folder, zip or tar"):
            archives.list_members(source)


def _claiming(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo("zeros")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


HOSTILE = {
    "100 GB of zeros": _claiming(100 * 2**30),
    "a pax header of 100 GB": _claiming(100 * 2**30, tarfile.XHDTYPE),
    "a long name of 100 GB": _claiming(100 * 2**30, tarfile.GNUTYPE_LONGNAME),
    "a header without end": _claiming(512) + b"\1" * 512 + b"no header" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_false_size_is_refused_before_reading(name: str, tmp_path: Path) -> None:
    """Use a sparse file of 20 GB, too large to read in a test."""
    script = (
        "import sys, resource, pyarrow; from pathlib import Path\n"
        "from sgdata.datasets import archives; from sgdata.errors import SourceError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32)); resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
        "try: archives.list_members(Path(sys.argv[1])); print('taken')\n"
        "except SourceError as error: print('refused', error)"
    )
    plain = tmp_path / "it.tar"
    with plain.open("wb") as handle:
        handle.write(HOSTILE[name])
        handle.truncate(20 * 2**30)
    zeros = gzip.compress(bytes(2**24), 9)
    bomb = tmp_path / "it.tar.gz"
    bomb.write_bytes(gzip.compress(HOSTILE[name]) + zeros * 64)  # 1 GB of zeros in 1 MB
    for source in (plain, bomb):
        finished = subprocess.run([sys.executable, "-c", script, source], capture_output=True, text=True, check=True)
        # In a plain tar a member is never read, only passed over: it is listed as too large, the end is missing.
        assert finished.stdout.startswith("refused"), (source.name, finished)


def test_a_negative_size_does_not_loop_forever(tmp_path: Path) -> None:
    header = bytearray(_claiming(0))
    header[124:136] = b"\xff" * 10 + b"\xf0\x00"  # GNU base 256: -4096
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    (tmp_path / "it.tar").write_bytes(as_tar(tmp_path / "good.tar", GOOD).read_bytes()[:1024] + bytes(header) * 20)
    with pytest.raises(SourceError):
        archives.list_members(tmp_path / "it.tar")


def _fuzzed(folder: Path, rng: random.Random) -> Path:
    """Write an archive in one of five containers with hostile members, flipped bytes or a truncated end."""
    members = {f"d{rng.randrange(3)}/{n}.tif": rng.randbytes(rng.randrange(4000)) for n in range(rng.randrange(1, 9))}
    hostile = {"../up": b"x", "/abs": b"x", "a/../../b": b"x", "a\\b": b"x", "d0/0.tif": b"again"}
    members |= {name: hostile[name] for name in rng.sample(sorted(hostile), rng.randrange(3))}
    odd = []
    for kind in rng.sample([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE], rng.randrange(3)):
        info = tarfile.TarInfo(f"odd{kind!r}")
        info.type, info.linkname = kind, "/etc/passwd"
        odd.append(info)
    if rng.random() < 0.3:
        source = as_zip(folder / "it.zip", members)
    else:
        source = as_tar(folder / "it.tar", members, odd)
        content = bytearray(source.read_bytes())
        if rng.random() < 0.5:  # damage under the compression
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        source.write_bytes(content)
        suffix = rng.choice(["", ".gz", ".zst", ".bz2"])
        source = compressed(folder / f"it.tar{suffix}", bytes(content)) if suffix else source
    content = bytearray(source.read_bytes())
    if rng.random() < 0.5:
        for _ in range(rng.randrange(1, 5)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
    source.write_bytes(content)
    return source


def test_two_hundred_fuzzed_archives(tmp_path: Path) -> None:
    count = 200
    rng, outcomes = random.Random(4), {"used": 0, "refused": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        source = _fuzzed(folder, rng)
        try:
            listing = archives.list_members(source)
            assert not [m.name for m in listing.members if m.name.startswith("/") or ".." in m.name.split("/")]
            assert all(reason for _, reason in listing.rejected)
            for member, content in held(source).items():
                assert len(content) == next(m.size for m in listing.members if m.name == member)
            outcomes["used"] += 1
        except SourceError as error:
            outcomes["refused"] += "\n" not in str(error)
        assert sum(outcomes.values()) == number + 1
        assert {path.name for path in folder.iterdir()} <= {"it.zip", "it.tar", "it.tar.gz", "it.tar.zst", "it.tar.bz2"}
    assert min(outcomes.values()) > count / 10
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024, f"{grown} KiB more than before: archives are read a megabyte at a time"
