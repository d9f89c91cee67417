"""Parse the tag table and choose the rule that classifies an OpenStreetMap object by its tags. Pure.

The table is `catalogs/tables/osm_lulc_tags.tsv`: key, value (`*` = any), geometry, label value, priority and a
note with `tier=core|ext|opt`, `group=...`, `half_width_m ... CTU=x` and conditions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from sgdata.errors import SettingError

Kind = Literal["polygon", "line"]
Tier = Literal["core", "ext", "opt"]

IGNORE = 255
WATER = ("natural", "water", "waterway")
# Keys of ground cover; other keys describe objects on it.
GROUND = ("natural", "landuse", "landcover", "water", "waterway", "wetland")
TIERS: tuple[Tier, ...] = get_args(Tier)
SEA = "sgdata:sea"
"""Key of the sea, which OpenStreetMap has as coastlines only; no mapper uses it."""


@dataclass(frozen=True, kw_only=True)
class TagRule:
    """Row of the table: an object with `key=value` drawn as `kind` gets `label` (a train index).

    Attributes:
        key: OSM key.
        value: OSM value, `*` for any.
        kind: Geometry.
        label: Train index.
        tier: Confidence of the row.
        priority: 1 is strongest.
        group: Group of streets, or "".
        half_width_m: Half of the width of a line in metres (the CTU value).
        needs: Other tag that the object must have, `key` or `key=value`.
        unless: Other tag that it must not have.
        active: False for rows that the table or the recipe turns off. They stay in the table, because a row for lines
            also means that a closed way is not an area.
    """

    key: str
    value: str
    kind: Kind
    label: int
    tier: Tier
    priority: int
    group: str = ""
    half_width_m: float | None = None
    needs: str = ""
    unless: str = ""
    active: bool = True


RuleTable = Mapping[tuple[Kind, str, str], TagRule]


def rules(
    rows: Iterable[Mapping[str, str]], codes: Mapping[int, int], *, tiers: Iterable[str], groups: Iterable[str]
) -> dict[tuple[Kind, str, str], TagRule]:
    """Parse the tag table.

    Args:
        rows: Rows of the table.
        codes: Train index by label value.
        tiers: Tiers of active rows, for rows without a group.
        groups: Groups of active rows, for rows of streets.

    Returns:
        Rules by kind, key and value.

    Raises:
        SettingError: A row has a missing column, no tier or an unknown label value, or is there twice.
    """
    table: dict[tuple[Kind, str, str], TagRule] = {}
    for number, row in enumerate(rows, start=2):
        if row.get("geometry") == "raster":  # untagged land has no tag to match
            continue
        rule = _rule(row, codes, f"tag table line {number}", frozenset(tiers), frozenset(groups))
        rule_id = (rule.kind, rule.key, rule.value)
        if rule_id in table:
            raise SettingError(f"tag table line {number}: {' '.join(rule_id)} is there twice; remove one row")
        table[rule_id] = rule
    return table


def _rule(
    row: Mapping[str, str], codes: Mapping[int, int], origin: str, tiers: frozenset[str], groups: frozenset[str]
) -> TagRule:
    try:
        note, kind, value = row["note"], row["geometry"], int(row["segmunich_label_value"])
        priority = int(row["priority"])
        key, tag_value = row["osm_key"], row["osm_value"]
    except (KeyError, ValueError) as error:
        raise SettingError(f"{origin}: {error}; expected the columns of osm_lulc_tags.tsv") from None
    tier = _search(r"tier=(core|ext|opt)", note)
    if kind not in get_args(Kind) or not tier:
        raise SettingError(f"{origin}: geometry {kind!r}, note {note!r}; expected polygon or line, tier=core|ext|opt")
    if value != IGNORE and value not in codes:
        raise SettingError(f"{origin}: label value {value}, expected one of {sorted(codes)}")
    # Half widths of CTU Prague are those of carriageways; OSM2LULC has 6 or 12 m for every street.
    group, width = _search(r"group=(\w+)", note), _search(r"CTU=(\d+(?:\.\d+)?)", note)
    selected = group in groups if group else tier in tiers
    return TagRule(
        key=key,
        value=tag_value,
        kind=cast(Kind, kind),
        label=codes.get(value, IGNORE),
        tier=cast(Tier, tier),
        priority=priority,
        group=group,
        half_width_m=float(width) if kind == "line" and width else None,
        needs=_search(r"only with (\S+=\S+)", note),
        unless=_search(r"only where no (\S+) key", note) or _search(r"; (?:\S+ )*?(\S+=\S+) wins", note),
        # A line without a width (a coastline) is a border and not drawn.
        active=selected and value != IGNORE and (kind == "polygon" or bool(width)),
    )


def with_sea(table: RuleTable) -> RuleTable:
    """Return the rules with one for the sea, of the class of coastlines or else of lakes; unchanged without either."""
    row = table.get(("line", "natural", "coastline")) or table.get(("polygon", "natural", "water"))
    if row is None or row.label == IGNORE:
        return table
    # Weakest of all: what OpenStreetMap has in the sea, such as piers and islands, is painted over it.
    sea = TagRule(key=SEA, value="yes", kind="polygon", label=row.label, tier="core", priority=1 << 20)
    return {**table, ("polygon", SEA, "yes"): sea}


def _search(pattern: str, note: str) -> str:
    match = re.search(pattern, note)
    return match.group(1) if match else ""


def keys(table: RuleTable, kind: Kind) -> tuple[str, ...]:
    """Return the OSM keys with an active rule of this kind, sorted."""
    return tuple(sorted({rule.key for rule in table.values() if rule.kind == kind and rule.active}))


def match(table: RuleTable, kind: Kind, tags: Mapping[str, str], *, is_way: bool) -> TagRule | None:
    """Return the rule for an object, or None.

    Of several rules, an exact value beats `*`, then core beats ext beats opt, then the stronger priority wins, then the
    key that sorts first.

    Args:
        table: Rules.
        kind: Geometry to draw the object as.
        tags: Tags of the object.
        is_way: Whether it is a way. A closed way with tags of a line (a canal, a footway) is an area only with
            `area=yes`; a multipolygon relation always is one.
    """
    linear = kind == "polygon" and is_way and tags.get("area") != "yes"
    best: tuple[tuple[bool, int, int, str], TagRule] | None = None
    for key, text in tags.items():
        # Values may be lists such as "forest;meadow", of which the first known value counts.
        for value in (*(part.strip() for part in text.split(";")), "*"):
            rule = table.get((kind, key, value))
            if rule is None or not rule.active or (rule.needs and not _has(tags, rule.needs)):
                continue
            if rule.unless and _has(tags, rule.unless):
                continue
            # A tag with a row for lines makes the way a line, unless it has area=yes.
            if linear and ("line", key, value) in table:
                continue
            # Smaller is better in each place; the key makes the choice independent of the order of the tags.
            rank = (value == "*", TIERS.index(rule.tier), rule.priority, key)
            if best is None or rank < best[0]:
                best = (rank, rule)
            break
    return best[1] if best else None


def _has(tags: Mapping[str, str], condition: str) -> bool:
    key, equals, value = condition.partition("=")
    return key in tags and (not equals or tags[key] == value)


def is_underground(tags: Mapping[str, str], rule: TagRule) -> bool:
    """Return whether an object is under ground: a tunnel, an underground car park, a street below layer 0.

    Natural ground is not, whatever its layer: rivers are often mapped at layer -1 because bridges cross them.
    """
    if tags.get("tunnel", "no") != "no" or "underground" in (tags.get("location"), tags.get("parking")):
        return True
    try:
        return rule.key not in GROUND and float(tags.get("layer", "0")) < 0
    except ValueError:
        return False


def width_m(tags: Mapping[str, str]) -> float | None:
    """Return the carriageway width in metres, from `width` or else `lanes` x 3.25 m; None without a plausible one."""
    # Forms in use: "7", "7.5 m", "7,5", "20 ft", "20'"; typing errors such as 5000 are ignored.
    text = tags.get("width", "").replace(",", ".").strip().lower()
    number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(m|ft|')?", text)
    if number:
        width = float(number.group(1)) * (0.3048 if number.group(2) in ("ft", "'") else 1.0)
        if 0.5 <= width <= 100:
            return width
    # 3.25 m is a common design width of a lane between 3.0 and 3.5 m.
    lanes = tags.get("lanes", "")
    return int(lanes) * 3.25 if lanes.isdecimal() and 1 <= int(lanes) <= 20 else None
