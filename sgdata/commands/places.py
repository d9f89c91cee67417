"""Choose, run and print the several places of `plan` and `build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgdata.commands import printing
from sgdata.errors import ExitCode, SettingError, SourceError, one_line
from sgdata.public_commands import Outcome

if TYPE_CHECKING:
    from sgdata.builds.build_cost import BuildCost
    from sgdata.builds.build_recipe import BuildPaths
    from sgdata.builds.place_list import PlaceEntry
    from sgdata.builds.places import PlaceJob, PlaceOutcome, PlacePlan

Place = Annotated[
    list[str] | None,
    typer.Option(
        "--place", help="Area as a place name, resolved by Nominatim; repeated: places in folders of their own."
    ),
]
Places = Annotated[
    Path | None,
    typer.Option("--places", metavar="FILE", help="Places, each in its own folder: features, or a .csv or .tsv table."),
]
AREA = ("bbox", "aoi", "feature", "place")
"""Short names of settings that say where one place is."""


def separate(
    overrides: dict[str, object], place: Sequence[str] | None, places: Path | None
) -> tuple[list[PlaceEntry], dict[str, object]]:
    """Return the places of a command, and its settings without the area if it has several. Raises SettingError."""
    listed = entries(overrides, place, places)
    return listed, overrides | (dict.fromkeys(AREA) if listed else {})


def entries(given: Mapping[str, object], place: Sequence[str] | None, places: Path | None) -> list[PlaceEntry]:
    """Return the places of a command, none if it has a single area.

    Args:
        given: Options by name: `bbox`, `aoi`, `feature`.
        place: Names of places.
        places: File of places.

    Raises:
        SettingError: Options exclude each other, or the file is wrong.
    """
    from sgdata.builds import place_list
    from sgdata.rasters import vectors

    named = [name for name in AREA[:3] if given.get(name) is not None]
    if places is not None or len(place or ()) > 1:
        option = "--place" if places is None else "--places"
        if named or (places is not None and place):
            raise SettingError(f"{option}: also {', '.join(named) or 'place'} given; give one kind of area")
        return place_list.read(places) if places is not None else place_list.name_entries(place or ())
    aoi = given.get("aoi")
    if not isinstance(aoi, Path) or named != ["aoi"] or place:
        return []
    try:
        several = sum(one.geometry is not None for one in vectors.read_features(aoi)) > 1
    except (OSError, SourceError):  # refused with its reason where the area is resolved
        return []
    return place_list.read(aoi) if several else []


def place_jobs(
    listed: Sequence[PlaceEntry],
    recipe: str | Path | None,
    overrides: Mapping[str, object],
    changes: Sequence[str] | None,
    paths: BuildPaths,
    *,
    locks: Path | None = None,
    exact: bool = False,
) -> list[PlaceJob]:
    """Return what to do for each place. Raises SettingError, SourceError."""
    from sgdata.builds import build_recipe, places

    base = recipe or "segmunich"
    # None: not given; the recipe's value is used.
    given = {key: value for key, value in overrides.items() if value is not None}
    recipes = [build_recipe.recipe_for(base, {**given, **one.settings}, changes or ()) for one in listed]
    return places.create_jobs(listed, recipes, paths, locks=locks, exact=exact)


def plan_places(jobs: Sequence[PlaceJob], out: Path, *, workers: int, allow_holes: bool) -> Outcome[list[PlacePlan]]:
    """Plan places; the result is a table with totals."""
    from sgdata.builds import build_cost, places, plan_summary

    plans = places.plan(jobs, workers=workers)
    cost = build_cost.add_up([one.cost for one in plans if one.cost])
    scenes = sum(len(one.build_lock.items) for one in plans if one.build_lock)
    km2 = round(sum(one.area.km2 for one in plans if one.area), 2)
    rows = [
        {
            "place": one.place, "folder": one.folder, "code": one.code, "message": one.message, "area": one.area,
            "cost": one.cost, "months": plan_summary.count_months(one.build_lock) if one.build_lock else (),
        }
        for one in plans
    ]  # fmt: skip

    def show() -> None:
        last = (f"all {len(plans)}", "", f"{km2:,.2f}", f"{scenes}", *_cells(cost), "")
        columns = ("place", "CRS", "km2", "scenes", "MB to read", "MB scratch", "min", "state")
        printing.show_table(columns, [*map(_planned_row, plans), last])
        printing.show_folder(out, _messages(plans))

    code = places.exit_code(plans)
    holes = [f"{one.place}: {one.holes}" for one in plans if one.holes and not allow_holes]
    refusal = f"{'; '.join(holes)}; choose other dates or another catalogue, or give --allow-holes" if holes else ""
    total = {"places": len(plans), "scenes": scenes, "km2": km2, **vars(cost)}
    return _outcome(plans, show, {"places": rows, "total": total}, code, _messages(plans), refusal)


def build_places(
    jobs: Sequence[PlaceJob], out: Path, workers: int, cluster: str | None, *, dry_run: bool = False
) -> Outcome[Any]:
    """Build places, or plan them if `dry_run`; the result is a table of them."""
    from sgdata.builds import place_list, places

    if dry_run:
        return plan_places(jobs, out, workers=workers, allow_holes=True)
    outcomes = places.build(jobs, out, workers=workers, cluster=cluster)
    messages = _messages(outcomes)

    def show() -> None:
        printing.show_table(("place", "folder", "state", "train", "val", "test"), map(_built_row, outcomes))
        printing.show_folder(out / place_list.SUMMARY, messages)

    return _outcome(out, show, {"folder": out, "places": outcomes}, places.exit_code(outcomes), messages)


def _outcome(
    value: Any,
    show: Callable[[], None],
    document: dict[str, Any],
    code: ExitCode,
    messages: tuple[str, ...],
    refusal: str = "",
) -> Outcome[Any]:
    """Return the outcome of a command over places, which is refused where each of them is."""
    if code == ExitCode.REFUSED:
        refusal = f"no place has a result; the first: {messages[0]}"
    findings = messages if code == ExitCode.FINDINGS else ()
    return Outcome(value=value, show=show, document=document, code=code, findings=findings, refusal=refusal)


def _messages(rows: Sequence[PlaceOutcome] | Sequence[PlacePlan]) -> tuple[str, ...]:
    return tuple(f"{one_line(one.place)}: {one_line(one.message)}" for one in rows if one.message)


def _cells(cost: BuildCost) -> tuple[str, str, str]:
    return f"{cost.read_bytes / 1e6:,.0f}", f"{cost.scratch_bytes / 1e6:,.0f}", f"{cost.minutes}"


def _planned_row(one: PlacePlan) -> tuple[str, ...]:
    if one.build_lock is None or one.cost is None or one.area is None:
        return (one_line(one.place), *("",) * 6, "not planned")
    state = "has holes" if one.holes else "planned"
    numbers = (f"{one.area.km2:,.2f}", f"{len(one.build_lock.items)}", *_cells(one.cost))
    return (one_line(one.place), one.area.crs, *numbers, state)


def _built_row(one: PlaceOutcome) -> tuple[str, ...]:
    states = {ExitCode.DONE: "built", ExitCode.FINDINGS: "incomplete", ExitCode.REFUSED: "not built"}
    state = states.get(ExitCode(one.code), "failed, a bug")
    return (
        one_line(one.place),
        one.folder,
        state,
        *(f"{one.patches.get(part, 0)}" for part in ("train", "val", "test")),
    )
