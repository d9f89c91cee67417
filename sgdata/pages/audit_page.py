"""Write the report of an audit and a page of it."""

from __future__ import annotations

from pathlib import Path

from sgdata import files, output_lock
from sgdata.audits import findings
from sgdata.pages import html


def write(out: Path, report: findings.AuditReport) -> Path:
    """Write `audit.json` and its page into `out`; return the page. Raises OutputError."""
    from sgdata.pages.tables import build_audit

    with output_lock.only_writer(out, findings.NAME):
        files.write(out / findings.NAME, files.pretty_json(report))
        title = f"Audit of {report.subject}, {report.kind}"
        shown = html.write(out / "index.html", title=title, intro="", blocks=[build_audit(report)])
        files.write_sums(out)
    return shown
