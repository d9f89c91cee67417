"""`CARD.md`: the description of a release, generated from the index, the contract, the lock and the audit."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sgdata.display import markdown
from sgdata.types import TASKS

if TYPE_CHECKING:
    from sgdata.releases.release_content import ReleaseContent

# Size categories of the Hugging Face hub.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
Table = tuple[Sequence[str], Sequence[Sequence[object]]]


def text(content: ReleaseContent, *, previews: Sequence[str], software: str) -> str:
    """Render the card as Markdown with front matter for a hub; the template is `card.md`."""
    import jinja2

    contract = content.contract
    keys = ("mean", "std", "p1", "p99")
    figures = {}
    for name, statistics in contract.statistics.items():
        figures[name] = [f"{getattr(statistics, key):.1f}" for key in keys]
    # Escaped for Markdown instead of HTML.
    engine = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda value: value if hasattr(value, "__html__") else markdown.escape(value),
    )  # fmt: skip
    engine.globals["table"] = markdown.table
    engine.filters["yaml"] = lambda text: text if re.fullmatch(r"[A-Za-z][\w-]*", text) else json.dumps(text)
    return engine.from_string(Path(__file__).with_name("card.md").read_text("utf-8")).render(
        content=content,
        previews=previews,
        software=software,
        size=next((name for bound, name in _SIZES if len(content.rows) < bound), "n>1M"),
        task=TASKS[contract.label_space.task].hub_category,
        bands=[(b.name, f"{b.wavelength_nm:g}", b.gsd_m, *figures[b.name]) for b in contract.bands],
        labels=_labels(content),
        checks=[(check.name, check.state, check.message) for check in content.report.checks],
        terms=[(part, *terms) for part, terms in content.terms.items()],
    )


def _labels(content: ReleaseContent) -> Table | None:
    """Return column names and rows of the class table: counts per split from the audit, else from the index."""
    space = content.contract.label_space
    if not space.ids:
        return None
    classes = list(zip(space.ids, space.names, strict=True))
    by_split = next((check.figures for check in content.report.checks if check.name == "class coverage"), {})
    splits = [split for split in content.contract.splits if split in by_split]
    if splits:
        heads = ("id", "class", *(f"samples in {split}" for split in splits))
        return heads, [(number, name, *(by_split[split].get(name, 0) for split in splits)) for number, name in classes]
    counts = Counter(label for row in content.rows for label in row["labels"])
    return ("id", "class", "samples"), [(number, name, counts[number] or "") for number, name in classes]
