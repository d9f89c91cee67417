"""Clean what is printed: one place through which everything goes to the terminal.

Names and messages of others may contain control characters, which move the cursor, change colours or set the title of
a terminal, and addresses with secrets. Both are replaced in the streams themselves, so that no caller has to think of
it.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

from sgdata import urls

# C0 and C1 controls but newline and tab; marks that change the direction of text; invisible line ends.
_CONTROLS = [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPED = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in (*_CONTROLS, 0x200E, 0x200F, 0x2028, 0x2029)
}


def clean(text: str) -> str:
    """Return a text with control characters escaped and without the secrets of addresses."""
    return urls.redact(text).translate(_ESCAPED)


class CleanStream:
    """A text stream that cleans what is written to it. It is no terminal: libraries write no colours to it."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`; characters that its encoding lacks are escaped too."""
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, cleaned."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        # File names that are not UTF-8 have lone surrogates.
        self.stream.write(clean(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def isatty(self) -> bool:
        """Return False."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def clean_output() -> None:
    """Clean stdout and stderr of this process from now on, tracebacks included."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, CleanStream):
            setattr(sys, name, CleanStream(stream))
