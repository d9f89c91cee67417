from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sgdata import files, output_names, sidecar_files, verification
from sgdata.errors import OutputError, SettingError


@pytest.fixture
def output(tmp_path: Path) -> Path:
    for name in ("a.tar", "deep/b.bin", "contract.json"):
        files.write(tmp_path / name, name.encode() * 100)
    files.write_sums(tmp_path)
    return tmp_path


def test_an_output_as_written_has_no_difference(output: Path) -> None:
    (output / ".lock").write_text("")
    (output / "timings.jsonl").write_text("{}")
    (output / "tensorboard").mkdir()
    (output / "tensorboard/events").write_text("x")
    assert verification.verify(output) == []


def test_missing_flipped_and_extra_files_are_each_reported(output: Path) -> None:
    (output / "a.tar").unlink()
    content = bytearray((output / "deep/b.bin").read_bytes())
    content[17] ^= 1
    (output / "deep/b.bin").write_bytes(content)
    (output / "deep/new").write_text("x")
    missing, changed, extra = verification.verify(output)
    assert missing == "a.tar: missing"
    assert changed.startswith("deep/b.bin: changed, SHA-256 is ")
    assert extra == "deep/new: not listed"


@pytest.mark.parametrize("line", ["nonsense", "0" * 64 + "  ../etc/passwd", "0" * 64 + "  /etc/passwd", ""])
def test_a_damaged_list_is_refused(output: Path, line: str) -> None:
    (output / output_names.SUMS).write_text(line + "\n")
    with pytest.raises(OutputError, match="line 1"):
        verification.verify(output)


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_in_the_list_itself_is_reported(output: Path, bit: int) -> None:
    """Also flip a bit of a newline: \\x0b and \\r end a line for Python, but not for sha256sum."""
    path = output / output_names.SUMS
    whole = path.read_bytes()
    newlines = [at for at, byte in enumerate(whole) if byte == 10]
    for at in sorted({*newlines, *range(0, len(whole), 9)}):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            differences = verification.verify(output)
        except OutputError:
            continue
        # `A` and `a` are both hexadecimal, but only one is what we write.
        assert differences, (at, bit)
    for size in range(bit, len(whole), 8):
        path.write_bytes(whole[:size])
        try:
            assert verification.verify(output)
        except OutputError:
            continue


def test_a_folder_that_is_not_an_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no SHA256SUMS"):
        verification.verify(tmp_path)
    with pytest.raises(OutputError, match="missing: no such folder"):
        verification.verify(tmp_path / "missing")


def test_a_linked_folder_is_reported_and_a_linked_file_checked_by_content(output: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path.with_name("elsewhere")
    elsewhere.mkdir()
    (output / "a.tar").rename(elsewhere / "a.tar")
    (output / "a.tar").symlink_to(elsewhere / "a.tar")
    assert verification.verify(output) == []
    (output / "more").symlink_to(elsewhere)
    assert verification.verify(output) == ["more: not listed"]


def test_an_unreadable_file_is_reported(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))  # as root nothing is

    name = "x" * 300
    with (output / output_names.SUMS).open("a") as handle:
        handle.write(f"{'0' * 64}  {name}\n")
    assert verification.verify(output) == [f"{name}: cannot be read: File name too long"]
    monkeypatch.setattr(files, "sha256_file", refusing)
    assert verification.verify(output)[0] == "a.tar: cannot be read: Permission denied"


def test_a_name_that_is_not_valid_text_is_printed(output: Path) -> None:
    Path(os.fsdecode(os.fsencode(output) + b"/caf\xe9")).write_text("x")
    command = [sys.executable, "-m", "sgdata.cli", "verify", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "caf\\udce9: not listed\n", "")


# --- required files, and comparison with a source that is trusted --------------------------


@pytest.mark.parametrize(
    ("mark", "lacking"),
    [
        (output_names.INDEX, output_names.CONTRACT), (output_names.IMAGE, output_names.LOCK),
        (output_names.METRICS, output_names.RESULTS),
        (output_names.CROISSANT, "CARD.md"), (output_names.LEDGER, "ledger.md"), ("card.json", "model.safetensors"),
        (output_names.IMAGE, output_names.IMAGE), (output_names.CROISSANT, output_names.CROISSANT),
    ],
)  # fmt: skip
def test_a_list_written_again_without_a_required_file_is_reported(tmp_path: Path, mark: str, lacking: str) -> None:
    for name in (mark, *verification.REQUIRED[mark]):
        files.write(tmp_path / name, name.encode())
    files.write_sums(tmp_path)
    assert verification.verify(tmp_path) == []
    (tmp_path / lacking).unlink()
    files.write_sums(tmp_path)
    (line,) = verification.verify(tmp_path)
    assert line.startswith(f"{lacking}: missing from SHA256SUMS, required beside {mark}")


def test_an_empty_list_is_reported(tmp_path: Path) -> None:
    files.write_sums(tmp_path)
    assert verification.verify(tmp_path) == ["SHA256SUMS: lists no file"]


def test_only_a_trusted_source_shows_that_the_list_itself_was_written_again(output: Path, tmp_path: Path) -> None:
    digest = files.sha256_file(output / output_names.SUMS)
    copy = shutil.copytree(output, tmp_path.with_name("copy"))
    document, listed = tmp_path.with_name("release.json"), tmp_path.with_name("sums")
    document.write_text(json.dumps({"name": "x", "sha256": digest}))
    shutil.copyfile(output / output_names.SUMS, listed)
    sources = (digest, digest.upper(), str(document), str(listed), str(copy))
    for trusted in sources:
        assert verification.compare(output, trusted) == []
    (output / "a.tar").write_bytes(b"other")
    files.write_sums(output)
    assert verification.verify(output) == []
    for trusted in sources:
        (difference,) = verification.compare(output, trusted)
        assert difference.startswith(("SHA256SUMS: SHA-256 is ", "a.tar: "))
    with pytest.raises(SettingError, match="expected a SHA-256"):
        verification.compare(output, str(tmp_path / "absent"))
    document.write_text("{}")
    with pytest.raises(SettingError, match="has no 'sha256'"):
        verification.compare(output, str(document))


def test_the_command_compares_too(output: Path) -> None:
    command = [sys.executable, "-m", "sgdata.cli", "verify", str(output), "--against"]
    assert subprocess.run([*command, files.sha256_file(output / output_names.SUMS)], check=False).returncode == 0
    assert subprocess.run([*command, "0" * 64], check=False).returncode == 3


# --- files of other programs ---------------------------------------------------------------

STATISTICS = """<PAMDataset>
  <PAMRasterBand band="1">
    <Description>B01</Description>
    <Histograms><HistItem><HistMin>0</HistMin><HistMax>9</HistMax><BucketCount>1</BucketCount>
      <IncludeOutOfRange>0</IncludeOutOfRange><Approximate>1</Approximate><HistCounts>3</HistCounts></HistItem></Histograms>
    <Metadata><MDI key="STATISTICS_MEAN">3</MDI></Metadata>%s
  </PAMRasterBand>%s
</PAMDataset>
"""
LEFT = (".DS_Store", "deep/Thumbs.db", "desktop.ini", "deep/._b.bin", "mine.qgz", "image.qmd", "image.qml")


@pytest.mark.parametrize("release", [False, True])
def test_files_of_other_programs_are_remarks(output: Path, release: bool) -> None:
    if release:
        for name in verification.REQUIRED[output_names.CROISSANT]:
            files.write(output / name, b"x")
        files.write(output / output_names.CROISSANT, b"x")
        files.write_sums(output)
    for name in LEFT:
        (output / name).write_bytes(b"x")
    (output / "image.tif.aux.xml").write_text(STATISTICS % ("", ""))
    found = verification.inspect(output)
    assert found.differences == ()
    # Hidden files of an output that is no release are not looked at.
    seen = [name for name in LEFT if release or "/." not in f"/{name}"]
    assert sorted(line.partition(":")[0] for line in found.remarks) == sorted([*seen, "image.tif.aux.xml"])
    assert verification.verify(output) == []


@pytest.mark.parametrize(
    ("inside", "beside", "what"),
    [
        ("<NoDataValue>7</NoDataValue>", "", "NoDataValue"),
        ("<Scale>2</Scale>", "", "Scale"),
        ("", "<SRS>EPSG:4326</SRS>", "SRS"),
        ("", "<GeoTransform>0,1,0,0,0,1</GeoTransform>", "GeoTransform"),
        ("<CategoryNames><Category>water</Category></CategoryNames>", "", "Category, CategoryNames"),
        ("", '<Metadata domain="RPC"><MDI key="STATISTICS_X">1</MDI></Metadata>', "Metadata"),
        ("", '<Metadata><MDI key="AREA_OR_POINT">Point</MDI></Metadata>', "MDI"),
    ],
)
def test_a_side_file_that_changes_what_gdal_reads_is_a_difference(
    output: Path, inside: str, beside: str, what: str
) -> None:
    (output / "image.tif.aux.xml").write_text(STATISTICS % (inside, beside))
    (line,) = verification.verify(output)
    assert line == f"image.tif.aux.xml: not listed; it changes what GDAL reads ({what})"


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"<PAMDataset>", b"<VRTDataset/>", b'<!DOCTYPE x [<!ENTITY a "b">]><PAMDataset>&a;</PAMDataset>'],
)
def test_a_side_file_that_is_no_pam_document_is_a_difference(output: Path, content: bytes) -> None:
    (output / "image.tif.aux.xml").write_bytes(content)
    assert verification.verify(output) == ["image.tif.aux.xml: not listed"]


def test_other_files_and_links_by_the_names_of_side_files_are_differences(output: Path) -> None:
    (output / "mine.qgz").symlink_to(output / "a.tar")
    (output / "Thumbs.db").mkdir()
    (output / "Thumbs.db/code.py").write_text("x")
    for name in ("image.tif.ovr", "image.tif.msk", "image.tfw", "notes.txt"):
        (output / name).write_text("x")
    assert len(verification.verify(output)) == 6


def test_statistics_added_to_class_names_are_a_remark(output: Path) -> None:
    path = output / "labels.tif.aux.xml"
    names = {0: "Forest & <wood>", 2: "water", 255: "unmapped"}
    files.write(path, sidecar_files.categories(names))
    files.write_sums(output)
    added = STATISTICS.replace("%s\n", "%s", 1) % ("", "")
    for name in ("water", "lake"):
        inside = sidecar_files.categories(names | {2: name}).decode()
        inside = inside[inside.index("<CategoryNames>") : inside.index("</PAMRasterBand>")]
        path.write_text(added.replace("<Metadata>", f"{inside}<Metadata>", 1))
        found = verification.inspect(output)
        if name == "water":
            assert found == verification.Inspection(
                differences=(), remarks=("labels.tif.aux.xml: statistics of GDAL added, class names as written",)
            )
        else:
            assert [line.partition(",")[0] for line in found.differences] == ["labels.tif.aux.xml: changed"]
    path.write_text(added.replace("<Metadata>", f"<NoDataValue>0</NoDataValue>{inside}<Metadata>", 1))
    assert len(verification.verify(output)) == 1


def test_sums_leave_out_files_of_other_programs(output: Path) -> None:
    before = (output / output_names.SUMS).read_bytes()
    for name in ("deep/Thumbs.db", "desktop.ini", "mine.qgz", "image.qmd"):
        (output / name).write_bytes(b"x")
    files.write_sums(output)
    assert (output / output_names.SUMS).read_bytes() == before
