"""Read class tables: the classes of a build's labels and the OpenStreetMap tags of each.

Two come with the package: `segmunich-osm` (13 classes, streets are 0) and `corine` (the 15 of CORINE level 2, with
streets in the transport class). Any other name is the path of a user's tab-separated file, one row per class and
geometry:

    name    code    colour     tags                                geometry    priority    half_width_m
    Forest  31      #4dff00    landuse=forest;natural=wood         polygon     5
    River   51      #00ccf2    waterway=river                      line        3           4

Ids follow the order in which names first appear. `tags` are joined by `;`, and `*` matches any value. `code` (value of
the class in a raster that fills gaps), `colour` and, for polygons, `half_width_m` (half of the width to draw lines
with) may be empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sgdata import files, package_data
from sgdata.errors import SettingError
from sgdata.labels import tag_rules
from sgdata.types import LabelSpace

TAG_TABLE = "osm_lulc_tags"
COLUMNS = ("name", "code", "colour", "tags", "geometry", "priority")
MANY = 200


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Classes of a build.

    Attributes:
        space: Label space.
        rules: Tag rules that assign its classes.
        codes: Class ids by the code of the class in other maps.
    """

    space: LabelSpace
    rules: tag_rules.RuleTable
    codes: Mapping[int, int]


def read(name: str, *, tiers: Iterable[str], groups: Iterable[str]) -> ClassTable:
    """Read a class table that comes with the package or a table of your own.

    Args:
        name: "segmunich-osm", "corine", or the path of a file of tab-separated values.
        tiers: Tiers of the package's tag table whose rows to use, such as "core"; ignored for a file.
        groups: Groups of streets in that table to use, such as "drive"; ignored for a file.

    Returns:
        The label space, the rules that map tags to classes, and the codes of classes in other maps.

    Raises:
        SettingError: There is no such table, or a row is wrong; the message names the row and the value.
    """
    try:
        shipped = _shipped(name, tiers=tiers, groups=groups)
    except (KeyError, ValueError) as error:
        raise SettingError(f"class table '{name}': its fact table is damaged ({error!r}); reinstall sgdata") from None
    return shipped or _read_own(Path(name))


def _shipped(name: str, *, tiers: Iterable[str], groups: Iterable[str]) -> ClassTable | None:
    """Return the class table of the package called `name`, or None if there is no such table."""
    rows = package_data.table(TAG_TABLE)
    if name == "segmunich-osm":
        codes = {int(row["file_value"]): int(row["train_index"]) for row in package_data.table("segmunich_labels")}
        rules = tag_rules.rules(rows, codes, tiers=tiers, groups=groups)
        # Code 0 is left out: in a raster that fills gaps 0 usually means no data, in the released labels streets.
        return ClassTable(
            space=_read_known_space(name),
            rules=rules,
            codes={code: class_id for code, class_id in codes.items() if code},
        )
    if name == "corine":
        codes = {int(row["corine"]): int(row["id"]) for row in package_data.table(f"label_space_{name}")}
        # Codes of level 3 are those of level 2 with one more digit; tags may have either.
        second = [{**row, "segmunich_label_value": row["corine_code"][:2] or str(tag_rules.IGNORE)} for row in rows]
        return ClassTable(
            space=_read_known_space(name), rules=tag_rules.rules(second, codes, tiers=tiers, groups=groups), codes=codes
        )
    return None


def sha256(name: str) -> str:
    """Return the hash of a class table. Raises SettingError if it is missing or wrong."""
    if name in ("segmunich-osm", "corine"):
        return files.sha256_file(package_data.folder("catalogs") / "tables" / f"{TAG_TABLE}.tsv")
    _read_own(Path(name))  # checked here, before hours of compositing
    return files.sha256_file(Path(name))


def _read_known_space(name: str) -> LabelSpace:
    rows = package_data.table(f"label_space_{name}")
    return _space(name, [row["name"] for row in rows], [row["colour"] for row in rows])


def _space(name: str, names: Iterable[str], colours: Iterable[str]) -> LabelSpace:
    names, colours = tuple(names), tuple(colours)
    return LabelSpace(
        name=name,
        task="segmentation",
        ids=tuple(range(len(names))),
        names=names,
        colours=colours if all(colours) else (),
        ignore=tag_rules.IGNORE,
    )


def _read_own(path: Path) -> ClassTable:
    """Read a user's table. Raises SettingError naming file, line and value."""
    colours: dict[str, str] = {}
    codes: dict[int, int] = {}
    rules = []
    if not path.is_file():
        raise SettingError(f"labels.classes is '{path}': expected segmunich-osm, corine or a file of your own classes")
    rows = package_data.read_table(path)
    if not rows or not set(COLUMNS) <= set(rows[0]):
        content = "no rows" if not rows else f"columns {', '.join(map(str, rows[0]))}"
        raise SettingError(f"{path}: {content}; expected the tab-separated columns {', '.join(COLUMNS)}")
    for number, row in enumerate(rows, start=2):
        origin, name = f"{path} line {number}", (row["name"] or "").strip()
        colour, code = (row["colour"] or "").strip(), (row["code"] or "").strip()
        if not name or not re.fullmatch(r"(#[0-9a-fA-F]{6})?", colour) or not re.fullmatch(r"\d*", code):
            raise SettingError(f"{origin}: {name=}, {colour=}, {code=}; expected a name, #rrggbb or nothing, a number")
        if colours.setdefault(name, colour) != colour:
            raise SettingError(f"{origin}: '{name}' is {colour or 'without colour'}, was {colours[name]}; keep one")
        class_id = list(colours).index(name)
        if code and codes.setdefault(int(code), class_id) != class_id:
            raise SettingError(f"{origin}: code {code} is that of another class already; give each class its own")
        rules += [_rule(tag, row, class_id, origin) for tag in (row["tags"] or "").split(";")]
    if len(colours) > MANY:
        raise SettingError(f"{path}: {len(colours)} classes; labels are bytes: expected {MANY} at most")
    table = tag_rules.rules(rules, {class_id: class_id for class_id in range(len(colours))}, tiers=("core",), groups=())
    return ClassTable(space=_space(path.stem, colours, colours.values()), rules=table, codes=codes)


def _rule(tag: str, row: Mapping[str, str], class_id: int, origin: str) -> dict[str, str]:
    """Return one tag of a row as a row of the tag table."""
    key, equals, value = tag.strip().partition("=")
    geometry, priority = row["geometry"] or "", row["priority"] or ""
    width = (row.get("half_width_m") or "").strip()
    if not key or not equals or not value:
        raise SettingError(f"{origin}: tag '{tag.strip()}'; expected key=value, or key=* for any value")
    if geometry not in ("polygon", "line") or not priority.isdecimal():
        raise SettingError(f"{origin}: {geometry=}, {priority=}; expected polygon or line, and 1 (strongest) or more")
    if not re.fullmatch(r"(\d+(\.\d+)?)?", width) or (geometry == "line" and not width):
        raise SettingError(f"{origin}: half_width_m '{width}'; a line needs half its width in metres, such as 4")
    return {
        "osm_key": key,
        "osm_value": value,
        "geometry": geometry,
        "segmunich_label_value": str(class_id),
        "priority": priority,
        "note": f"tier=core CTU={width}" if width else "tier=core",
    }
