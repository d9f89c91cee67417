from __future__ import annotations

from pathlib import Path

import pytest

from sgdata import files, verify
from sgdata.errors import OutputError


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
    assert verify.verify(output) == []


def test_missing_flipped_and_extra_files_are_told_each(output: Path) -> None:
    (output / "a.tar").unlink()
    content = bytearray((output / "deep/b.bin").read_bytes())
    content[17] ^= 1
    (output / "deep/b.bin").write_bytes(content)
    (output / "deep/new").write_text("x")
    missing, changed, extra = verify.verify(output)
    assert missing == "a.tar: missing"
    assert changed.startswith("deep/b.bin: changed, SHA-256 is ")
    assert extra == "deep/new: not listed"


@pytest.mark.parametrize("line", ["nonsense", "0" * 64 + "  ../etc/passwd", "0" * 64 + "  /etc/passwd", ""])
def test_a_damaged_list_is_refused(output: Path, line: str) -> None:
    (output / files.SUMS).write_text(line + "\n")
    with pytest.raises(OutputError, match="line 1"):
        verify.verify(output)


@pytest.mark.parametrize("bit", range(8))
def test_a_turned_bit_in_the_list_itself_is_told(output: Path, bit: int) -> None:
    """Also in a newline: \\x0b and \\r end a line for Python, but not for sha256sum."""
    path = output / files.SUMS
    whole = path.read_bytes()
    newlines = [at for at, byte in enumerate(whole) if byte == 10]
    for at in sorted({*newlines, *range(0, len(whole), 9)}):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            differences = verify.verify(output)
        except OutputError:
            continue
        # `A` and `a` are both hexadecimal, but only one is what we write.
        assert differences, (at, bit)
    for size in range(bit, len(whole), 8):
        path.write_bytes(whole[:size])
        try:
            assert verify.verify(output)
        except OutputError:
            continue


def test_a_folder_that_is_no_output_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no SHA256SUMS"):
        verify.verify(tmp_path)
