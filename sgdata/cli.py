"""The `sgdata` command: parse, call one function, print one path.

Exit codes: 0 done; 2 the user can mend it (one line); 3 done, but something was left out and is listed; 1 our bug.
Heavy libraries are imported inside the commands, so that `sgdata --help` answers at once.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from sgdata.errors import SgdataError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build, shard, verify and release Sentinel-2 datasets.",
)

INCOMPLETE = 3

Out = Annotated[Path, typer.Option("--out", help="Folder to write into.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes on this machine; the bytes do not depend on it.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what it would cost, and stop.")]


def example(command: str) -> str:
    """The epilog of a command's help."""
    return f"Example: {command}"


def main() -> None:
    """Entry point of the `sgdata` script."""
    try:
        app()
    except SgdataError as error:
        print(f"sgdata: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def listen(quiet: bool) -> None:
    """Send progress and log lines to stderr, or nothing below a warning."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("sgdata").setLevel(logging.WARNING if quiet else logging.INFO)


@app.command(epilog=example("sgdata simulate out/archive --size 6 --dates 12 --seed 1"))
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder of the archive.")],
    seed: Annotated[int, typer.Option(help="Same seed, same city, same bytes.")] = 1,
    size: Annotated[float, typer.Option(help="Side of the area in km, 2 to 40.")] = 6.0,
    dates: Annotated[int, typer.Option(help="Acquisitions in the first epoch.")] = 12,
    layout: Annotated[str, typer.Option(help="Which provider's catalogue to imitate.")] = "earth-search",
    workers: Workers = 1,
    quiet: Quiet = False,
) -> None:
    """Make a city that never was: Sentinel-2 scenes as STAC and COG, OpenStreetMap, and the truth about both."""
    from sgdata.simulate import archive

    listen(quiet)
    print(archive.simulate(out, seed=seed, size_km=size, dates=dates, layout=layout, workers=workers))


@app.command(epilog=example("sgdata verify out/build"))
def verify(path: Annotated[Path, typer.Argument(help="Any output folder of ours.")]) -> None:
    """Recompute every hash of an output; list what differs."""
    from sgdata import verify as verification

    differences = verification.verify(path)
    for difference in differences:
        print(difference)
    if differences:
        raise SystemExit(2)
    print(f"{path}: every file is as it was written")


@app.command(epilog=example("make demo OUT=out/demo   (the same with the defaults)"))
def demo(
    out: Out = Path("out/demo"),
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """The whole story on a simulated city, offline: simulate, build, shard, pretrain, fine-tune, page."""
    from sgdata import demo as story

    listen(quiet)
    print(story.run(out, workers=workers))


if __name__ == "__main__":
    main()
