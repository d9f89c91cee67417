"""The `sgdata` command: collects the commands of `sgdata.commands` and turns errors into exit codes.

Exit codes are those of `sgdata.errors.ExitCode`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from sgdata import terminal
from sgdata.commands import builds, checks, datasets, publish, simulation
from sgdata.errors import ExitCode

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,  # installing it would edit the user's shell files
    # Plain tracebacks for bugs: those of typer print local variables, which may contain the token of a signed URL.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (simulation, builds, datasets, checks, publish):
    app.add_typer(group.app)


def _print_version(value: bool) -> None:
    from importlib.metadata import version

    if value:
        print(f"sgdata {version('sgdata')}")
        raise typer.Exit(ExitCode.DONE)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Build, shard, verify and release Sentinel-2 datasets."""


def main() -> None:
    """Run the `sgdata` command."""
    terminal.run(app, "sgdata")


if __name__ == "__main__":
    main()
