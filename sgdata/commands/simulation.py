"""Commands that need no data: `simulate`, `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgdata import log_lines
from sgdata.commands import printing
from sgdata.commands.options import Out, Quiet, Workers
from sgdata.public_commands import Outcome, command

app = typer.Typer()


@command(app, epilog="Example: sgdata simulate out/archive --size 6 --dates 12 --seed 1")
def simulate(
    out: Annotated[Path, typer.Argument(help="Output folder.")],
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed; equal seeds and sizes give equal files.")
    ] = 1,
    size: Annotated[float, typer.Option("--size", help="Side of the area in km, 2 to 40.")] = 6.0,
    dates: Annotated[int, typer.Option("--dates", help="Number of acquisitions in the first epoch.")] = 12,
    layout: Annotated[
        str, typer.Option("--layout", help="Provider to imitate: earth-search, planetary-computer, cdse or eopf.")
    ] = "earth-search",
    ground: Annotated[
        str, typer.Option("--ground", help="plain: classes differ by pixel; context: by the arrangement of materials.")
    ] = "plain",
    broken: Annotated[bool, typer.Option("--broken", help="Truncate one file, to test that builds fail.")] = False,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> Outcome[Path]:
    """Simulate a city: Sentinel-2 scenes as STAC items and COGs, OpenStreetMap data, and ground truth for both."""
    from sgdata.simulation import archive

    log_lines.listen(quiet)
    made = archive.simulate(
        out, seed=seed, size_km=size, dates=dates, layout=layout, ground=ground, broken=broken, workers=workers
    )
    return Outcome(value=made)


@command(app, epilog="Example: make demo OUT=out/demo   (the same with the defaults)")
def demo(
    out: Out = Path("out/demo"),
    size: Annotated[float, typer.Option("--size", help="Side of the city in km.")] = 8.0,
    dates: Annotated[int, typer.Option("--dates", help="Number of acquisitions.")] = 12,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of the simulated city.")] = 1,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> Outcome[Path]:
    """Run every stage on a simulated city, offline: simulate, build, audit, shard, release, train, show."""
    from sgdata import files, output_names
    from sgdata.demo import run_demo

    log_lines.listen(quiet)
    page = run_demo.run(out, story=run_demo.DemoSettings(size_km=size, dates=dates, seed=seed), workers=workers)
    summary = files.read_plain(out / output_names.SUMMARY)

    def show() -> None:
        # The same table as on the page, for machines without a browser.
        printing.show_table(("what", "measured", "remark"), run_demo.lines(summary))
        print(page)

    return Outcome(value=page, show=show, document={"page": page, "summary": summary})
