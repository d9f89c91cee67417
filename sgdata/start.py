"""Start a program, so that Ctrl-C ends it in one line also while its modules are imported."""

from __future__ import annotations

import importlib
import sys


def run(program: str) -> None:
    """Import and run the command line of a package, `sgdata` or `sgmodel`."""
    try:
        importlib.import_module(f"{program}.cli").main()
    except KeyboardInterrupt:
        from sgdata.errors import ExitCode

        print(f"{program}: stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(ExitCode.INTERRUPTED) from None


def sgdata() -> None:
    """Run the `sgdata` command."""
    run("sgdata")


def sgmodel() -> None:
    """Run the `sgmodel` command."""
    run("sgmodel")
