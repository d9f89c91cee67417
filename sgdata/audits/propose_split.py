"""A split by space for any dataset with coordinates: the blocks of a build, laid over wherever the samples are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from sgdata import files
from sgdata.audits import checks, findings
from sgdata.audits.checks import Evidence
from sgdata.errors import SettingError
from sgdata.splits import blocks, proximity
from sgdata.splits.blocks import LEFT_OUT, SplitReport, SplitSettings

# Neighbours at less than a block look alike: four patches across, as the recipe of a build has it.
SIDES = 4


def propose(evidence: Evidence, settings: SplitSettings) -> tuple[Evidence, SplitReport]:
    """The same samples under a split by blocks, those near a border left out.

    `block_px` and `gap_px` are metres here; 0 stands for four sides and one side of the largest sample. Raises
    SettingError where a sample has no coordinates or a part stays empty.
    """
    spots = [facts.spot for facts in evidence.facts if facts.spot]
    if len(spots) < len(evidence.facts):
        raise SettingError(
            f"{len(evidence.facts) - len(spots)} of {len(evidence.facts)} samples have no coordinates: no split by "
            "space can be proposed, and one that knows no places would put neighbours on both sides"
        )
    columns = proximity.columns(spots)
    boxes = proximity.flattened(columns.boxes, columns.crs != "")
    side = int(np.ceil((boxes[:, 2:] - boxes[:, :2]).max()))
    chosen = replace(settings, block_px=settings.block_px or SIDES * side, gap_px=settings.gap_px or side)
    counts = [
        [facts.classes.get(number, 0) for number in evidence.contract.label_space.ids] for facts in evidence.facts
    ]
    parts, report = blocks.split(boxes, np.array(counts, float).reshape(len(spots), -1), chosen)
    if report.empty:
        raise SettingError(
            f"blocks of {chosen.block_px} m leave {', '.join(report.empty)} empty over {np.ptp(boxes[:, 0]):.0f} m by "
            f"{np.ptp(boxes[:, 1]):.0f} m; choose smaller blocks or a smaller gap"
        )
    placed = zip(evidence.facts, parts, strict=True)
    facts = tuple(replace(each, split=part) for each, part in placed if part != LEFT_OUT)
    return replace(evidence, facts=facts), report


def write(out: Path, proposed: Evidence, report: SplitReport) -> findings.Report:
    """`<split>.txt`, a list of keys each, with `audit.json` and `split.json`; returns the audit."""
    judged = checks.judge(proposed)
    with files.only_writer(out, findings.NAME):
        for part, held in proposed.splits.items():
            files.write(out / f"{part}.txt", "".join(f"{facts.key}\n" for facts in held).encode())
        files.write(out / "split.json", files.pretty_json(report))
        files.write(out / findings.NAME, files.pretty_json(judged))
        files.write_sums(out)
    return judged
