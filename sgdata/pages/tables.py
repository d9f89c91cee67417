"""Blocks that pages of builds and shards share: class shares, bands, the contract, the audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sgdata.pages import html
from sgdata.types import Contract, LabelSpace

if TYPE_CHECKING:
    from sgdata.audits.findings import AuditReport


def build_shares(space: LabelSpace, counts: Mapping[str, Mapping[int, int]], *, caption: str = "") -> html.Bars:
    """Return class shares: a bar per class and one for unmapped pixels, a column per mapping of counts."""
    colours = space.palette.values()
    lines = list(zip(space.names, colours, space.ids, strict=True))
    if space.ignore is not None:
        lines.append(("unmapped", "#808080", space.ignore))
    # A split without labels has shares of 0, so that its column is kept.
    totals = {column: max(sum(column_counts.values()), 1) for column, column_counts in counts.items()}
    bars = tuple(
        (name, colour, tuple(column_counts.get(value, 0) / totals[column] for column, column_counts in counts.items()))
        for name, colour, value in lines
    )
    return html.Bars(title="Class shares", columns=tuple(counts), bars=bars, caption=caption)


def build_statistics(contract: Contract) -> html.Table:
    """Return a table of the wavelength and the statistics of each band, in stored units."""
    columns = ("mean", "std", "min", "p1", "p50", "p99", "max")
    rows = tuple(
        (
            band.name,
            f"{band.wavelength_nm:g}",
            str(band.gsd_m),
            *(f"{getattr(contract.statistics[band.name], key):,.6g}" for key in columns),
            f"{contract.statistics[band.name].count:,}",
        )
        for band in contract.bands
        if band.name in contract.statistics
    )
    caption = (
        f"In stored units; reflectance = (value + {contract.offset:g}) x {contract.scale:g}. Of the train split alone."
    )
    return html.Table(title="Bands", columns=("band", "nm", "native m", *columns, "pixels"), rows=rows, caption=caption)


def build_contract(dataset: Contract, more: Mapping[str, str]) -> html.Table:
    """Return a table of the contract, with the rows `more` appended."""
    # The first digits of the fingerprint suffice to distinguish datasets.
    facts = {
        "dataset": f"{dataset.dataset} {dataset.version}",
        "bands": " ".join(band.name for band in dataset.bands),
        "level, no data": f"{dataset.level}, {dataset.nodata}",
        "shape": "varies" if dataset.shape is None else " x ".join(str(size) for size in dataset.shape),
        "pixel on the ground": f"{dataset.pixel_m:g} m",
        "resampling": f"{dataset.resampling}, version {dataset.resampling_version}",
        "label space": f"{dataset.label_space.name}, {len(dataset.label_space.ids)} classes",
        "samples": ", ".join(f"{split} {count:,}" for split, count in dataset.splits.items()) or "none",
        "fingerprint": dataset.fingerprint[:16] or "none",
        **({"sample hashes": "none (packed with --hash fast)"} if dataset.hash == "fast" else {}),
    }
    return html.Table(title="Contract", columns=("what", "value"), rows=tuple((facts | dict(more)).items()))


def build_audit(report: AuditReport) -> html.Table:
    """Return a table of the checks of an audit."""
    rows = tuple((check.name, check.state, check.message, ", ".join(check.where)) for check in report.checks)
    caption = f"{report.subject}: {report.samples:,} samples, {report.findings} findings."
    return html.Table(title="Audit", columns=("check", "state", "what", "where"), rows=rows, caption=caption)


def format_percent(share: float | None) -> str:
    """Format a share; None (a composite of several scenes per pixel has no shown share) as "none"."""
    return "none" if share is None else f"{100 * share:.2f} %"
