"""Test the ledger: missing runs are done, stopped ones resumed, changed ones repeated, and no number is invented."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from model_commands import sgmodel
from scipy import stats
from synthetic_shards import write
from test_cluster import cluster  # noqa: F401  # a fixture

from sgdata import files, package_data
from sgdata.audits import findings
from sgdata.errors import SettingError
from sgdata.pages import ledger as shown
from sgdata.shards import contracts
from sgmodel.ledger import costs, experiments, paired_bootstrap, published_figures, reproduce
from sgmodel.ledger import report as ledger_report
from sgmodel.ledger.experiments import LedgerPaths, LedgerRecipe, LedgerRow, LedgerTable, PrecedingRun
from sgmodel.ledger.published_figures import PublishedFigure
from sgmodel.recipes.programs import PROGRAMS

SET = ("bands=['B02', 'B03', 'B04']", "training.epochs=1", "training.batch=2", "augment.quarter_turns=false")
LEDGERS = sorted((package_data.folder("recipes") / "ledger").glob("*.toml"))
# Stands for every program: a figure from the seed, or an end as the file `fail` beside it asks for.
STUB = """
import json, pathlib, sys
words = sys.argv[2:]
out = pathlib.Path(words[words.index("--out") + 1])
seed = float([w for w in words if w.startswith("training.seed=")][-1][14:]) if "training.seed" in str(words) else 0.0
fail = pathlib.Path(__file__).with_name("fail")
if fail.exists() and fail.read_text() in sys.argv[1]:
    sys.exit("no luck")
out.mkdir(parents=True, exist_ok=True)
results = {"miou": seed / 10, "miou_interval": [0.0, 1.0], "steps": 2}
(out / "results.json").write_text(json.dumps(results))
(out / "SHA256SUMS").write_text("")
with (out / "calls").open("a") as calls:
    calls.write("x")
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("reproduce") / "shards", train=4, val=2)


@pytest.fixture
def paths(shards: Path, tmp_path: Path) -> LedgerPaths:
    """Return run paths with a stub instead of the programs."""
    (tmp_path / "stub.py").write_text(STUB)
    launcher = (sys.executable, str(tmp_path / "stub.py"))
    return LedgerPaths(
        data={"toy": shards}, out=tmp_path / "out", programs=PROGRAMS, weights=tmp_path / "weights", launcher=launcher
    )


def recipe(*rows: LedgerRow, **others: Any) -> LedgerRecipe:
    """Return a recipe with one table of linear models and two seeds."""
    made = {"name": "T", "program": "segment", "recipe": "train/segment-demo-linear.toml", "data": "toy"}
    table = LedgerTable(
        **{**made, "metrics": ("miou",), "set": SET, "rows": rows or (LedgerRow(name="a", start="random"),), **others}
    )
    return LedgerRecipe(title="t", seeds=(1, 2), flops_per_s=1e9, start_s=0.0, tables=(table,))


def rows(paths: LedgerPaths) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((paths.out / "ledger.json").read_text())["tables"][0]["rows"]
    return found


def folders(paths: LedgerPaths) -> list[Path]:
    return sorted(path for path in (paths.out / "runs").iterdir() if path.is_dir())


# --- runs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_run_resumes_where_it_stopped(shards: Path, tmp_path: Path) -> None:
    """With the real program the figures equal those of an uninterrupted run."""
    one = recipe(LedgerRow(name="a", start="random", seeds=(1,)))
    quick = ("--threads", "1", "--device", "cpu")
    paths = LedgerPaths(
        data={"toy": shards}, out=tmp_path / "out", programs=PROGRAMS, options=(*quick, "--stop-after", "1")
    )
    assert reproduce.main(one, paths) == 3
    (found,) = rows(paths)
    assert (found["state"], found["figures"]["miou"]["mean"]) == ("not run: failed", None)
    assert reproduce.main(one, dataclasses.replace(paths, options=quick)) == 0
    whole = dataclasses.replace(paths, options=quick, out=tmp_path / "whole")
    assert reproduce.main(one, whole) == 0
    (again,), (straight,) = folders(paths), folders(whole)
    assert (again / "results.json").read_bytes() == (straight / "results.json").read_bytes()
    assert (paths.out / "ledger.json").read_bytes() == (whole.out / "ledger.json").read_bytes()
    (found,) = rows(paths)
    assert found["cost"] == {"parameters": 4 * 3 + 4, "steps": 2, "steps_before": 0, "flops": 3 * 2 * 12 * 32**2 * 4}
    assert found["reasons"] == ["not published", "one seed"]
    assert found["figures"]["miou"]["interval_over"] == "scored samples"


def test_finished_runs_are_not_repeated(paths: LedgerPaths, capfd: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(recipe(), paths, workers=2) == 0
    first = {path: path.read_bytes() for path in paths.out.rglob("*") if path.is_file() and path.suffix != ".jsonl"}
    capfd.readouterr()
    assert reproduce.main(recipe(), paths) == 0
    assert "0 of 2 runs missing" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in first} == first
    assert (paths.out / "page" / "index.html").is_file()


def test_a_changed_recipe_or_other_data_are_runs_of_their_own(paths: LedgerPaths, tmp_path: Path) -> None:
    reproduce.main(recipe(), paths)
    before = folders(paths)
    reproduce.main(recipe(set=(*SET, "training.optimizer.lr=0.1")), paths)
    changed = set(folders(paths)) - set(before)
    assert len(changed) == 2
    assert {run["folder"] for run in rows(paths)[0]["runs"]} == {f"runs/{path.name}" for path in changed}
    other = dataclasses.replace(paths, data={"toy": write(tmp_path / "other", train=5, val=2)})
    reproduce.main(recipe(), other)
    assert len(folders(paths)) == 6
    assert all((path / "calls").read_text() == "x" for path in folders(paths))


def test_weights_come_from_runs_before_and_shared_runs_are_made_once(paths: LedgerPaths) -> None:
    first = PrecedingRun(recipe="train/pretrain-demo-tiny.toml")
    two = recipe(
        LedgerRow(name="a", start="pretrained here", before=(first,)),
        LedgerRow(name="b", start="random", before=(first,)),
    )
    wanted = reproduce.possible_runs(two, paths)
    assert [run.program for run in wanted] == ["pretrain", "segment", "segment"]
    assert str(wanted[0].folder / "checkpoint-last") in wanted[1].command
    assert reproduce.main(two, paths) == 0


def test_a_failure_stops_only_those_that_need_it(paths: LedgerPaths, tmp_path: Path) -> None:
    (tmp_path / "fail").write_text("pretrain")
    first = PrecedingRun(recipe="train/pretrain-demo-tiny.toml")
    both = recipe(LedgerRow(name="a", start="pretrained here", before=(first,)), LedgerRow(name="b", start="random"))
    assert reproduce.main(both, paths) == 3
    assert [(row["state"], row["reasons"][0]) for row in rows(paths)] == [
        ("not run: failed", "failed"),
        ("run", "not published"),
    ]
    entries = [json.loads(line) for line in (paths.out / "timings.jsonl").read_text().splitlines()]
    assert "exit 1: no luck" in {line["error"] for line in entries}
    (tmp_path / "fail").unlink()
    assert reproduce.main(both, paths) == 0


@pytest.mark.slow
def test_runs_on_a_dask_cluster(paths: LedgerPaths, cluster: tuple[str, Any]) -> None:  # noqa: F811
    assert reproduce.main(recipe(), paths, cluster=cluster[0]) == 0
    assert rows(paths)[0]["figures"]["miou"]["values"] == [0.1, 0.2]


# --- what is not there ---------------------------------------------------------------------


def test_rows_without_weights_or_data_have_no_number(paths: LedgerPaths) -> None:
    quoted = {"published": "SpectralGPT+", "protocol": "segmunich-paper"}
    absent = LedgerRow(name="w", start="published", weights="SpectralGPT+.pth", **quoted)
    elsewhere = LedgerRow(
        name="d", start="random", before=(PrecedingRun(recipe="train/pretrain-fmow-base.toml", data="fmow"),)
    )
    assert reproduce.main(recipe(absent, elsewhere), paths) == 0
    weights, data = rows(paths)
    assert [row["state"] for row in (weights, data)] == ["not run: weights absent", "not run: data absent"]
    for row in (weights, data):
        assert (row["figures"]["miou"]["mean"], row["figures"]["miou"]["values"]) == (None, [])
        assert "cost" not in row
    assert weights["weights"]["where"] == "zenodo.org/records/8412455"
    text = (paths.out / "ledger.md").read_text()
    cells = "not run: weights absent | segmunich-paper |  |  |  | weights absent, other data |  |"
    assert f"| w | published | 0.510 | {cells}" in text
    assert "| d | random |  | not run: data absent |  |  |  |  | data absent |  |" in text
    assert "zenodo.org/records/8412455" in (paths.out / "page" / "index.html").read_text()


def test_weights_that_are_put_there_are_run(paths: LedgerPaths) -> None:
    published = recipe(LedgerRow(name="w", start="published", weights="SpectralGPT.pth"))
    paths.weights.mkdir()
    (paths.weights / "SpectralGPT.pth").write_bytes(b"one")
    reproduce.main(published, paths)
    assert len(folders(paths)) == 2
    (paths.weights / "SpectralGPT.pth").write_bytes(b"other")
    reproduce.main(published, paths)
    assert len(folders(paths)) == 4
    with pytest.raises(SettingError, match="'nothing' are not in the fact table"):
        experiments.check(recipe(LedgerRow(name="w", start="published", weights="nothing")))


# --- figures -------------------------------------------------------------------------------


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.21, 0.3, 0.44]
    expected = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert ledger_report.interval(values) == pytest.approx(expected)
    assert ledger_report.interval([0.2]) is None
    by_hand = ledger_report.interval([0.2, 0.3, 0.4]) or (0, 0)
    assert by_hand[0] == pytest.approx(0.3 - 4.302653 * 0.1 / 3**0.5, abs=1e-5)


def test_a_figure_of_one_seed_has_the_interval_of_its_run() -> None:
    one = ledger_report.figure(
        [{"miou": 0.5, "miou_interval": [0.4, 0.6]}], "miou", PublishedFigure(value=0.6, source="")
    )
    assert (one["interval"], one["interval_over"]) == ([0.4, 0.6], "scored samples")
    assert one["gap"] == pytest.approx(-0.1)
    nested = ledger_report.figure([{"best_epoch": {"top1": 0.9}}], "best_epoch.top1", None)
    assert (nested["mean"], nested["interval"], nested["gap"]) == (0.9, None, None)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([0.5, 0.51], [0.3, 0.31], "a beats b on miou: 0.505 (0.441 to 0.569 over 2 seeds) against 0.305"),
        ([0.3, 0.31], [0.5, 0.51], "a does not beat b on miou, because it is worse and the intervals do not overlap"),
        ([0.5, 0.6], [0.4, 0.5], "a does not beat b on miou, because the intervals overlap"),
        ([0.5], [0.4, 0.5], "undecided, because one run has no interval"),
        ([], [0.4, 0.5], "undecided, because a was not run: failed."),
    ],
)
def test_the_sentence_follows_from_the_intervals(ours: list[float], theirs: list[float], expected: str) -> None:
    lines = [
        {
            "name": name,
            "state": "run" if values else "not run: failed",
            "figures": {"miou": ledger_report.figure([{"miou": value} for value in values], "miou", None)},
        }
        for name, values in (("a", ours), ("b", theirs))
    ]
    assert expected in ledger_report.verdict(lines, ("a", "b"), "miou")


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.01, 0.05), "a beats b on miou: +0.030 (+0.010 to +0.050, paired over 40 samples): 0.600 against 0.570."),
        ((-0.01, 0.05), "a does not beat b on miou, because the interval of the difference includes zero, +0.030"),
        ((-0.05, -0.01), "a does not beat b on miou, because it is worse, "),
    ],
)
def test_a_paired_difference_decides_where_single_intervals_overlap(
    interval: tuple[float, float], expected: str
) -> None:
    lines = [
        {"name": name, "state": "run", "figures": {"miou": {"mean": mean, "values": [mean], "interval": [0.5, 0.7]}}}
        for name, mean in (("a", 0.6), ("b", 0.57))
    ]
    known = paired_bootstrap.PairedDifference(difference=0.03, interval=interval, samples=40)
    assert expected in ledger_report.verdict(lines, ("a", "b"), "miou", known)


def test_findings_are_printed_next_to_the_figures_they_affect(paths: LedgerPaths, tmp_path: Path) -> None:
    checks = (
        findings.CheckResult(name="neighbours", state="finding", message="3 patches of val touch train"),
        findings.CheckResult(name="bands", state="pass", message="in order"),
    )
    report = findings.AuditReport(subject="toy 1", kind="shards", samples=6, checks=checks, findings=1)
    shutil.copytree(paths.data["toy"], tmp_path / "toy")
    paths = dataclasses.replace(paths, data={"toy": tmp_path / "toy"})
    reproduce.main(recipe(), paths)
    assert "| not audited |" in (paths.out / "ledger.md").read_text()
    files.write(tmp_path / "audit" / "audit.json", files.pretty_json(dataclasses.replace(report, subject="pairs 1")))
    reproduce.main(recipe(), paths)
    assert "| not audited |" in (paths.out / "ledger.md").read_text()
    files.write(tmp_path / "toy-audit" / "audit.json", files.pretty_json(report))
    reproduce.main(recipe(), paths)
    text = (paths.out / "ledger.md").read_text()
    assert "| not published | neighbours |" in text
    assert "| neighbours | 3 patches of val touch train |" in text


# --- plan, recipes and command line --------------------------------------------------------


def test_the_plan_counts_steps_and_hours(paths: LedgerPaths) -> None:
    lines = list(reproduce.plan(recipe(), paths))
    # Two runs of 4 samples x 1 epoch; 12 multiplications and additions a pixel, three times.
    assert lines[1] == "  a (random): 2 runs, 4 steps, 0.0 min, up to 16 parameters, 0.0 GB on a GPU of 24 GB"
    assert not paths.out.exists()
    work = costs.work(reproduce.possible_runs(recipe(), paths)[0], recipe(), paths)
    assert work == costs.RunCost(parameters=16, steps=2, flops=3 * 2 * 12 * 32**2 * 4)
    nowhere = dataclasses.replace(paths, data={})
    with pytest.raises(SettingError, match="dataset 'toy' is not given"):
        list(reproduce.plan(recipe(), nowhere))
    outlined = dataclasses.replace(recipe(), data={"toy": experiments.DatasetSize(train=4000, classes=4)})
    assert "2 runs, 4,000 steps" in list(reproduce.plan(outlined, nowhere))[1]
    assert "not to be run: data absent" in list(reproduce.plan(outlined, nowhere))[1]


@pytest.mark.parametrize("path", LEDGERS, ids=lambda path: path.stem)
def test_every_ledger_names_recipes_that_can_be_read(path: Path, tmp_path: Path) -> None:
    found = files.read(LedgerRecipe, path)
    experiments.check(found)
    nowhere = LedgerPaths(data={}, out=tmp_path, programs=PROGRAMS)
    for table in found.tables:
        for name in table.quoted:
            assert all(set(each) & set(table.metrics) for each in published_figures.figures(name).values())
        for row in table.rows:
            assert experiments.plan_runs(found, table, row, nowhere)
            assert set(experiments.figures_of(table, row)) & set(table.metrics) or not row.published
            if path.stem == "paper":
                assert {
                    run.data for last in experiments.plan_runs(found, table, row, nowhere) for run in last.chain
                } <= set(found.data)


def test_a_table_is_checked_before_the_first_run(paths: LedgerPaths) -> None:
    twice = recipe(LedgerRow(name="a", start="random"), LedgerRow(name="a", start="random"))
    with pytest.raises(SettingError, match="two rows"):
        reproduce.main(twice, paths)
    with pytest.raises(SettingError, match="compare names"):
        experiments.check(recipe(compare=(("a", "z"),)))
    with pytest.raises(SettingError, match="sead"):
        reproduce.main(recipe(set=("training.sead=1",)), paths)


def test_the_command_line(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = LEDGERS[0]
    assert sgmodel("reproduce", path) == 2
    assert "--shards" in capsys.readouterr().err
    assert sgmodel("reproduce") == 0
    assert "city: " in capsys.readouterr().out
    with pytest.raises(SettingError):
        files.read(LedgerRecipe, path, ["seds=[1]"])
    (tmp_path / "l.toml").write_bytes(files.toml(recipe(LedgerRow(name="a", start="random"), data="elsewhere")))
    out = tmp_path / "out"
    assert sgmodel("reproduce", tmp_path / "l.toml", "--shards", shards, "--out", out) == 0
    document = json.loads((out / "ledger.json").read_text())
    assert document["tables"][0]["rows"][0]["state"] == "not run: data absent"
    assert contracts.read(shards).dataset == "toy"
    assert [block.title for block in shown.build_blocks(document)] == ["T"]
