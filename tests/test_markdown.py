"""Test that untrusted text in cards, READMEs and pages stays text."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import synthetic_shards
from hypothesis import given
from hypothesis import strategies as st

from sgdata import output_names
from sgdata.display import markdown
from sgdata.errors import SettingError
from sgdata.pages import html
from sgdata.shards import contracts
from sgdata.types import LabelSpace

HOSTILE = (
    "<script>alert(1)</script>", "![x](https://evil.example/x.png)", "[click](javascript:alert(1))", "`code` | cell",
    "https://evil.example/login", "www.evil.example", "me@evil.example", "**bold** ~~gone~~", "a\n# heading",
    "a\r\n\n| row | 1 |", "\x1b[31mred\x07", "a\u202eb\u2028c", "&lt;b&gt;&#60;", "<!-- ", "a\\", "[ref]: http://x",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_stays_text(text: str) -> None:
    escaped = markdown.escape(text)
    assert escaped.isprintable()
    assert not re.search(r"[<>]|://|www\.|\w@\w", escaped)
    # Every mark that could begin something is behind a backslash, which is none itself.
    assert not re.search(r"(?<!\\)(?:\\\\)*[\[\]`*|~]", escaped)
    assert markdown.table(["a"], [[text]]).count("\n") == 3


@given(st.text(max_size=60))
def test_a_cell_is_one_cell(text: str) -> None:
    table = markdown.table(["name", "count"], [[text, 3]])
    *_, row = table.splitlines()
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3


@pytest.mark.parametrize(
    "text", ["Discontinuous urban fabric", "B8A, 20 m", "S2A_32UPU_20190407_0", "München (Nord): 3 %"]
)
def test_ordinary_text_is_not_changed(text: str) -> None:
    assert markdown.escape(text) == text


@pytest.mark.parametrize("colour", ["#aabbcc;background:url(https://evil.example)", "red", "", "#aabbc", "url(x)"])
def test_a_colour_is_a_colour(tmp_path: Path, colour: str) -> None:
    with pytest.raises(ValueError, match="expected #rrggbb"):
        LabelSpace(name="x", task="segmentation", ids=(0,), names=("a",), colours=(colour,))
    contracts.write(tmp_path, synthetic_shards.contract(32))
    path = tmp_path / output_names.CONTRACT
    path.write_text(path.read_text().replace('"#3050a0"', f'"{colour}"'))
    with pytest.raises(SettingError, match="expected #rrggbb"):
        contracts.read(tmp_path)
    bars = html.Bars(title="x", columns=("",), bars=(("a", colour, (0.5,)),))
    page = html.write(tmp_path / "index.html", title="x", intro="", blocks=[bars]).read_text()
    assert "evil" not in page
    assert "background:#808080" in page


def test_a_name_per_class() -> None:
    space = synthetic_shards.contract(32).label_space
    with pytest.raises(ValueError, match="a name per id"):
        dataclasses.replace(space, names=space.names[:-1])
    with pytest.raises(ValueError, match="a colour or none"):
        dataclasses.replace(space, colours=space.colours[:-1])
