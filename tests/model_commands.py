"""Run the `sgmodel` command within the test process."""

from __future__ import annotations

import pytest

from sgdata import terminal
from sgmodel import cli


def sgmodel(*arguments: object) -> int:
    """Return the exit code of `sgmodel` with `arguments`."""
    with pytest.raises(SystemExit) as ended:
        terminal.run(cli.app, "sgmodel", [str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code
