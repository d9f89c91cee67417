"""Commands that check datasets and split them: `verify`, `status`, `compare`, `audit`, `split`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sgdata import log_lines
from sgdata.commands import printing
from sgdata.commands.options import (
    Coordinates,
    DatasetOfPath,
    Edition,
    Out,
    Quiet,
    SplitSet,
    SplitsFolder,
    Workers,
)
from sgdata.errors import SettingError, one_line
from sgdata.public_commands import Outcome, command

if TYPE_CHECKING:
    from sgdata.audits.findings import AuditReport
    from sgdata.splits.block_split import SplitReport
    from sgdata.status import OutputStatus

T = TypeVar("T")

app = typer.Typer()


@command(app, epilog="Example: sgdata verify out/build")
def verify(
    path: Annotated[Path, typer.Argument(help="An output folder of sgdata or sgmodel, with its SHA256SUMS.")],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="SHA256|PATH",
            help="Also compare SHA256SUMS with its SHA-256, a registered release (JSON), a list, or another copy.",
        ),
    ] = None,
) -> Outcome[list[str]]:
    """Compare every file of an output with its SHA256SUMS and list the differences. Exits with 3 if there are any.

    Files that other programs write beside those that they open, such as statistics of QGIS, are remarks.
    """
    from sgdata import verification

    result = verification.inspect(path)
    for remark in result.remarks:
        print(one_line(remark), file=sys.stderr)
    differences = list(result.differences)
    if against is not None:
        differences += verification.compare(path, against)

    def show() -> None:
        print("\n".join(map(one_line, differences)) or f"{path}: every file is as it was written")

    return Outcome(
        value=differences, show=show, document={"folder": path, "remarks": result.remarks}, findings=tuple(differences)
    )


@command(app, epilog="Example: sgdata status out/build")
def status(
    path: Annotated[Path, typer.Argument(help="An output folder, finished or not, or a folder of several.")],
) -> Outcome[list[OutputStatus]]:
    """Say whether an output is finished, and of a running command its stage, progress and time left.

    A running command notes them in the folder, where any machine that sees it can read them.
    """
    from sgdata import status as outputs

    statuses = outputs.statuses(path)
    show = partial(print, "\n".join(one_line(each.line) for each in statuses))
    return Outcome(value=statuses, show=show, document={"outputs": statuses})


@command(app, epilog="Example: sgdata compare out/build --released TUM_128.zip --out compare.json")
def compare(
    build: Annotated[Path, typer.Argument(help="Build of the area, with the ten released bands.")],
    released: Annotated[Path, typer.Option("--released", help="Released set (zip or folder), or one of its images.")],
    windows: Annotated[int, typer.Option("--windows", min=1, help="Number of windows, spread over the set.")] = 200,
    least: Annotated[
        float,
        typer.Option("--least", min=0, max=1, help="Correlation of details from which a window is placed."),
    ] = 0.16,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file with places, confusion and all figures.")] = None,
    quiet: Quiet = False,
) -> Outcome[dict[str, Any]]:
    """Place released windows of SegMunich on a build, and compare classes and bands. Exits with 3 if none is placed."""
    from sgdata import files
    from sgdata.audits import compare_released

    log_lines.listen(quiet)
    report = compare_released.compare(build, released, most=windows, least=least)
    if out:
        files.write(out, files.pretty_json(report))
    none = () if report["placed"] else (f"none of {report['windows']} windows is placed on {build}",)
    return Outcome(value=report, show=partial(printing.show_comparison, report), document=report, findings=none)


@command(app, epilog="Example: sgdata audit out/shards --out out/audit")
def audit(
    path: Annotated[Path, typer.Argument(help="Shards, a build, a release, or a dataset as distributed.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for audit.json and its page.")] = None,
    dataset: DatasetOfPath = None,
    edition: Edition = None,
    build: Annotated[
        Path | None, typer.Option("--build", help="Build that the shards were packed from; it has the dates.")
    ] = None,
    split: SplitSet = None,
    splits: SplitsFolder = None,
    coordinates: Coordinates = None,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> Outcome[AuditReport]:
    """Check a dataset for leaks between splits, duplicates, missing classes, and dead, swapped or offset bands.

    Exits with 3 if there are findings.
    """
    from sgdata.audits import checks, collect_evidence
    from sgdata.packing import select_samples
    from sgdata.pages import audit_page

    log_lines.listen(quiet)
    inputs = select_samples.SampleInputs(coordinates=coordinates, splits=splits)
    subject = collect_evidence.detect_subject(
        path, dataset=dataset, edition=edition, split=split, inputs=inputs, lock_of=build
    )
    report = checks.run_checks(collect_evidence.collect_evidence(subject, workers=workers))
    if out:
        audit_page.write(out, report)
    return audited_outcome(report, report, out)


@command(app, epilog="Example: sgdata split data/eurosat --out out/split --test-share 0.2")
def split(
    path: Annotated[Path, typer.Argument(help="Shards, a build, or a dataset as distributed.")],
    out: Out,
    dataset: DatasetOfPath = None,
    edition: Edition = None,
    coordinates: Coordinates = None,
    block: Annotated[
        int, typer.Option("--block", min=0, metavar="METRES", help="Side of a block; 0: four times that of a sample.")
    ] = 0,
    gap: Annotated[
        int, typer.Option("--gap", min=0, metavar="METRES", help="Distance between splits; 0: the side of a sample.")
    ] = 0,
    val_share: Annotated[float, typer.Option("--val-share", min=0, max=1, help="Validation share of samples.")] = 0.2,
    test_share: Annotated[float, typer.Option("--test-share", min=0, max=1, help="Test share of samples.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of the block assignment.")] = 0,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> Outcome[SplitReport]:
    """Propose a spatial split by blocks: write lists for `sgdata shard --split-list`, and audit them.

    Exits with 3 if the audit has findings.
    """
    from sgdata.audits import collect_evidence, propose_split
    from sgdata.packing import select_samples
    from sgdata.splits.block_split import SplitSettings

    log_lines.listen(quiet)
    if val_share + test_share >= 1:
        raise SettingError(f"--val-share {val_share}, --test-share {test_share}: expected a sum below 1; lower them")
    inputs = select_samples.SampleInputs(coordinates=coordinates)
    subject = collect_evidence.detect_subject(path, dataset=dataset, edition=edition, inputs=inputs)
    evidence = collect_evidence.collect_evidence(subject, workers=workers)
    settings = SplitSettings(block_px=block, gap_px=gap, val_share=val_share, test_share=test_share, seed=seed)
    proposed, report = propose_split.propose(evidence, settings)
    audited = propose_split.write(out, proposed, report)
    counts = ", ".join(f"{part} {number}" for part, number in report.boxes.items())
    print(f"{counts}, left out {report.left_out}", file=sys.stderr)
    return audited_outcome(report, audited, out)


@command(app, "draw-splits", epilog="Example: sgdata draw-splits out/shards/fmow --out fmow.tsv.gz")
def draw_splits(
    path: Annotated[Path, typer.Argument(help="Shards, or a dataset as distributed.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Split table to write, NAME.tsv.gz.")],
    dataset: DatasetOfPath = None,
    edition: Edition = None,
    coordinates: Coordinates = None,
    splits: Annotated[
        Path | None, typer.Option("--splits", metavar="DIR", help="Published lists: their SHA-256 and counts are kept.")
    ] = None,
    block: Annotated[
        float, typer.Option("--block", min=1, metavar="METRES", help="Side of a block; blocks are dealt whole.")
    ] = 50_000,
    gap: Annotated[float, typer.Option("--gap", min=0, metavar="METRES", help="Distance between splits.")] = 2_000,
    val_share: Annotated[float, typer.Option("--val-share", min=0, max=1, help="Validation share of samples.")] = 0.2,
    test_share: Annotated[float, typer.Option("--test-share", min=0, max=1, help="Test share of samples.")] = 0.2,
    draws: Annotated[int, typer.Option("--draws", min=1, max=100, help="Number of splits to draw.")] = 5,
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", help="Label budget, a number per class or a share such as 10%; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31, help="Seed of the first draw.")] = 0,
    quiet: Quiet = False,
) -> Outcome[Path]:
    """Draw splits by ground for a dataset with coordinates, with nested label budgets, and write them as one table."""
    from sgdata.audits import collect_evidence, draw_splits
    from sgdata.packing import select_samples
    from sgdata.splits import split_table
    from sgdata.splits.ground_splits import DrawSettings

    log_lines.listen(quiet)
    inputs = select_samples.SampleInputs(coordinates=coordinates)
    subject = collect_evidence.detect_subject(path, dataset=dataset, edition=edition, split="", inputs=inputs)
    settings = DrawSettings(
        block_m=block, gap_m=gap, val_share=val_share, test_share=test_share, draws=draws, seed=seed,
        budgets=tuple(budget or DrawSettings.budgets),
    )  # fmt: skip
    table, lines = draw_splits.draw(subject, settings, draw_splits.published_lists(subject, splits))
    split_table.write(out, table)
    for line in lines:
        print(line, file=sys.stderr)
    text = f"{out}: {len(table.keys):,} samples, {out.stat().st_size:,} bytes"
    about = {"table": out, "samples": len(table.keys), "bytes": out.stat().st_size, "draws": lines}
    return Outcome(value=out, show=partial(print, text), document=about)


def audited_outcome(value: T, audited: AuditReport, folder: Path | None) -> Outcome[T]:
    """Return a result with the report of its audit, whose findings are those of the command."""
    findings = tuple(f"{check.name}: {check.message}" for check in audited.checks if check.state == "finding")
    show = partial(printing.show_audit, audited, folder=folder)
    return Outcome(value=value, show=show, document=audited, findings=findings)
