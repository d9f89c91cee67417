"""Plan and build several places, each in a folder of its own, at the same time.

A place is one task: a process of this machine or a worker of a cluster builds it from beginning to end. What fails in
one place does not stop the others.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from sgdata import files, output_names, pool, progress, reuse, urls
from sgdata.builds import build_cost, build_folder, plan_summary
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.builds.patch_table import read as read_patches
from sgdata.builds.place_list import SUMMARY, PlaceEntry
from sgdata.errors import ExitCode, ServiceError, SgdataError, describe_library_error
from sgdata.remote import file_identity
from sgdata.scenes import lock
from sgdata.scenes.lock import Lock

_FILES = frozenset({"gap_fill", "raster", "sea"})


@dataclass(frozen=True, kw_only=True)
class PlaceJob:
    """One place to build, with its recipe and paths.

    Attributes:
        recipe: Recipe with the place.
        paths: Inputs, and the folder of the place.
        locked: Lock to follow; None to plan.
        exact: Whether to refuse deviations from `locked`.
    """

    recipe: BuildRecipe
    paths: BuildPaths
    locked: Lock | None = None
    exact: bool = False

    @property
    def name(self) -> str:
        """Name of the place."""
        return self.recipe.place or ""


@dataclass(frozen=True, kw_only=True)
class PlaceOutcome:
    """Outcome of one place.

    Attributes:
        place: Name.
        folder: Name of its folder.
        code: Exit code that a build of this place alone would have.
        message: Why it has no build, or what the build lacks; "" if it is complete.
        warnings: Warnings of the build.
        patches: Patches per split.
        sha256: SHA-256 of the SHA256SUMS of its folder.
    """

    place: str
    folder: str
    code: int
    message: str = ""
    warnings: tuple[str, ...] = ()
    patches: dict[str, int] = field(default_factory=dict)
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class PlacePlan:
    """The plan of one place.

    Attributes:
        place: Name of the place.
        folder: Its folder of output.
        code: Exit code of the plan.
        message: Why it has no plan, or "".
        build_lock: Lock of the plan; None for none.
        cost: Estimated cost; None for none.
        area: Summary of the area; None for none.
        holes: Months with too few scenes, as text.
    """

    place: str
    folder: Path
    code: int
    message: str = ""
    build_lock: Lock | None = None
    cost: build_cost.BuildCost | None = None
    area: plan_summary.AreaSummary | None = None
    holes: str = ""


def create_jobs(
    entries: Sequence[PlaceEntry],
    recipes: Sequence[BuildRecipe],
    paths: BuildPaths,
    *,
    locks: Path | None = None,
    exact: bool = False,
) -> list[PlaceJob]:
    """Return what to build of each place.

    Args:
        entries: Places.
        recipes: Recipe of each, before the place is entered.
        paths: Inputs and settings that they share, and the folder of all of them.
        locks: Folder of locks, as `sgdata plan` writes it for these places; None to plan.
        exact: Whether to refuse deviations from the locks.

    Raises:
        SettingError: An area, or an input of a place, is wrong.
        SourceError: A lock is missing.
    """
    place_jobs = []
    for entry, recipe in zip(entries, recipes, strict=True):
        area = replace(recipe.area, crs=entry.crs or recipe.area.crs)
        place_inputs = {name: Path(text) if name in _FILES else text for name, text in entry.paths.items()}
        inputs: dict[str, Any] = {setting.name: getattr(paths, setting.name) for setting in fields(paths)}
        inputs |= place_inputs | {"out": paths.out / entry.folder}
        if paths.scratch:
            inputs["scratch"] = paths.scratch / entry.folder
        locked = lock.read(locks / entry.folder) if locks else None
        place_recipe = replace(recipe, area=area, place=entry.name)
        place_jobs.append(PlaceJob(recipe=place_recipe, paths=BuildPaths(**inputs), locked=locked, exact=exact))
    return place_jobs


# --- plan ----------------------------------------------------------------------------------


def plan(jobs: Sequence[PlaceJob], *, workers: int) -> list[PlacePlan]:
    """Plan each place: search its scenes and write its lock."""
    runs = pool.run(_plan_place, jobs, workers=min(workers, len(jobs)))
    return list(progress.track(runs, label="places", total=len(jobs)))


def _plan_place(job: PlaceJob) -> PlacePlan:
    from sgdata.builds import pipeline  # here and below, or chains of imports would be too long

    name, folder = job.name, job.paths.out
    with progress.about(name):
        try:
            build_lock = job.locked or pipeline.plan(job.recipe, job.paths)
            address = job.paths.stac or job.recipe.source.stac
            cost = build_cost.estimate_cost(build_lock, address, workers=1)
            holes = plan_summary.describe_sparse_months(plan_summary.count_months(build_lock))
            area = plan_summary.summarise_area(build_lock)
        except Exception as error:  # of one place, and no reason to leave the others unplanned
            code, message = _describe_failure(error)
            return PlacePlan(place=name, folder=folder, code=code, message=message)
    return PlacePlan(
        place=name, folder=folder, code=ExitCode.DONE, build_lock=build_lock, cost=cost, area=area, holes=holes
    )


# --- build ---------------------------------------------------------------------------------


def build(jobs: Sequence[PlaceJob], out: Path, *, workers: int = 1, cluster: str | None = None) -> list[PlaceOutcome]:
    """Build every place in a folder of its own, and write the summary `places.json` beside these folders.

    Finished places are left as they are, and interrupted ones continue. With fewer places than workers each place gets
    several of them.

    Args:
        jobs: The places.
        out: Folder of all of them.
        workers: Number of processes.
        cluster: Address of a Dask scheduler, whose workers build a place each.

    Returns:
        What became of each place, in order.

    Raises:
        ServiceError: The cluster cannot be used.
        OutputError: The summary cannot be written.
    """
    workers_each = 1 if cluster else max(1, workers // len(jobs))
    worker_jobs = [replace(job, paths=replace(job.paths, workers=workers_each, cluster=None)) for job in jobs]
    if cluster:
        worker_jobs = [_absolute(pool.absolute(job)) for job in worker_jobs]
    run = partial(pool.run, _build_place, workers=min(workers, len(jobs)), cluster=cluster, folder=out)
    outcomes: list[PlaceOutcome] = []
    for outcome in progress.track(_build_each(run, worker_jobs), label="places", total=len(jobs)):
        outcomes.append(outcome)
        for warning in outcome.warnings if cluster else ():
            progress.log.warning("%s: %s", outcome.place, warning)
        progress.log.info("%s: %s", outcome.place, "built" if outcome.sha256 else "not built")
    # Without warnings: a finished place that is kept repeats none, and equal results have equal summaries.
    rows = [{name: value for name, value in vars(outcome).items() if name != "warnings"} for outcome in outcomes]
    rows += _rows_of_other_places(out, {outcome.folder for outcome in outcomes})
    files.write(out / SUMMARY, files.pretty_json({"places": rows}))
    return outcomes


def _rows_of_other_places(out: Path, folders: Set[str]) -> list[dict[str, Any]]:
    """Return the rows of the present summary for finished places that this command did not build, by folder."""
    try:
        summary_rows = files.read_plain(out / SUMMARY).get("places", ()) if (out / SUMMARY).is_file() else ()
    except SgdataError:  # damaged; it is written anew
        return []
    rows = {str(row.get("folder")): row for row in summary_rows if isinstance(row, dict)}
    finished = {path.parent.name for path in out.glob(f"*/{output_names.SUMS}")}
    return [row for name, row in sorted(rows.items()) if name in finished - folders]


def exit_code(outcomes: Sequence[PlaceOutcome] | Sequence[PlacePlan]) -> ExitCode:
    """Return the exit code of a command over places: that of all of them, or that the result is incomplete."""
    codes = {outcome.code for outcome in outcomes}
    if ExitCode.BUG in codes:
        return ExitCode.BUG
    return ExitCode(codes.pop()) if len(codes) == 1 else ExitCode.FINDINGS


def _build_each(run: Any, jobs: Sequence[PlaceJob]) -> Iterator[PlaceOutcome]:
    """Yield the outcome of each place in order; a place that kills its workers fails alone."""
    finished_count = 0
    try:
        for outcome in run(jobs):
            finished_count += 1
            yield outcome
    except pool.WorkerLostError as error:
        progress.log.warning("%s; the other places are built one by one", error)
    except ServiceError as error:
        if not finished_count:
            raise
        yield from (_failed_outcome(job, ExitCode.REFUSED, str(error)) for job in jobs[finished_count:])
        return
    for job in jobs[finished_count:]:
        try:
            yield from run([job])
        except (ServiceError, pool.WorkerLostError) as error:
            yield _failed_outcome(job, ExitCode.REFUSED, str(error))


def _build_place(job: PlaceJob) -> PlaceOutcome:
    from sgdata.builds import pipeline

    with progress.about(job.name) as warnings:
        try:
            folder, made_from = job.paths.out, _identity(job)
            if reuse.is_unchanged(folder / output_names.SUMS, made_from):
                progress.log.info("finished already")
            else:
                pipeline.build(job.recipe, job.paths, locked=job.locked, exact=job.exact)
                reuse.write_note(folder / output_names.SUMS, made_from)
            findings = build_folder.describe_findings(folder)
            counts = read_patches(folder / output_names.PATCHES)["split"].value_counts()
        except Exception as error:  # of one place, and no reason to leave the others unbuilt
            return replace(_failed_outcome(job, *_describe_failure(error)), warnings=tuple(warnings))
    return PlaceOutcome(
        place=job.name,
        folder=job.paths.out.name,
        code=ExitCode.FINDINGS if findings else ExitCode.DONE,
        message="; ".join(findings),
        warnings=tuple(warnings),
        patches={str(split): int(count) for split, count in sorted(counts.items())},
        sha256=files.sha256_file(folder / output_names.SUMS),
    )


def _absolute(job: PlaceJob) -> PlaceJob:
    """Return the job with absolute paths also where a text names a file, for workers in other folders."""

    def absolute(text: Any) -> Any:
        return str(Path(text).absolute()) if isinstance(text, str) and Path(text).exists() else text

    area = replace(job.recipe.area, aoi=absolute(job.recipe.area.aoi))
    paths = replace(job.paths, stac=absolute(job.paths.stac), osm=absolute(job.paths.osm))
    return replace(job, recipe=replace(job.recipe, area=area), paths=paths)


def _identity(job: PlaceJob) -> str:
    """Return the identity of everything that a build is made from, but for what a catalogue or server answers."""
    paths = job.paths
    local = [
        path for path in (paths.osm, paths.gap_fill, paths.raster, paths.sea, job.recipe.area.aoi) if path is not None
    ]
    masks = sorted(paths.masks.glob("*.tif")) if paths.masks else []
    addresses = [urls.without_secrets(str(path)) for path in (paths.stac, *local)]
    return lock.sha256(
        [job.recipe, job.locked, job.exact, addresses, file_identity.identify_files([*map(str, local), *masks])]
    )


def _failed_outcome(job: PlaceJob, code: int, message: str) -> PlaceOutcome:
    return PlaceOutcome(place=job.name, folder=job.paths.out.name, code=code, message=message)


def _describe_failure(error: Exception) -> tuple[ExitCode, str]:
    """Return exit code and message of an error; the traceback of a bug goes to the log."""
    if isinstance(error, SgdataError):
        return ExitCode.REFUSED, str(error)
    if message := describe_library_error(error):
        return ExitCode.REFUSED, str(SgdataError(message))
    progress.log.error("%s", traceback.format_exc())
    return ExitCode.BUG, str(SgdataError(f"{type(error).__name__}: {error}"))
