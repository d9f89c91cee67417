"""Test a proposed split: lists that packing accepts, and no shared ground."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgdata.audits import collect_evidence, findings, propose_split
from sgdata.cli import app
from sgdata.errors import SettingError
from sgdata.shards import shard_index
from sgdata.splits.block_split import SplitSettings
from tests import synthetic

METRES = SplitSettings(block_px=0, gap_px=0)


def test_the_lists_make_shards_that_do_not_leak(tmp_path: Path) -> None:
    build = synthetic.segmunich_build(tmp_path / "build", patches=60)
    out, made = tmp_path / "split", tmp_path / "shards"
    words = ["split", str(build), "--out", str(out), "--block", "640", "--test-share", "0.2"]
    done = CliRunner().invoke(app, words)
    # Random pixels are not ground: the audit also has findings of another kind.
    assert done.exit_code in (0, 3), done.output
    lists = {part: out / f"{part}.txt" for part in ("train", "val", "test")}
    words = ["shard", "segmunich", "--source", str(build), "--out", str(made)]
    for part, path in lists.items():
        words += ["--split-list", f"{part}={path}"]
    assert CliRunner().invoke(app, words).exit_code == 0
    held = {row["key"]: row["split"] for row in shard_index.read_index(made).to_pylist()}
    assert held == {key: part for part, path in lists.items() for key in path.read_text().split()}
    report = json.loads((out / "split.json").read_text())
    assert sum(report["boxes"].values()) + report["left_out"] == 60
    by_name = {check.name: check for check in findings.read(out / "audit.json").checks}
    assert by_name["shared pixels"].state == by_name["distance between splits"].state == "pass"
    # The gap was to be one sample, 160 m.
    assert (
        min(pair["nearest_m"] for pair in by_name["distance between splits"].figures.values() if isinstance(pair, dict))
        >= 160
    )


def test_the_same_samples_get_the_same_split(tmp_path: Path) -> None:
    build = synthetic.segmunich_build(tmp_path / "build", patches=40)
    for name, workers in (("one", 1), ("two", 2)):
        evidence = collect_evidence.collect_evidence(collect_evidence.detect_subject(build), workers=workers)
        propose_split.write(tmp_path / name, *propose_split.propose(evidence, METRES))
    assert (tmp_path / "one/SHA256SUMS").read_bytes() == (tmp_path / "two/SHA256SUMS").read_bytes()


def test_patches_with_coordinates_of_a_published_dataset(tmp_path: Path) -> None:
    source = synthetic.bigearthnet_v1(tmp_path, count=9)
    evidence = collect_evidence.collect_evidence(collect_evidence.detect_subject(source))
    proposed, report = propose_split.propose(evidence, SplitSettings(block_px=1400, gap_px=50, val_share=0.3))
    assert report.leakage == 0
    assert {facts.split for facts in proposed.facts} == {"train", "val"}


def test_samples_without_locations_cannot_be_split(tmp_path: Path) -> None:
    evidence = collect_evidence.collect_evidence(collect_evidence.detect_subject(synthetic.oscd(tmp_path)))
    with pytest.raises(SettingError, match="2 of 2 samples have no coordinates"):
        propose_split.propose(evidence, METRES)


def test_samples_at_one_location_cannot_be_split(tmp_path: Path) -> None:
    evidence = collect_evidence.collect_evidence(collect_evidence.detect_subject(synthetic.eurosat(tmp_path)))
    with pytest.raises(SettingError, match="leave val empty over 0 m by 0 m; choose smaller blocks"):
        propose_split.propose(evidence, METRES)
