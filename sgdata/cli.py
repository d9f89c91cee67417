"""The `sgdata` command: parse, call one function, print one path.

Exit codes are those of `sgdata.errors.ExitCode`. Heavy imports are inside the commands.
"""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from sgdata import console
from sgdata.errors import ExitCode, SettingError, SgdataError

# A bug keeps Python's own traceback: typer's prints local variables, among them what a URL was signed with.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,  # installing it would edit the user's shell files
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build, shard, verify and release Sentinel-2 datasets.",
)

Out = Annotated[Path, typer.Option("--out", help="Folder to write into.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes on this machine; the bytes stay the same.")]
# An option that several commands share is written once, so that it means the same in each of them.
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe; repeatable.")]
Dataset = Annotated[str, typer.Argument(help="fmow, bigearthnet, eurosat, segmunich, oscd or pairs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what it would cost, and stop.")]


def main() -> None:
    """Entry point of the `sgdata` script."""
    # The name of a file may hold what a terminal or its encoding cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except SgdataError as error:
        # `from None`: the cause is in the sentence; a second traceback would bury it.
        print(f"sgdata: {error}", file=sys.stderr)
        raise SystemExit(ExitCode.REFUSED) from None


def listen(quiet: bool) -> None:
    """Send progress and log lines to stderr, or nothing below a warning."""
    # stdout carries the result alone: OUT=$(sgdata build ...) must work. Other libraries speak up from a warning on.
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("sgdata").setLevel(logging.WARNING if quiet else logging.INFO)


@app.command(epilog="Example: sgdata simulate out/archive --size 6 --dates 12 --seed 1")
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder of the archive.")],
    seed: Annotated[int, typer.Option(help="Same seed, same city, same bytes.")] = 1,
    size: Annotated[float, typer.Option(help="Side of the area in km, 2 to 40.")] = 6.0,
    dates: Annotated[int, typer.Option(help="Acquisitions in the first epoch.")] = 12,
    layout: Annotated[str, typer.Option(help="earth-search, planetary-computer or cdse.")] = "earth-search",
    broken: Annotated[bool, typer.Option("--broken", help="Cut one file short: a build must stop at it.")] = False,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> None:
    """Make a city that never was: Sentinel-2 scenes as STAC and COG, OpenStreetMap, and the truth about both."""
    from sgdata.simulation import archive

    listen(quiet)
    done = archive.simulate(out, seed=seed, size_km=size, dates=dates, layout=layout, broken=broken, workers=workers)
    print(done)


Degrees = tuple[float, float, float, float]
Bbox = Annotated[Degrees | None, typer.Option("--bbox", metavar="W S E N", help="Area in degrees.")]
Aoi = Annotated[Path | None, typer.Option("--aoi", help="Area as a GeoJSON file in WGS84.")]
Place = Annotated[str | None, typer.Option("--place", help="Area by name.")]
Stac = Annotated[str | None, typer.Option("--stac", help="STAC API, or a static catalogue on disk.")]
# One option for four sources: a path, an address and two words cannot be taken for each other.
Osm = Annotated[str, typer.Option("--osm", help="overpass, a URL, a file (.osm .pbf .json), or none.")]
Offline = Annotated[bool, typer.Option("--offline", help="OpenStreetMap only from stored answers.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A build recipe instead of the shipped one.")]
Dates = Annotated[str | None, typer.Option("--dates", metavar="A/B", help="First and last day.")]
OsmDate = Annotated[str | None, typer.Option("--osm-date", help="OpenStreetMap as of this day (last of --dates).")]
Believe = Annotated[str | None, typer.Option("--believe", help="pixels or metadata, where offsets contradict.")]
Cluster = Annotated[str | None, typer.Option("--cluster", metavar="ADDRESS", help="A Dask scheduler.")]
Profile = Annotated[str | None, typer.Option("--profile", help="clean (the default) or paper: the recipe NAME-paper.")]
MaxObs = Annotated[int | None, typer.Option("--max-obs", min=1, help="Look at this many scenes at most.")]
Composite = Annotated[str | None, typer.Option("--composite", help="medoid, bap, maxndvi, median or geomedian.")]


@app.command(epilog="Example: sgdata plan segmunich --bbox 11.5 48.1 11.6 48.2 --dates 2019-04-01/2019-09-30")
def plan(
    name: Annotated[str, typer.Argument(help="A shipped build recipe.")] = "segmunich",
    bbox: Bbox = None,
    aoi: Aoi = None,
    place: Place = None,
    stac: Stac = None,
    dates: Dates = None,
    profile: Profile = None,
    recipe: RecipeFile = None,
    changes: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the lock.")] = None,
    allow_holes: Annotated[bool, typer.Option("--allow-holes", help="Months without enough passes are fine.")] = False,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Search the catalogue once: scenes per month and bytes, and the lock that a build follows. Fetches no pixel."""
    from sgdata.builds import build_recipe, pipeline

    wanted: dict[str, object] = {"bbox": bbox, "aoi": aoi, "place": place, "dates": dates, "profile": profile}
    chosen = build_recipe.recipe_for(recipe or name, wanted, changes or ())
    places = build_recipe.BuildPaths(out=out or Path(chosen.out), stac=stac, workers=workers)
    # Shown before it is refused: who sees the months knows which dates to choose.
    holes = console.show_plan(pipeline.plan(chosen, places), places, where=stac or chosen.source.stac, as_json=as_json)
    if holes and not allow_holes:
        raise SettingError(f"{holes}; choose other dates or another catalogue, or give --allow-holes")


@app.command(epilog="Example: sgdata build segmunich --aoi area.geojson --stac archive/catalog.json --osm city.osm")
def build(
    name: Annotated[str, typer.Argument(help="A shipped build recipe.")] = "segmunich",
    bbox: Bbox = None,
    aoi: Aoi = None,
    place: Place = None,
    stac: Stac = None,
    osm: Osm = "overpass",
    offline: Offline = False,
    dates: Dates = None,
    osm_date: OsmDate = None,
    believe: Believe = None,
    composite: Composite = None,
    max_obs: MaxObs = None,
    profile: Profile = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="Folder of <item id>.tif, not 0 where cloudy.")] = None,
    recipe: RecipeFile = None,
    changes: Overrides = None,
    lock: Annotated[Path | None, typer.Option("--lock", help="Follow this lock instead of searching.")] = None,
    exact: Annotated[bool, typer.Option("--locked", help="Refuse any deviation from the lock of a build.")] = False,
    cluster: Cluster = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write into.")] = None,
    gap: Annotated[Path | None, typer.Option("--gap", help="Raster of CORINE codes for unmapped ground.")] = None,
    scratch: Annotated[Path | None, typer.Option("--scratch", help="Keep staged pixels here.")] = None,
    workers: Workers = 1,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Scenes and labels of an area: plan, fetch, composite, label, cut into patches. A killed run goes on.

    Exits 3 where pixels were never seen clear.
    """
    from sgdata.builds import build_folder, build_recipe, pipeline
    from sgdata.scenes import lock as locks

    listen(quiet)
    # By the names of the settings, None where not given: what the user leaves out stays as the recipe has it.
    wanted: dict[str, object] = {"bbox": bbox, "aoi": aoi, "place": place, "dates": dates, "composite": composite}
    wanted |= {"osm_date": osm_date, "believe": believe, "max_obs": max_obs, "profile": profile}
    wanted["mask"] = "external" if masks else None
    chosen = build_recipe.recipe_for(recipe or name, wanted, changes or ())
    places = build_recipe.BuildPaths(
        out=out or Path(chosen.out), stac=stac, osm=osm, offline=offline, masks=masks, gap=gap,
        workers=workers, cluster=cluster, scratch=scratch,
    )  # fmt: skip
    # Read before anything is fetched: a wrong path must not cost an hour.
    locked = locks.read(lock) if lock else None
    if dry_run:
        planned = locked or pipeline.plan(chosen, places)
        console.show_plan(planned, places, where=stac or chosen.source.stac, as_json=False)
        return
    done = pipeline.build(chosen, places, locked=locked, exact=exact)
    print(done)
    if holes := build_folder.holes(done):
        print(f"{done}: {holes}", file=sys.stderr)
        raise SystemExit(ExitCode.FINDINGS)


@app.command(epilog="Example: sgdata clouds out/build --out out/masks")
def clouds(
    lock: Annotated[Path, typer.Argument(help="The lock of a plan, or its folder.")],
    out: Out,
    stac: Stac = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of OmniCloudMask's files, in place of its hub.")] = None,
    quiet: Quiet = False,
) -> None:
    """Cloud masks by OmniCloudMask (extra 'clouds') for the scenes of a lock, as 'build --lock --masks' takes them."""
    from sgdata.builds import build_recipe
    from sgdata.composite import omnicloudmask as masking
    from sgdata.scenes import lock as locks

    listen(quiet)
    where = stac or build_recipe.recipe_for("segmunich").source.stac
    print(masking.write(locks.read(lock), out, where, masking.engine(weights)))


@app.command(epilog="Example: sgdata drift out/build/segmunich.lock.json")
def drift(
    lock: Annotated[Path, typer.Argument(help="The lock of a plan, or a build folder.")], stac: Stac = None
) -> None:
    """What the catalogue says today against a lock: changed, vanished and new items; exits 3 if there are any."""
    from sgdata.builds import build_recipe
    from sgdata.scenes import coverage
    from sgdata.scenes import lock as locks

    # A lock does not say where it was searched: the same scenes may lie at several providers.
    where = stac or build_recipe.recipe_for("segmunich").source.stac
    lines = coverage.drift(locks.read(lock), where)
    for line in lines:
        print(line)
    if lines:
        raise SystemExit(ExitCode.FINDINGS)
    print(f"{lock}: {where} says the same today")


@app.command(epilog="Example: sgdata catalog eurosat")
def catalog(
    name: Annotated[str | None, typer.Argument(help="A dataset, or 'weights'; without it, all datasets.")] = None,
) -> None:
    """What is known of each dataset: bands, splits, labels, licence, files, defects; and of published weights."""
    from sgdata import catalog as facts
    from sgdata.datasets import cards

    if name == "weights":
        rows = facts.table("published_weights")
        lines = [(r["name"], "\n".join(f"{k}: {text}" for k, text in r.items() if text and k != "name")) for r in rows]
    else:
        lines = cards.describe(cards.card(name)) if name else [(c.name, c.title) for c in cards.cards()]
    console.show_table((), lines)


@app.command(epilog="Example: sgdata fetch bigearthnet --release v2 --part splits --out data/bigearthnet")
def fetch(
    dataset: Dataset,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write into.")] = None,
    release: Annotated[str | None, typer.Option(help="Edition, such as v1 or v2 of bigearthnet.")] = None,
    part: Annotated[list[str] | None, typer.Option("--part", help="Part of the card's files; repeatable.")] = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Download the official files: resumed where they stopped, verified against the card."""
    from sgdata.datasets import download as fetching
    from sgdata.packing import select

    listen(quiet)
    recipe = select.recipe_for(dataset)
    folder = out or Path(recipe.source)
    need = fetching.plan(dataset, release or recipe.edition, folder, part or ())
    for source in need.sources:
        print(f"{source.file}: {f'{source.bytes:,} bytes' if source.bytes else 'size not known'}, {source.url}")
    unknown = f"{need.unsized} files of unknown size"
    print(f"{need.bytes:,} bytes and {unknown} to fetch, {need.free:,} bytes free in {folder}")
    if not dry_run:
        fetching.fetch(need, folder)
        print(folder)


@app.command(epilog="Example: sgdata shard eurosat --source EuroSAT_MS.zip --out out/eurosat")
def shard(
    dataset: Dataset,
    source: Annotated[Path | None, typer.Option("--source", help="As distributed, or a build of ours.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write into.")] = None,
    changes: Overrides = None,
    split_list: Annotated[list[str] | None, typer.Option(metavar="SPLIT=FILE", help="Repeatable.")] = None,
    leave_out: Annotated[list[Path] | None, typer.Option(help="A list not to pack, such as snow; repeatable.")] = None,
    splits: Annotated[str | None, typer.Option(help="Published splits by name, such as official or google.")] = None,
    release: Annotated[str | None, typer.Option(help="Edition, such as v1 or v2 of bigearthnet.")] = None,
    labels: Annotated[str | None, typer.Option(help="Label space by name; 'sgdata catalog NAME' lists them.")] = None,
    layout: Annotated[str | None, typer.Option(help="resampled or native.")] = None,
    codec: Annotated[str | None, typer.Option(help="blosc or npy.")] = None,
    workers: Workers = 1,
    cluster: Cluster = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Pack a dataset into WebDataset shards: every band on one 10 m grid, an index, a contract with statistics."""
    from sgdata import files
    from sgdata.packing import pack, select

    listen(quiet)
    options = {"edition": release, "splits": splits, "labels": labels, "layout": layout, "codec": codec}
    # After --set, so that the named option wins; quoted, or an edition such as 2 would be read as a number.
    extra = [f'{key}="{value}"' for key, value in options.items() if value]
    recipe = select.recipe_for(dataset, [*(changes or ()), *extra])
    for text in split_list or ():
        if not all(text.partition("=")):
            raise SettingError(f"--split-list {text!r}: expected SPLIT=FILE such as train=train.txt")
    lists = {split: Path(path) for split, _, path in (text.partition("=") for text in split_list or ())}
    if dry_run:
        cost = pack.cost(dataset, source=source, recipe=recipe, splits=lists, leave_out=leave_out or ())
        print(files.pretty_json(cost).decode() if as_json else "\n".join((*cost.notes, cost.told)))
        return
    done = pack.pack(
        dataset, source=source, out=out, recipe=recipe, splits=lists, leave_out=leave_out or (),
        workers=workers, cluster=cluster, fresh=fresh,
    )  # fmt: skip
    # To stderr, with the progress: the one line on stdout is the folder.
    for note in done.notes:
        print(note, file=sys.stderr)
    print(files.pretty_json(done).decode() if as_json else done.folder)
    if not done.fits:
        print("the pixels contradict the card; see the spectral fingerprints above", file=sys.stderr)
    if not done.complete:
        print(f"{done.quarantined} files or samples in {done.folder / 'quarantine.jsonl'}", file=sys.stderr)
        # The path stands above all the same: what is whole can be used.
        raise SystemExit(ExitCode.FINDINGS)


@app.command(epilog="Example: sgdata verify out/build")
def verify(path: Annotated[Path, typer.Argument(help="Any output folder of ours.")]) -> None:
    """Recompute every hash of an output; list what differs."""
    # Commands bear the names of the modules that they call, hence the aliases.
    from sgdata import verification

    differences = verification.verify(path)
    for difference in differences:
        print(difference)
    if differences:
        raise SystemExit(ExitCode.FINDINGS)
    print(f"{path}: every file is as it was written")


@app.command(epilog="Example: sgdata audit out/shards --out out/audit")
def audit(
    path: Annotated[Path, typer.Argument(help="Shards, a build, a release, or a dataset as distributed.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for audit.json and its page.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Which of the five lies there; found out without it.")] = None,
    release: Annotated[str | None, typer.Option(help="Edition, such as v1 or v2 of bigearthnet.")] = None,
    build: Annotated[Path | None, typer.Option(help="The build that shards were cut from, for its days.")] = None,
    workers: Workers = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Leaks between splits, copies, missing classes, dead or swapped bands, wrong level or offset; exits 3 with any."""
    from sgdata.audits import checks, gather
    from sgdata.pages import audit_page

    listen(quiet)
    what = gather.subject(path, dataset=dataset, edition=release, lock_of=build)
    report = checks.judge(gather.gather(what, workers=workers))
    if out:
        audit_page.write(out, report)
    if console.show_audit(report, where=out, as_json=as_json):
        raise SystemExit(ExitCode.FINDINGS)


@app.command(epilog="Example: sgdata split data/eurosat --out out/split --test-share 0.2")
def split(
    path: Annotated[Path, typer.Argument(help="Shards, a build, or a dataset as distributed.")],
    out: Out,
    dataset: Annotated[str | None, typer.Option(help="Which of the five lies there; found out without it.")] = None,
    release: Annotated[str | None, typer.Option(help="Edition, such as v1 or v2 of bigearthnet.")] = None,
    block: Annotated[int, typer.Option("--block", metavar="METRES", help="Side of a block; 0: four samples.")] = 0,
    gap: Annotated[int, typer.Option("--gap", metavar="METRES", help="Between splits; 0: one sample.")] = 0,
    val_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the samples to validate with.")] = 0.2,
    test_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the samples to test with.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed, another split.")] = 0,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> None:
    """Propose a split by blocks of ground: lists that `sgdata shard --split-list` takes, with their audit."""
    from sgdata.audits import gather, propose_split
    from sgdata.splits.blocks import SplitSettings

    listen(quiet)
    evidence = gather.gather(gather.subject(path, dataset=dataset, edition=release), workers=workers)
    settings = SplitSettings(block_px=block, gap_px=gap, val_share=val_share, test_share=test_share, seed=seed)
    proposed, report = propose_split.propose(evidence, settings)
    judged = propose_split.write(out, proposed, report)
    told = ", ".join(f"{part} {number}" for part, number in report.boxes.items())
    print(f"{told}, left out {report.left_out}", file=sys.stderr)
    if console.show_audit(judged, where=out, as_json=False):
        raise SystemExit(ExitCode.FINDINGS)


@app.command(epilog="Example: sgdata release munich 1.0 --from out/shards --build out/build --out out/release")
def release(
    name: Annotated[str, typer.Argument(help="Small letters, digits, - and _.")],
    version: Annotated[str, typer.Argument(help="Such as 1.0; a released one is never changed.")],
    source: Annotated[Path, typer.Option("--from", help="Folder of shards.")],
    out: Out,
    build: Annotated[Path | None, typer.Option("--build", help="The build that the shards were cut from.")] = None,
    archive: Annotated[bool, typer.Option("--archive", help="Also one tar of it, the same bytes every time.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Also what may not be passed on.")] = False,
    date: Annotated[str, typer.Option("--date", metavar="DAY", help="Day of publication, for the papers.")] = "",
    register: Annotated[Path | None, typer.Option("--catalog", help="Folder for releases/NAME-VERSION.json.")] = None,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> None:
    """Shards with audit, card, licences, Croissant, STAC, previews and checksums, ready to publish; never edited."""
    from sgdata.audits import checks, gather
    from sgdata.releases import assemble, shipment

    listen(quiet)
    order = shipment.Order(
        name=name, version=version, source=source, out=out, build=build, private=private, published=date,
        register=register or assemble.register_of_checkout(), archive=archive,
    )  # fmt: skip
    folder, report = assemble.release(
        order, lambda shards: checks.judge(gather.gather(gather.subject(shards, lock_of=build), workers=workers))
    )
    print(folder)
    if report.findings:
        told = "; ".join(f"{check.name}: {check.told}" for check in report.checks if check.state == "finding")
        print(f"released with {report.findings} findings, told in its card: {told}", file=sys.stderr)
        raise SystemExit(ExitCode.FINDINGS)


@app.command(epilog="Example: sgdata show out/build")
def show(
    path: Annotated[Path, typer.Argument(help="A build, shards, a release, a training run or a folder of runs.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the page (PATH-page).")] = None,
    layer: Annotated[list[Path] | None, typer.Option(help="A map to lay over a build; repeatable.")] = None,
) -> None:
    """A page to look at an output: map, spectra, samples, splits, losses; opens from disk, without a server."""
    from sgdata.pages import folder

    # Beside the folder, not in it: an output is never changed after its sums were written.
    print(folder.write(path, out or path.resolve().with_name(f"{path.resolve().name}-page"), layer or ()))


@app.command(epilog="Example: make demo OUT=out/demo   (the same with the defaults)")
def demo(
    out: Out = Path("out/demo"),
    size: Annotated[float, typer.Option(help="Side of the city in km.")] = 8.0,
    dates: Annotated[int, typer.Option(help="Acquisitions.")] = 12,
    seed: Annotated[int, typer.Option(help="Another seed, another city.")] = 1,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """The whole story on a simulated city, offline: simulate, build, audit, shard, release, train, page."""
    from sgdata import files
    from sgdata.demo import story as tale

    listen(quiet)
    page = tale.run(out, story=tale.Story(size_km=size, dates=dates, seed=seed), workers=workers)
    # The table repeats the page, for who works where there is no browser.
    console.show_table(("what", "measured", "remark"), tale.lines(files.read_plain(out / "summary.json")))
    print(page)


if __name__ == "__main__":
    main()
