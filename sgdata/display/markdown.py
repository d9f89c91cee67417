"""Write foreign text into Markdown: it stays text, whatever it contains."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Marks of Markdown inside a line, and the bar of tables. An underscore is left alone: inside a word it means nothing.
_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*[]|~"} | {"<": "&lt;", ">": "&gt;"})
_ENTITY = re.compile(r"&(?=#?\w+;)")
# Addresses become links by themselves on many sites.
_ADDRESS = re.compile(r":(?=//)|(?<=\bwww)\.|(?<=\w)@(?=\w)", re.IGNORECASE)
_CODES = {":": "&#58;", ".": "&#46;", "@": "&#64;"}


def escape(text: object, *, links: bool = False) -> str:
    """Return a text on one line that Markdown shows as it is: no HTML, links, pictures, emphasis or table cells.

    Args:
        text: Anything; foreign text as a rule.
        links: Whether addresses may become links by themselves, for text of our own.
    """
    # Controls, marks of direction and line ends of any kind are shown by nothing and change what follows.
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split(" "))
    escaped = _ENTITY.sub("&amp;", line).translate(_MARKS)
    return escaped if links else _ADDRESS.sub(lambda match: _CODES[match[0]], escaped)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, links: bool = False) -> str:
    """Return a table with escaped cells."""
    lines = [[escape(cell, links=links) for cell in row] for row in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
