"""Test splits by ground: blocks dealt whole, gaps, nested label budgets, and the table that holds them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sgdata import package_data
from sgdata.audits import collect_evidence, draw_splits
from sgdata.cli import app
from sgdata.errors import SettingError
from sgdata.packing import select_samples, split_lists
from sgdata.shards import shard_index
from sgdata.splits import ground_distance, ground_splits, split_table
from sgdata.splits.ground_distance import SampleGround
from sgdata.splits.ground_splits import DrawSettings
from sgdata.types import Array
from tests import synthetic

OF_RGB = ("--dataset", "eurosat", "--edition", "rgb")
SHIPPED = package_data.folder("catalogs") / "splits" / "eurosat.tsv.gz"


def country(count: int, seed: int, *, south: float = 46, west: float = 5, side: float = 4) -> SampleGround:
    rng = np.random.default_rng(seed)
    return SampleGround(
        latitude=south + side * rng.random(count),
        longitude=west + side * rng.random(count),
        size_m=rng.choice([300.0, 640.0, 1200.0], (count, 1)) * np.ones((1, 2)),
    )


def drawn(count: int = 1500, number: int = 0, **changes: object) -> tuple[SampleGround, Array, ground_splits.Draw]:
    place, labels = country(count, seed=1), np.random.default_rng(2).integers(0, 4, count)
    keys = [f"it_{at}" for at in range(count)]
    return place, labels, ground_splits.draw(place, keys, labels, DrawSettings(**changes), number)  # type: ignore[arg-type]


# --- distances -----------------------------------------------------------------------------


def test_the_nearest_is_that_of_all_pairs() -> None:
    for seed, (south, west) in enumerate(((46, 5), (-3, 178), (68, 20), (-45, -72))):
        of, to = country(60, seed, south=south, west=west), country(90, seed + 9, south=south, west=west)
        to.longitude[:] = (to.longitude + 180) % 360 - 180  # beyond 180 degrees east it is west
        pairs = np.array([ground_distance.between(of[np.full(90, i)], to) for i in range(60)])
        metres, index = ground_distance.nearest(of, to)
        np.testing.assert_allclose(metres, pairs.min(axis=1))
        np.testing.assert_allclose(pairs[np.arange(60), index], metres)


def test_large_samples_are_found_behind_many_small_ones() -> None:
    small = SampleGround(latitude=50 + np.arange(1, 40) * 1e-4, longitude=np.full(39, 9.0), size_m=np.ones((39, 2)))
    large = SampleGround(latitude=np.array([50.06]), longitude=np.array([9.0]), size_m=np.full((1, 2), 13_400.0))
    to = SampleGround(
        latitude=np.append(small.latitude, large.latitude),
        longitude=np.append(small.longitude, large.longitude),
        size_m=np.concatenate([small.size_m, large.size_m]),
    )
    metres, index = ground_distance.nearest(small[np.array([0])], to[np.arange(1, 40)])
    assert (metres[0], index[0]) == (0, 38)


@pytest.mark.parametrize("latitude", [0.0, 44.0, 65.0])
def test_distances_are_those_of_the_ellipsoid(latitude: float) -> None:
    from pyproj import Geod

    geod = Geod(ellps="WGS84")
    for azimuth, metres in ((0, 700), (90, 700), (90, 20_000), (180, 5_000)):
        longitude, north, _ = geod.fwd(12.0, latitude, azimuth, metres)
        one, other = (
            SampleGround(latitude=np.array([at]), longitude=np.array([on]), size_m=np.full((1, 2), 100.0))
            for at, on in ((latitude, 12.0), (north, longitude))
        )
        assert ground_distance.between(one, other)[0] == pytest.approx(metres - 100, abs=0.2 + 2e-5 * metres)


# --- draws ---------------------------------------------------------------------------------


def test_blocks_are_dealt_whole_and_parts_keep_the_gap() -> None:
    place, _, it = drawn(block_m=40_000, gap_m=1_500)
    blocks = [tuple(row) for row in ground_splits.block_indices(place, 40_000).tolist()]
    for block in set(blocks):
        assert len({part for part, at in zip(it.parts, blocks, strict=True) if at == block and part}) <= 1
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        metres, _ = ground_distance.nearest(place[it.parts == one], place[it.parts == other])
        assert metres.min() >= 1_500
    # What is left out is near another part.
    out = np.flatnonzero(it.parts == "")
    assert len(out)
    metres, _ = ground_distance.nearest(place[out], place[np.isin(it.parts, ("val", "test"))])
    assert metres.max() < 1_500


@pytest.mark.parametrize("south", [0.0, 45.0, 69.0])
def test_blocks_are_as_wide_as_high_from_the_equator_to_the_north(south: float) -> None:
    place = country(20_000, seed=3, south=south)
    members = ground_splits.block_indices(place, 50_000)
    sides = []
    for block in np.unique(members, axis=0):
        chosen = place[(members == block).all(axis=1)]
        ends = [np.percentile([chosen.longitude, chosen.latitude], share, axis=1)[:, None] for share in (0, 100)]
        low, high = (SampleGround(longitude=x, latitude=y, size_m=np.zeros((1, 2))) for x, y in ends)
        sides.append(ground_distance.offsets(low, high)[0])
    # Full blocks reach 50 km both ways, and the ones at the edge of the area less.
    assert np.percentile(sides, 75, axis=0) == pytest.approx(49_000, rel=0.05), sides


def test_budgets_are_nested_and_of_each_class() -> None:
    _, labels, it = drawn(block_m=30_000, gap_m=0, budgets=("5", "20", "100", "10%", "100%"))
    train = it.parts == "train"
    assert (it.budgets[~train] == -1).all()
    assert (it.budgets[train] >= 0).all()
    for label in range(4):
        numbers = it.budgets[train & (labels == label)]
        sizes = [int((numbers <= budget).sum()) for budget in range(5)]
        # 10 % of some 200 are fewer than 100, which a larger budget must contain.
        assert sizes == [5, 20, 100, 100, len(numbers)]
    _, _, few = drawn(block_m=30_000, gap_m=0, budgets=("10%", "50%"))
    for label in range(4):
        numbers = few.budgets[train & (labels == label)]
        assert abs((numbers == 0).sum() - 0.1 * len(numbers)) <= 0.5
        assert abs((numbers >= 0).sum() - 0.5 * len(numbers)) <= 0.5


def test_the_first_of_a_budget_are_those_that_shots_select() -> None:
    from sgmodel.data.subset import in_order

    _, labels, it = drawn(block_m=30_000, number=3)
    train = np.flatnonzero(it.parts == "train")
    order = [train[at] for at in in_order([f"it_{at}" for at in train], seed=3)]
    for label in range(4):
        first = [at for at in order if labels[at] == label][:20]
        assert set(np.flatnonzero(np.isin(it.budgets, (0, 1)) & (labels == label)).tolist()) == set(first)


def test_a_draw_depends_on_its_number_and_not_on_the_order_of_the_samples() -> None:
    place, labels, it = drawn()
    assert (drawn(number=1)[2].parts != it.parts).any()
    order = np.random.default_rng(0).permutation(len(labels))
    again = ground_splits.draw(place[order], [f"it_{at}" for at in order], labels[order], DrawSettings(), 0)
    np.testing.assert_array_equal(again.parts, it.parts[order])
    np.testing.assert_array_equal(again.budgets, it.budgets[order])


def test_settings_that_leave_a_part_empty_are_refused() -> None:
    with pytest.raises(SettingError, match="1 blocks of 5e\\+07 m leave .* empty; choose smaller blocks"):
        drawn(block_m=5e7)
    with pytest.raises(SettingError, match="expected shares that leave something to train"):
        drawn(val_share=0.6, test_share=0.6)
    for budget in ("0", "ten", "120%", "-3", "1.5"):
        with pytest.raises(SettingError, match="expected a number per class such as 20, or a share: 10%"):
            DrawSettings(budgets=(budget,))


# --- the table -----------------------------------------------------------------------------


def test_a_table_is_read_as_it_was_written_and_equal_tables_are_equal_files(tmp_path: Path) -> None:
    keys = ("it_10", "it_9", "it_2", "other")
    header = split_table.SplitTableHeader(format=1, dataset="eurosat", settings=DrawSettings(budgets=("1", "100%")))
    table = split_table.SplitTable(header=header, keys=keys, columns={"ground-0": ("1", "100%", "val", "")})
    split_table.write(tmp_path / "a.tsv.gz", table)
    back = split_table.read(tmp_path / "a.tsv.gz")
    assert back.keys == ("it_2", "it_9", "it_10", "other")
    assert back.assignment("ground-0") == {
        "it_2": ("val", ()), "it_9": ("train", ("100%",)), "it_10": ("train", ("1", "100%")),
    }  # fmt: skip
    split_table.write(tmp_path / "b.tsv.gz", back)
    assert (tmp_path / "a.tsv.gz").read_bytes() == (tmp_path / "b.tsv.gz").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "cannot be read as a split table"),
        (gzip.compress(b"hello", mtime=0), "not a split table; expected a line of JSON"),
        (gzip.compress(b"{\nname\n", mtime=0), "the first line is no JSON"),
        (gzip.compress(b'{"format":2}\nname\n', mtime=0), "not a split table of format 1"),
        (gzip.compress(b'{"format":1,"dataset":3}\nname\n', mtime=0), "dataset"),
        (gzip.compress(b'{"format":1,"dataset":"a","settings":{}}\nname\tg\nb\tVAL\n', mtime=0), "line 3 is .b.tVAL."),
        (
            gzip.compress(b'{"format":1,"dataset":"a","settings":{}}\nname\tg\nb\tval\nb\tval\n', mtime=0),
            "occurs twice",
        ),
        (gzip.compress(b'{"format":1,"dataset":"a","settings":{}}\nname\tg\nb\tval\n', mtime=0)[:-9], "cannot be read"),
    ],
)
def test_what_is_no_table_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "it.tsv.gz").write_bytes(content)
    with pytest.raises(SettingError, match=message):
        split_table.read(tmp_path / "it.tsv.gz")


def test_one_command_draws_and_another_packs_by_the_table(tmp_path: Path) -> None:
    source = synthetic.eurosat_rgb(tmp_path / "source", each=12)
    places = ["--coordinates", str(source / "coordinates.tsv")]
    (tmp_path / "lists").mkdir()
    for split, numbers in (("train", range(1, 9)), ("val", range(9, 13))):
        names = [f"tif/River/River_{n}.tif 8\ntif/AnnualCrop/AnnualCrop_{n}.tif 0\n" for n in numbers]
        (tmp_path / "lists" / f"spectralgpt_{split}.txt").write_text("".join(names))
    table = tmp_path / "lists" / "eurosat.tsv.gz"
    words = ["draw-splits", str(source), *OF_RGB, *places, "--out", str(table), "--splits", str(tmp_path / "lists")]
    words += ["--block", "12000", "--gap", "500", "--budget", "1", "--budget", "100%", "--draws", "2", "--seed", "4"]
    words += ["--val-share", "0.25", "--test-share", "0.25"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    first = table.read_bytes()
    made = split_table.read(table)
    assert list(made.columns) == ["ground-0", "ground-1"]
    assert made.header.settings == DrawSettings(
        block_m=12_000, gap_m=500, val_share=0.25, test_share=0.25, draws=2, seed=4, budgets=("1", "100%")
    )
    known = {(each.name, each.split): each.samples for each in made.header.published}
    assert known == {("spectralgpt", "train"): 16, ("spectralgpt", "val"): 8}
    assert b"tif/River" not in gzip.decompress(first)
    CliRunner().invoke(app, words)
    assert table.read_bytes() == first, "same inputs, same bytes"

    for name in made.columns:
        words = ["shard", "eurosat", "--edition", "rgb", "--source", str(source), *places, "--split", name]
        words += ["--splits", str(tmp_path / "lists")]
        done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        rows = shard_index.read_index(tmp_path / name).to_pylist()
        held = {row["key"]: (row["split"], tuple(row["budgets"] or ())) for row in rows}
        assert held == made.assignment(name)
        assert {len(budgets) for split, budgets in held.values() if split == "train"} == {1, 2}
    words = ["shard", "eurosat", "--edition", "rgb", "--source", str(source), *places, "--split", "spectralgpt"]
    words += ["--splits", str(tmp_path / "lists")]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "published")])
    assert done.exit_code == 0, done.output
    assert {row["split"] for row in shard_index.read_index(tmp_path / "published").to_pylist()} == {"train", "val"}


def test_lists_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    source = synthetic.eurosat_rgb(tmp_path / "source")
    recipe = select_samples.recipe_for("eurosat", ["edition=rgb", "splits=spectralgpt"])
    for split in ("train", "val"):
        (tmp_path / f"spectralgpt_{split}.txt").write_text(f"River_{len(split)}\n")
    from sgdata.datasets import eurosat

    with pytest.raises(SettingError, match="1 samples that are not those of the published list 'spectralgpt' train"):
        select_samples.list_samples(recipe, source, eurosat.list_samples, select_samples.SampleInputs(splits=tmp_path))
    (tmp_path / "spectralgpt_val.txt").unlink()
    with pytest.raises(SettingError, match="lacks a list of 'spectralgpt': spectralgpt_train.txt, spectralgpt_val.txt"):
        select_samples.list_samples(recipe, source, eurosat.list_samples, select_samples.SampleInputs(splits=tmp_path))
    with pytest.raises(SettingError, match="no such folder; give the folder of the lists"):
        select_samples.list_samples(
            recipe, source, eurosat.list_samples, select_samples.SampleInputs(splits=tmp_path / "official")
        )
    unknown = select_samples.recipe_for("eurosat", ["edition=rgb", "splits=ground-9"])
    with pytest.raises(SettingError, match="known: random, spatial, spectralgpt, ground-0, .*ground-4"):
        select_samples.list_samples(unknown, source, eurosat.list_samples)


@pytest.mark.parametrize("name", ["bigearthnet", "fmow"])
def test_datasets_with_their_own_georeference(name: str, tmp_path: Path) -> None:
    source = synthetic.bigearthnet_v1(tmp_path, count=9) if name == "bigearthnet" else synthetic.fmow(tmp_path)
    located = draw_splits.locate(collect_evidence.detect_subject(source, dataset=name, split=""))
    assert len(located.keys) == len(located.ground) >= 6
    if name == "bigearthnet":  # patches of 1200 m side by side
        order = np.argsort(located.ground.longitude)
        one, other = located.ground[order[:-1]], located.ground[order[1:]]
        assert ground_distance.offsets(one, other)[:, 0] == pytest.approx(1200, rel=2e-3)
        assert ground_distance.between(one, other) == pytest.approx(0, abs=3)


def test_a_dataset_without_coordinates_is_refused(tmp_path: Path) -> None:
    source = synthetic.eurosat_rgb(tmp_path / "source")
    done = CliRunner().invoke(app, ["draw-splits", str(source), *OF_RGB, "--out", str(tmp_path / "it.tsv.gz")])
    assert done.exit_code != 0
    assert "6 of 6 samples have no coordinates, such as 'AnnualCrop_1'" in str(done.exception or done.output)


# --- the shipped table ---------------------------------------------------------------------


def test_the_shipped_table_of_eurosat() -> None:
    assert SHIPPED.stat().st_size <= 500_000
    table = split_table.read(SHIPPED)
    counts = {row["class"]: int(row["total"]) for row in package_data.table("eurosat_class_counts")}
    assert set(table.keys) == {f"{name}_{n}" for name, total in counts.items() for n in range(1, total + 1)}
    assert table.header.settings == DrawSettings()
    assert [(each.name, each.split, each.samples) for each in table.header.published] == [
        ("spectralgpt", "train", 16_200), ("spectralgpt", "val", 5_400),
    ]  # fmt: skip
    for name in table.columns:
        assigned = table.assignment(name)
        for label in counts:
            of_class = {key: it for key, it in assigned.items() if key.rpartition("_")[0] == label}
            sizes = [sum(budget in budgets for _, budgets in of_class.values()) for budget in ("5", "20", "100")]
            assert sizes == [5, 20, 100]
            shares = [sum(split == part for split, _ in of_class.values()) for part in ("train", "val", "test")]
            assert np.array(shares) / sum(shares) == pytest.approx((0.6, 0.2, 0.2), abs=0.04), (name, label)
    # No coordinates, and nothing of the published lists but counts and digests.
    text = gzip.decompress(SHIPPED.read_bytes()).decode()
    assert set(text.split("\n", 2)[1].split("\t")) == {"name", *table.columns}
    assert {cell for line in text.splitlines()[2:] for cell in line.split("\t")[1:]} <= {
        "", "val", "test", *DrawSettings.budgets,
    }  # fmt: skip
    assert len(json.dumps(text.splitlines()[0])) < 800


def test_the_published_lists_are_those_of_the_digests(real: Path) -> None:
    table = split_table.read(SHIPPED)
    lists = {split: real / "eurosat_rgb" / f"spectralgpt_{split}.txt" for split in ("train", "val")}
    split_lists.check_published(lists, "spectralgpt", table.header.published)
    with pytest.raises(SettingError):
        split_lists.check_published({"val": lists["train"]}, "spectralgpt", table.header.published)


@pytest.mark.slow
def test_the_shipped_table_is_made_again_and_keeps_its_gap(real: Path, tmp_path: Path) -> None:
    folder = real / "eurosat_rgb"
    words = ["draw-splits", str(folder / "EuroSAT_RGB.zip"), *OF_RGB, "--coordinates", str(folder / "coordinates.tsv")]
    done = CliRunner().invoke(app, [*words, "--splits", str(folder), "--out", str(tmp_path / "it.tsv.gz")])
    assert done.exit_code == 0, done.output
    assert gzip.decompress((tmp_path / "it.tsv.gz").read_bytes()) == gzip.decompress(SHIPPED.read_bytes())
    table = split_table.read(SHIPPED)
    rows = {row["name"].rpartition("/")[2]: row for row in package_data.read_table(folder / "coordinates.tsv")}
    degrees = np.array([[float(rows[key][name]) for name in ("latitude", "longitude")] for key in table.keys])
    place = SampleGround(latitude=degrees[:, 0], longitude=degrees[:, 1], size_m=np.full((len(degrees), 2), 640.0))
    for cells in table.columns.values():
        held, train = np.isin(cells, ("val", "test")), np.isin(cells, DrawSettings.budgets)
        assert ground_distance.nearest(place[held], place[train])[0].min() > 1_999


# --- neighbours and overlaps ---------------------------------------------------------------


def squares(east_m: list[float], north_m: list[float], side: float = 640.0) -> SampleGround:
    """Return squares at offsets in metres from 46 N, 11 E."""
    per_degree = np.array([77_473.0, 111_163.0])
    return SampleGround(
        longitude=11 + np.array(east_m) / per_degree[0],
        latitude=46 + np.array(north_m) / per_degree[1],
        size_m=np.full((len(east_m), 2), side),
    )


def test_side_by_side_is_neither_diagonal_nor_across_a_gap() -> None:
    of = squares([650, 650, 0, 760, 0], [0, 650, -660, 0, 30])
    assert ground_distance.side_by_side(of, squares([0], [0])).tolist() == [True, False, True, False, True]


def test_overlaps_are_the_share_of_the_smaller_footprint() -> None:
    ground = squares([0, 320, 640.5, 5_000], [0, 0, 0, 0])
    pairs, share = ground_distance.overlapping(ground)
    found = {tuple(pair): round(each, 2) for pair, each in zip(np.sort(pairs).tolist(), share.tolist(), strict=True)}
    assert found == {(0, 1): 0.5, (1, 2): 0.5}
    inner = SampleGround(latitude=np.array([46.0, 46.0]), longitude=np.array([11.0, 11.001]), size_m=np.array([[1200.0] * 2, [100.0] * 2]))  # fmt: skip # noqa: E501
    assert ground_distance.overlapping(inner)[1].tolist() == pytest.approx([1.0])


def test_an_audit_counts_neighbours_and_overlaps_of_a_published_split(tmp_path: Path) -> None:
    source = synthetic.eurosat_rgb(tmp_path / "source")
    # A row of images 650 m apart, the last of which covers half of the one before.
    keys = [f"{name}_{n}" for name in ("AnnualCrop", "River") for n in (1, 2, 3)]
    places = squares([0, 650, 1_300, 1_950, 2_600, 2_920], [0] * 6)
    rows = [f"{key}\t{places.latitude[at]}\t{places.longitude[at]}" for at, key in enumerate(keys)]
    (tmp_path / "it.tsv").write_text("\n".join(["name\tlatitude\tlongitude", *rows]) + "\n")
    (tmp_path / "eurosat-train.txt").write_text("AnnualCrop_1\nAnnualCrop_3\nRiver_2\n")
    (tmp_path / "eurosat-val.txt").write_text("AnnualCrop_2\nRiver_3\n")
    (tmp_path / "eurosat-test.txt").write_text("River_1\n")
    words = [
        "audit",
        str(source),
        "--dataset",
        "eurosat",
        "--edition",
        "rgb",
        "--coordinates",
        str(tmp_path / "it.tsv"),
    ]
    words += ["--split", "random", "--splits", str(tmp_path)]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 3, done.output
    by_name = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    shares = {"train to test": 1.0, "train to val": 1.0, "test to val": 0.0}
    assert by_name["side by side"]["figures"]["shares"] == shares
    assert by_name["side by side"]["figures"]["samples"] == 3
    overlap = by_name["overlapping footprints"]
    assert overlap["figures"] == {"pairs": 1, "samples": 2, "pairs_across_splits": 1}
    assert by_name["distance between splits"]["figures"]["train to val"]["nearest_m"] < 20


def test_overlaps_within_a_split_are_counted_and_no_finding(tmp_path: Path) -> None:
    source = synthetic.eurosat_rgb(tmp_path / "source", classes=("River",), each=2)
    (tmp_path / "it.tsv").write_text("name\tlatitude\tlongitude\nRiver_1\t44\t20\nRiver_2\t44.003\t20\n")
    inputs = select_samples.SampleInputs(coordinates=tmp_path / "it.tsv")
    from sgdata.audits import checks

    subject = collect_evidence.detect_subject(source, dataset="eurosat", edition="rgb", split="", inputs=inputs)
    by_name = {check.name: check for check in checks.run_checks(collect_evidence.collect_evidence(subject)).checks}
    assert by_name["overlapping footprints"].state == "pass"
    assert by_name["overlapping footprints"].figures["pairs"] == 1
    assert by_name["side by side"].state == "not applicable"
