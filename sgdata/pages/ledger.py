"""Render a `ledger.json` as blocks and as Markdown; cells of missing runs stay empty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sgdata import files
from sgdata.display.markdown import escape
from sgdata.display.markdown import table as markdown_table
from sgdata.errors import SourceError
from sgdata.pages import charts, html

ABSENT = "Weights that are not here"
INTERVAL = (
    "In brackets: 95 % interval, Student's t over seeds and draws of a split; of one run, bootstrap over samples."
)


def build_blocks(document: dict[str, Any]) -> list[html.Block]:
    """Return for each table its conclusions, its figures as chart and table, the audit of its data and its runs."""
    parts: list[html.Block] = []
    for table in document["tables"]:
        name = table["name"]
        if table["sentences"]:
            said = tuple((sentence,) for sentence in table["sentences"])
            parts.append(html.Table(title=f"{name}: what follows", columns=("computed from the figures",), rows=said))
        parts += [chart for metric in table["metrics"] if (chart := _chart(table, metric))]
        other = next((each for each in document["tables"] if each["name"] == table.get("beside")), None)
        parts.append(html.Table(title=name, columns=columns(table), rows=lines(table), caption=_caption(table)))
        parts += [*_beside(table, other), *_by_distance(table)]
        if table.get("protocols"):  # ledgers of version 0.1 have none
            parts += [_protocols(table), _sources(table)]
        if table["audit"]:
            rows = tuple((each["check"], each["message"]) for each in table["audit"])
            parts.append(html.Table(title=f"{name}: audit of its data", columns=("check", "finding"), rows=rows))
    absent = tuple(_absent(document))
    if absent:
        heads = ("file or folder", "where it lives", "licence", "checksum")
        caption = "Put them under this name into the folder of --weights, and the same command makes their rows."
        parts.append(html.Table(title=ABSENT, columns=heads, rows=absent, caption=caption))
    runs = tuple(_runs(document))
    if runs:
        names = ("table", "row", "program", "seed", "folder", "SHA-256 of the resolved recipe")
        parts.append(html.Table(title="Runs", columns=names, rows=runs))
    return parts


def read_blocks(path: Path) -> list[html.Block]:
    """Return the blocks of a `ledger.json`. Raises SettingError and SourceError where it is not one."""
    document = files.read_plain(path)
    try:
        return build_blocks(document)
    except (LookupError, TypeError, AttributeError, ValueError) as error:  # of another version, or by somebody else
        what = f"{type(error).__name__}: {error!s:.80}"
        raise SourceError(f"{path}: is no ledger ({what}); give the file that 'sgmodel reproduce' wrote") from None


def markdown(document: dict[str, Any]) -> str:
    """Render the tables as Markdown."""
    parts = [f"# {escape(document['title'])}", INTERVAL]
    for block in build_blocks(document):
        if isinstance(block, html.Table):
            rows = markdown_table(block.columns, block.rows, links=block.title == ABSENT).rstrip("\n")
            parts += [f"## {escape(block.title)}", *([escape(block.caption)] if block.caption else []), rows]
    return "\n\n".join(parts) + "\n"


def columns(table: dict[str, Any]) -> tuple[str, ...]:
    """Return the column names: two for each metric."""
    score_columns = [head for name in table["metrics"] for head in (f"{name} published", f"{name} here")]
    return ("model", "weights", *score_columns, "protocol", "seeds", "parameters", "steps", "why it differs", "audit")


def lines(table: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return the rows as texts; cells of missing figures are empty."""
    return tuple(_line(table, row) for row in table["rows"])


def _line(table: dict[str, Any], row: dict[str, Any]) -> tuple[str, ...]:
    cells = []
    for number, name in enumerate(table["metrics"]):
        each = row["figures"][name]
        state = "" if number or row["state"] in ("run", "quoted") else row["state"]
        cells += [_number(each["published"]), _measured(each) or state]
    seeds = len(row["figures"][table["metrics"][0]]["values"])
    parameters, steps = _cost(row["cost"]) if "cost" in row else ("", "")
    findings = _findings(table) if row["state"] == "run" else ""
    how = (row.get("protocol") or "", str(seeds or ""), parameters, steps, ", ".join(row["reasons"]), findings)
    return (row["name"], row["start"], *cells, *how)


def _beside(table: dict[str, Any], other: dict[str, Any] | None) -> list[html.Table]:
    """Return the first metric of each row beside that of the row of the same name in another table."""
    if other is None:
        return []
    metric = table["metrics"][0]
    theirs = {row["name"]: row for row in other["rows"] if metric in row["figures"]}
    pairs = [(row, theirs[row["name"]]) for row in table["rows"] if row["name"] in theirs]
    rows = tuple(
        (
            row["name"],
            _measured(there["figures"][metric]),
            _measured(row["figures"][metric]),
            _difference(row, there, metric),
        )
        for row, there in pairs
    )
    columns = ("model", f"{metric}: {other['name']}", f"{metric}: {table['name']}", "difference")
    return [html.Table(title=f"{table['name']}: beside {other['name']}", columns=columns, rows=rows, wide=True)]


def _difference(row: dict[str, Any], other: dict[str, Any], metric: str) -> str:
    ours, theirs = (each["figures"][metric]["mean"] for each in (row, other))
    return "" if ours is None or theirs is None else f"{ours - theirs:+.3f}"


def _by_distance(table: dict[str, Any]) -> list[html.Table]:
    """Return the score of each row by the distance of the scored samples to the training samples."""
    shown = {row["name"]: {each["band"]: each for each in row.get("by_distance") or ()} for row in table["rows"]}
    bands = list(dict.fromkeys(band for cells in shown.values() for band in cells))
    if not bands:
        return []
    rows = tuple(
        (name, *(f"{_measured(cells[band])}, n {cells[band]['samples']:,}" if band in cells else "" for band in bands))
        for name, cells in shown.items()
        if cells
    )
    title = f"{table['name']}: by distance to the nearest training sample"
    return [html.Table(title=title, columns=("model", *bands), rows=rows, wide=True)]


def _protocols(table: dict[str, Any]) -> html.Table:
    """Return what the published figures of a table were measured on."""
    rows = tuple((each["name"], each["subject"], each["about"]) for each in table["protocols"])
    return html.Table(title=f"{table['name']}: protocols", columns=("protocol", "measured on", "text"), rows=rows)


def _sources(table: dict[str, Any]) -> html.Table:
    """Return the source of each published figure of a table."""
    cells = ((row, name, row["figures"][name]) for row in table["rows"] for name in table["metrics"])
    rows = tuple(
        (row["name"], name, _number(each["published"]), row["protocol"], each["source"])
        for row, name, each in cells
        if each["published"] is not None
    )
    columns = ("model", "figure", "published", "protocol", "source")
    return html.Table(title=f"{table['name']}: sources of published figures", columns=columns, rows=rows)


def _cost(cost: dict[str, Any]) -> tuple[str, str]:
    """Return parameters and steps; those of the runs before come first."""
    before = f"{cost['steps_before']:,} + " if cost["steps_before"] else ""
    return f"{cost['parameters']:,}", f"{before}{cost['steps']:,}"


def _findings(table: dict[str, Any]) -> str:
    if not table["audited"]:
        return "not audited"
    return ", ".join(each["check"] for each in table["audit"]) or "no finding"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _measured(each: dict[str, Any]) -> str:
    ends: Sequence[float] | None = each["interval"]
    # No line break inside an interval.
    span = "" if ends is None else f"\N{NO-BREAK SPACE}({ends[0]:.3f}\N{EN DASH}\N{WORD JOINER}{ends[1]:.3f})"
    return _number(each["mean"]) + span


def _caption(table: dict[str, Any]) -> str:
    data = table["data"]
    print_of = f"Data {data['dataset']} {data['version']}, fingerprint {data['fingerprint'][:16]}." if data else ""
    return " ".join(text for text in (table["note"], print_of) if text)


def _chart(table: dict[str, Any], metric: str) -> html.Chart | None:
    """Chart means with their intervals, one line per row; None if no row was run."""
    shown = [(row["name"], row["figures"][metric]) for row in table["rows"] if row["state"] == "run"]
    if not shown:
        return None
    rows = [(name, each["mean"], each["interval"], each["published"]) for name, each in shown]
    label = f"{metric}: " + "; ".join(f"{name} {_number(mean)}" for name, mean, _, _ in rows)
    keys = ((charts.SERIES[0], "here, with its interval"), (charts.SERIES[1], "published"))
    published = any(row[3] is not None for row in rows)
    return html.Chart(
        title=f"{table['name']}: {metric}", figure=charts.spans(rows), label=label, keys=keys if published else keys[:1]
    )


def _runs(document: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    rows = ((table["name"], row) for table in document["tables"] for row in table["rows"])
    for name, row in rows:
        for run in (run for run in row["runs"] if run["folder"]):
            yield name, row["name"], run["program"], str(run["seed"]), run["folder"], run["recipe_sha256"][:16]


def _absent(document: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    named = set()
    for table in document["tables"]:
        for row in table["rows"]:
            if row["state"].endswith("weights absent") and row["weights"]["name"] not in named:
                named.add(row["weights"]["name"])
                yield tuple(row["weights"][key] for key in ("name", "where", "licence", "checksum"))
