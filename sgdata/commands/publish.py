"""Commands that publish, compare and show outputs: `release`, `diff`, `export`, `show`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sgdata import log_lines
from sgdata.commands import printing
from sgdata.commands.options import Out, Quiet, Workers
from sgdata.errors import one_line
from sgdata.public_commands import Outcome, command

if TYPE_CHECKING:
    from sgdata.releases.difference import OutputDifference
    from sgdata.releases.export_segmunich import ExportResult

app = typer.Typer()

Layout = Literal["segmunich-released"]
Unmapped = Literal["zero", "leave-out"]


@command(app, epilog="Example: sgdata release munich 1.0 --source out/shards --build out/build --out out/release")
def release(
    name: Annotated[str, typer.Argument(help="Name of the release: lower case letters, digits, - and _.")],
    version: Annotated[str, typer.Argument(help="Version such as 1.0; a released version never changes.")],
    source: Annotated[list[Path], typer.Option("--source", help="Folder of shards; repeatable: one release of all.")],
    out: Out,
    build: Annotated[
        list[Path] | None,
        typer.Option(
            "--build",
            help="Build that the shards were packed from; required for such shards. Repeated, or the folder of several "
            "builds, for shards of several places.",
        ),
    ] = None,
    archive: Annotated[
        bool, typer.Option("--archive", help="Also write the release as one tar file, reproducible byte for byte.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Allow data whose licence forbids passing it on.")] = False,
    licence: Annotated[
        str, typer.Option("--licence", metavar="TEXT", help="Licence of images or pairs of your own.")
    ] = "",
    date: Annotated[
        str, typer.Option("--date", metavar="DAY", help="Day of publication for the metadata, as an ISO date.")
    ] = "",
    previous: Annotated[
        Path | None, typer.Option("--previous", help="The release before; card and changes.json state what changed.")
    ] = None,
    cite: Annotated[
        str, typer.Option("--cite", metavar="TEXT", help="Citation of data of your own (default: name and version).")
    ] = "",
    home: Annotated[str, typer.Option("--home", metavar="URL", help="Page of data of your own.")] = "",
    register: Annotated[
        Path | None, typer.Option("--register", help="Folder to add releases/NAME-VERSION.json to.")
    ] = None,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> Outcome[Path]:
    """Prepare shards for publication: with audit, card, licences, Croissant, STAC, previews and checksums.

    Exits with 3 if the audit has findings; the card then lists them.
    """
    from sgdata.audits import checks, collect_evidence
    from sgdata.audits.findings import AuditReport
    from sgdata.packing import place_sources
    from sgdata.releases import assemble, release_content
    from sgdata.shards import join_shards

    def audited(shards: Path) -> AuditReport:
        return checks.run_checks(
            collect_evidence.collect_evidence(collect_evidence.detect_subject(shards, lock_of=first), workers=workers)
        )

    log_lines.listen(quiet)
    builds = place_sources.find_builds(build) if build else {}
    first = next(iter(builds.values()), build[0] if build else None)
    order = release_content.ReleaseRequest(
        name=name, version=version, source=source[0], out=out, build=None if builds else first, builds=builds,
        private=private, licence=licence,
        published=date, register=register or assemble.register_of_checkout(), archive=archive,
        previous=previous, cite=cite, home=home,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as joined:
        if len(source) > 1:
            join_shards.join(source, Path(joined), copy=True)
            order = replace(order, source=Path(joined))
        folder, report = assemble.release(order, audited)
    listed = [f"{check.name}: {check.message}" for check in report.checks if check.state == "finding"]
    text = f"released with {report.findings} findings, listed in its card: {'; '.join(listed)}"
    show = partial(printing.show_folder, folder, [text] if listed else [])
    return Outcome(value=folder, show=show, document={"folder": folder}, findings=tuple(listed))


@command(app, epilog="Example: sgdata diff out/release/town-1.0 out/release/town-1.1")
def diff(
    before: Annotated[Path, typer.Argument(help="The earlier build, shards or release.")],
    after: Annotated[Path, typer.Argument(help="The later one, of the same kind.")],
) -> Outcome[OutputDifference]:
    """Show how an output differs from an earlier one: scenes, samples, pixels, labels, classes, splits and settings.

    Exits with 3 if they differ.
    """
    from sgdata.releases import difference

    result = difference.compare(before, after)
    lines = [one_line(line) for line in result.lines] or [f"{after}: holds the same data as {before}"]
    return Outcome(value=result, show=partial(print, "\n".join(lines)), findings=tuple(result.lines))


@command(app, epilog="Example: sgdata export segmunich-released --source out/build --out out/TUM_128")
def export(
    layout: Annotated[Layout, typer.Argument(help="Layout to write: segmunich-released, as TUM_128.zip has it.")],
    source: Annotated[Path, typer.Option("--source", help="Build with patches of 128 pixels and labels.")],
    out: Out,
    split: Annotated[
        bool, typer.Option("--split", help="Keep test patches apart in test/, instead of adding them to val/.")
    ] = False,
    unmapped: Annotated[
        Unmapped, typer.Option("--unmapped", help="Pixels without a class: zero, or leave-out of their patches.")
    ] = "zero",
) -> Outcome[ExportResult]:
    """Write a build in the layout, band order and label codes of a published dataset."""
    from sgdata.releases import export_segmunich

    made = export_segmunich.export(source, out, own_splits=split, unmapped=unmapped)
    parts = ", ".join(f"{count} {split}" for split, count in made.patches.items())
    share = made.zeroed / max(made.pixels, 1)
    text = f"{layout}: {parts}; {made.zeroed:,} unmapped pixels ({share:.2%}) are 0; {made.left_out} patches left out"
    return Outcome(value=made, show=partial(print, f"{text}\n{out}"), document={"folder": out, "export": made})


@command(app, epilog="Example: sgdata show out/build")
def show(
    path: Annotated[Path, typer.Argument(help="A build, shards, a release, a training run or a folder of runs.")],
    out: Annotated[Path | None, typer.Option("--out", help="Output folder (default: PATH-page).")] = None,
    layer: Annotated[
        list[Path] | None, typer.Option("--layer", help="Raster to add to the map of a build; repeatable.")
    ] = None,
) -> Outcome[Path]:
    """Write an HTML page of an output: map, spectra, samples, splits, losses. It opens from disk without a server."""
    from sgdata.pages import output_page

    # Next to the folder, not inside: an output does not change after its SHA256SUMS was written.
    own = path.resolve().with_name(f"{path.resolve().name}-page")
    return Outcome(value=output_page.write(path, out or own, layer or ()))
