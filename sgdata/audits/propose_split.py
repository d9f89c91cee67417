"""Propose a spatial split, by blocks as in a build, for any dataset with coordinates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from sgdata import files, output_lock
from sgdata.audits import checks, findings
from sgdata.audits.evidence import AuditEvidence
from sgdata.errors import SettingError
from sgdata.safe_names import file_name
from sgdata.splits import block_split, shared_ground
from sgdata.splits.block_split import LEFT_OUT, SplitReport, SplitSettings

# Default side of a block in samples, as in the build recipes: neighbours within a block look alike.
SIDES = 4


def propose(evidence: AuditEvidence, settings: SplitSettings) -> tuple[AuditEvidence, SplitReport]:
    """Assign samples to splits by blocks and drop those near a border.

    Args:
        evidence: The samples.
        settings: `block_px` and `gap_px` are metres here; 0: four sides and one side of the largest sample.

    Returns:
        The evidence with the samples that are in a split, each under its proposed split, and the report of the split.

    Raises:
        SettingError: A sample has no coordinates, or a split would be empty.
    """
    footprints = [facts.footprint for facts in evidence.facts if facts.footprint]
    if len(footprints) < len(evidence.facts):
        raise SettingError(
            f"{len(evidence.facts) - len(footprints)} of {len(evidence.facts)} samples have no coordinates: no spatial "
            "split can be proposed; use the splits of the dataset"
        )
    columns = shared_ground.to_columns(footprints)
    boxes = shared_ground.flatten(columns.boxes, columns.crs != "")
    side = int(np.ceil((boxes[:, 2:] - boxes[:, :2]).max()))
    chosen = replace(settings, block_px=settings.block_px or SIDES * side, gap_px=settings.gap_px or side)
    counts = [
        [facts.classes.get(number, 0) for number in evidence.contract.label_space.ids] for facts in evidence.facts
    ]
    parts, report = block_split.split(boxes, np.array(counts, float).reshape(len(footprints), -1), chosen)
    if report.empty:
        raise SettingError(
            f"blocks of {chosen.block_px} m leave {', '.join(report.empty)} empty over {np.ptp(boxes[:, 0]):.0f} m by "
            f"{np.ptp(boxes[:, 1]):.0f} m; choose smaller blocks or a smaller gap"
        )
    placed = zip(evidence.facts, parts, strict=True)
    facts = tuple(replace(each, split=part) for each, part in placed if part != LEFT_OUT)
    return replace(evidence, facts=facts), report


def write(out: Path, proposed: AuditEvidence, report: SplitReport) -> findings.AuditReport:
    """Write `<split>.txt` (sample keys), `split.json` and `audit.json` into `out`; return the audit."""
    audited = checks.run_checks(proposed)
    with output_lock.only_writer(out, findings.NAME):
        for part, samples in proposed.splits.items():
            files.write(out / f"{file_name(part)}.txt", "".join(f"{facts.key}\n" for facts in samples).encode())
        files.write(out / "split.json", files.pretty_json(report))
        files.write(out / findings.NAME, files.pretty_json(audited))
        files.write_sums(out)
    return audited
