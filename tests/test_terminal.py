"""Test that no control character and no secret of an untrusted name or message reaches a terminal."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from sgdata import files, terminal

ESCAPES = "a\x1b[31mred\x1b]0;title\x07b\x9b1mc\rd\be\x7ff\u202eg\u2028h"


def test_control_characters_are_escaped_and_text_stays() -> None:
    cleaned = terminal.clean(ESCAPES)
    assert cleaned == r"a\x1b[31mred\x1b]0;title\x07b\u009b1mc\x0dd\x08e\u007ff\u202eg\u2028h"
    assert terminal.clean("München │ 3 µm\n\tnext") == "München │ 3 µm\n\tnext"


def test_a_stream_also_replaces_characters_outside_its_encoding() -> None:
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("ü \udce9 https://u:pw@h/x?sig=abc", file=terminal.CleanStream(raw))
    raw.flush()
    assert raw.buffer.getvalue() == b"\\xfc \\udce9 https://***@h/x?sig=***\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", ["sgdata", "sgmodel"])
def test_no_command_prints_escapes_of_names(package: str, tmp_path: Path) -> None:
    files.write(tmp_path / "a", b"x")
    files.write_sums(tmp_path)
    (tmp_path / "evil\x1b[31m\r.txt").write_text("x")
    arguments = ["verify", str(tmp_path)] if package == "sgdata" else ["segment", f"no\x1b[31m\r{tmp_path}"]
    command = [sys.executable, "-m", f"{package}.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (2, 3)
    assert "\\x1b[31m" in done.stdout + done.stderr
    assert not set("\x1b\r") & set(done.stdout + done.stderr)
