"""Test shards of images and pairs of one's own, from a table with a row a sample."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from typer.testing import CliRunner

from sgdata import files, output_names, verification
from sgdata.cli import app
from sgdata.datasets import cards
from sgdata.errors import ExitCode, SettingError, SourceError
from sgdata.packing import pack
from sgdata.rasters import grids
from sgdata.releases import release_content
from sgdata.releases.release_content import ReleaseRequest
from sgdata.shards import contracts, tar_format
from sgdata.types import Grid, Sample
from sgmodel.data import loader, windows

BANDS = ("B02", "B03", "B04", "B08")
UTM, MERCATOR = "EPSG:32633", "EPSG:3857"
# Of Web Mercator at 48 degrees of latitude: pixels of 10 on the map are 6.7 m on the ground.
ORIGIN = {UTM: (500_000, 5_300_000), "EPSG:32632": (500_000, 5_300_000), MERCATOR: (1_740_000, 6_106_000)}
Rows = list[dict[str, Any]]


def raster(path: Path, pixels: np.ndarray, *, crs: str = UTM, shift: float = 0, **profile: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    count, height, width = pixels.shape
    size = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype.name}
    west, north = ORIGIN[crs]
    place = rasterio.transform.from_origin(west + shift, north, 10, 10)
    with rasterio.open(path, "w", crs=crs, transform=place, **size, **profile) as target:
        target.write(pixels)
    return f"{path.parent.name}/{path.name}"


def image(number: int, shape: tuple[int, int], bands: int = 4) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(100, 3000, (bands, *shape)).astype(np.uint16)


def pairs(folder: Path, sizes: Sequence[tuple[int, int]] = ((20, 12), (9, 31), (16, 16)), crs: str = UTM) -> Rows:
    """Write pairs of these sizes with a mask of what changed, side by side, and return their rows."""
    rows = []
    for number, shape in enumerate(sizes):
        place = {"crs": crs, "shift": 1000.0 * number}
        mask = np.zeros((1, *shape), np.uint8)
        mask[0, :3, :5] = 7
        rows.append(
            {
                "key": f"site-{number}",
                "before": raster(folder / "2019" / f"{number}.tif", image(number, shape), **place),
                "after": raster(folder / "2020" / f"{number}.tif", image(number + 50, shape), **place),
                "mask": raster(folder / "masks" / f"{number}.tif", mask, **place),
                "split": "train" if number else "test",
                "date": f"2019-09-{number + 1:02}",
            }
        )
    return rows


def write(folder: Path, rows: Rows, kind: str = "csv", **document: Any) -> Path:
    """Write a table of rows and, unless the columns state everything, the document that names it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), table)
    elif kind == "csv":
        with table.open("w", newline="") as out:
            writer = csv.DictWriter(out, names)
            writer.writeheader()
            writer.writerows(rows)
    else:
        document["samples"] = rows
    if not document:
        return table
    if kind != "toml":
        document["table"] = table.name
    path = folder / "samples.toml"
    path.write_bytes(files.toml(document))
    return path


DOCUMENT = {"bands": list(BANDS), "level": "L2A", "nodata": 0, "name": "mine"}


def by_key(out: Path) -> dict[str, Sample]:
    return {sample.key: sample for sample in tar_format.samples(out)}


def reasons(out: Path) -> str:
    return "\n".join(json.loads(line)["reason"] for line in (out / output_names.QUARANTINE).read_text().splitlines())


# --- what becomes of good rows -------------------------------------------------------------


def test_pairs_of_any_size_become_shards_with_what_the_table_says(tmp_path: Path) -> None:
    rows = pairs(tmp_path)
    result = pack.pack("pairs", source=write(tmp_path, rows, **DOCUMENT), out=tmp_path / "out")
    assert result.complete
    assert result.contract.splits == {"test": 1, "train": 2}
    assert (result.contract.version, result.contract.nodata, result.contract.shape) == ("mine", 0, None)
    assert [band.name for band in result.contract.bands] == list(BANDS)
    assert verification.verify(tmp_path / "out") == []
    sample = by_key(tmp_path / "out")["site-1"]
    assert sample.meta["date"] == "2019-09-02"
    assert sample.meta["crs"] == UTM
    assert 14.9 < sample.meta["bounds"][0] < sample.meta["bounds"][2] < 15.1
    for name, year in (("image_before", 2019), ("image_after", 2020)):
        with rasterio.open(tmp_path / str(year) / "1.tif") as source:
            np.testing.assert_array_equal(sample.arrays[name], source.read())
    expected = np.zeros((9, 31), np.uint8)
    expected[:3, :5] = 1  # a change is any value above 0
    np.testing.assert_array_equal(sample.arrays["mask"], expected)


@pytest.mark.parametrize("kind", ["csv", "parquet", "toml"])
def test_kind_of_table_and_order_of_rows_change_no_byte(tmp_path: Path, kind: str) -> None:
    rows = pairs(tmp_path)
    rows.append({**rows[0], "key": "gone", "before": "2019/no.tif"})
    rows.append({**rows[1], "split": "test"})  # a repeated key
    sums = set()
    for turn, ordered in enumerate((rows, rows[::-1], rows[2:] + rows[:2])):
        source = write(tmp_path, ordered, kind, **DOCUMENT)
        pack.pack("pairs", source=source, out=tmp_path / f"out-{turn}")
        sums.add((tmp_path / f"out-{turn}" / output_names.SUMS).read_bytes())
    assert len(sums) == 1
    pack.pack("pairs", source=write(tmp_path, rows, "csv", **DOCUMENT), out=tmp_path / "as-csv")
    assert sums == {(tmp_path / "as-csv" / output_names.SUMS).read_bytes()}


def test_columns_state_what_the_document_would(tmp_path: Path) -> None:
    rows = pairs(tmp_path)
    alone = [{**row, "bands": " ".join(BANDS), "level": "L2A", "nodata": 0} for row in rows]
    pack.pack("pairs", source=write(tmp_path, alone), out=tmp_path / "alone")
    pack.pack("pairs", source=write(tmp_path, rows, **DOCUMENT), out=tmp_path / "named")
    ours, theirs = contracts.read(tmp_path / "alone"), contracts.read(tmp_path / "named")
    assert ours.fingerprint == theirs.fingerprint
    assert contracts.find_differences(ours, theirs, "resume") == ["version"]
    assert ours.version == "rows"


def test_bands_are_read_by_name_from_files_that_name_them_in_any_order(tmp_path: Path) -> None:
    pixels = image(1, (8, 8))
    rows = [
        {"key": f"s{i}", "image": raster(tmp_path / "in" / f"{i}.tif", pixels[order], shift=500 * i), "bands": bands}
        for i, (order, bands) in enumerate(
            [([0, 1, 2, 3], "B02 B03 B04 B08"), ([3, 0, 1, 2], "B08,B02,B03,B04"), ([2, 1, 0, 3], "B04 B03 B02 B08")]
        )
    ]
    with rasterio.open(tmp_path / "in" / "2.tif", "r+") as file:
        file.descriptions = ("B4", "B3", "B2", "B8")
    del rows[2]["bands"]  # said by the file itself
    rows[2]["bands"] = ""
    pack.pack("images", source=write(tmp_path, rows, level="L1C"), out=tmp_path / "out")
    for sample in by_key(tmp_path / "out").values():
        np.testing.assert_array_equal(sample.arrays["image"], pixels)


def test_a_table_named_as_the_edition_of_a_card_keeps_its_bands(tmp_path: Path) -> None:
    bands = ("B10", "B03", "B02")
    pixels = image(1, (5, 7), bands=3)
    rows: Rows = [{"key": "a", "image": raster(tmp_path / "in" / "a.tif", pixels)}]
    source = write(tmp_path, rows, name="table", bands=list(bands), level="L1C")
    contract = pack.pack("images", source=source, out=tmp_path / "out").contract
    assert [band.name for band in contract.bands] == ["B02", "B03", "B10"]
    np.testing.assert_array_equal(by_key(tmp_path / "out")["a"].arrays["image"], pixels[[2, 1, 0]])


def test_masks_of_images_are_classes_and_rows_without_are_unlabelled(tmp_path: Path) -> None:
    mask = np.array([[[0, 1, 1, 9]]], np.uint8)
    rows = [
        {"key": "a", "image": raster(tmp_path / "in" / "a.tif", image(1, (1, 4))), "mask": ""},
        {"key": "b", "image": raster(tmp_path / "in" / "b.tif", image(2, (1, 4)), shift=500)},
    ]
    rows[1]["mask"] = raster(tmp_path / "in" / "b-mask.tif", mask, shift=500)
    source = write(tmp_path, rows, **DOCUMENT, classes=["land", "water"], ignore=9)
    result = pack.pack("images", source=source, out=tmp_path / "out")
    space = result.contract.label_space
    assert (space.task, space.names, space.ignore) == ("segmentation", ("land", "water"), 9)
    arrays = {key: sample.arrays["mask"].tolist() for key, sample in by_key(tmp_path / "out").items()}
    assert arrays == {"a": [[9, 9, 9, 9]], "b": [[0, 1, 1, 9]]}


def test_labels_of_whole_images_are_names(tmp_path: Path) -> None:
    kinds = ("mill", "bog", "mill")
    rows: Rows = [
        {"image": raster(tmp_path / "in" / f"s{i}.tif", image(i, (6, 6)), shift=500 * i), "label": kind}
        for i, kind in enumerate(kinds)
    ]
    result = pack.pack("images", source=write(tmp_path, rows, **DOCUMENT), out=tmp_path / "out")
    assert result.contract.label_space.names == ("bog", "mill")
    assert {key: sample.meta["labels"] for key, sample in by_key(tmp_path / "out").items()} == {
        "s0": [1], "s1": [0], "s2": [1]
    }  # fmt: skip


def test_no_data_is_marked_by_the_files_or_stated(tmp_path: Path) -> None:
    pixels = image(1, (6, 6))
    pixels[:, 0, 0] = 65_535
    pixels[:, 1, 1] = 9
    rows: Rows = [{"key": "a", "image": raster(tmp_path / "in" / "a.tif", pixels, nodata=65_535), "nodata": 9}]
    source = write(tmp_path, rows, bands=list(BANDS), level="L2A")
    contract = pack.pack("images", source=source, out=tmp_path / "out").contract
    found = by_key(tmp_path / "out")["a"].arrays["image"]
    assert contract.nodata == 9
    assert (found == 9).all(axis=0).nonzero() == (pytest.approx([0, 1]), pytest.approx([0, 1]))


def test_the_ground_size_of_a_web_mercator_grid_is_stated_and_recorded(tmp_path: Path) -> None:
    rows = pairs(tmp_path, crs=MERCATOR)
    with pytest.raises(
        SourceError, match=r"0\.tif: pixels are 6\.69 m on the ground, expected 10; state gsd_m = 6\.69"
    ):
        pack.pack("pairs", source=write(tmp_path, rows, **DOCUMENT), out=tmp_path / "out")
    source = write(tmp_path, rows, **DOCUMENT, gsd_m=6.6)
    contract = pack.pack("pairs", source=source, out=tmp_path / "out").contract
    assert (contract.gsd_m, contract.pixel_m) == (6.6, 6.6)
    assert contracts.read(tmp_path / "out").gsd_m == 6.6
    with pytest.raises(SourceError, match=r"pixels are 6\.69 m on the ground, expected 6;"):
        pack.pack("pairs", source=write(tmp_path, rows, **DOCUMENT, gsd_m=6.0), out=tmp_path / "other")


@pytest.mark.parametrize(
    ("crs", "side", "ground"),
    [("EPSG:32633", 10, 10), ("EPSG:3857", 10, 10 * np.cos(np.radians(47.9))), ("EPSG:4326", 1e-4, 9.11),
     ("EPSG:2225", 30, 30 * 1200 / 3937)],
)  # fmt: skip
def test_pixels_are_measured_on_the_ground(crs: str, side: float, ground: float) -> None:
    origin = {"EPSG:3857": (1_740_000, 6_090_000), "EPSG:4326": (15, 48), "EPSG:2225": (6_561_666, 2_000_000)}
    grid = Grid(crs=crs, origin=origin.get(crs, (500_000, 5_300_000)), gsd_m=side, shape=(2, 2))
    assert grids.ground_size_m(grid) == pytest.approx(ground, rel=0.005)


# --- rows that cannot be used --------------------------------------------------------------


def faulty(folder: Path, fault: str) -> Rows:
    """Return three rows of which the first has a fault."""
    rows = pairs(folder)
    first = rows[0]
    shape = (20, 12)
    match fault:
        case "missing":
            first["after"] = "2020/none.tif"
        case "other CRS":
            raster(folder / "2020" / "0.tif", image(3, shape), crs="EPSG:32632")
        case "mask of another size":
            raster(folder / "masks" / "0.tif", np.zeros((1, 21, 12), np.uint8))
        case "repeated key":
            rows.append({**rows[1], "key": "site-0"})
        case "truncated":
            path = folder / "2020" / "0.tif"
            path.write_bytes(path.read_bytes()[:-300])
        case "reflectance":
            raster(folder / "2020" / "0.tif", (image(3, shape) / 1e4).astype(np.float32))
        case "bands":
            raster(folder / "2020" / "0.tif", image(3, shape, bands=3))
        case "two masks":
            raster(folder / "masks" / "0.tif", np.zeros((2, *shape), np.uint8))
        case _:
            name, value = fault.split("=")
            first[name] = value
    return rows


FAULTS = {
    "missing": "row 'site-0': no file 2020/none.tif",
    "other CRS": "2020/0.tif: (20, 12) at 500000, 5.3e+06 is another grid than that of 2019/0.tif: CRS is EPSG:32632",
    "mask of another size": "masks/0.tif: (21, 12) at 500000, 5.3e+06 is another grid",
    "repeated key": "row 'site-0': 2 rows have this key, expected one",
    "truncated": "window (0, 0, 20, 12) cannot be read",
    "reflectance": "0.tif: floating-point values up to 0.3, expected digital numbers; convert it: gdal_translate",
    "bands": "0.tif: has 3 bands, expected B02 B03 B04 B08",
    "two masks": "0.tif: mask has 2 bands, expected one of class ids",
    "level=L3": "row 'site-0': level is 'L3': expected one of L1C, L2A",
    "level=L1C": "row 'site-0': level is L1C, that of most rows is L2A",
    "bands=B02 B99": "row 'site-0': bands B99 are unknown",
    "bands=B02 B02 B03 B04": "expected each once",
    "bands=B01 B03 B04 B08": "bands is B01 B03 B04 B08, that of most rows is B02 B03 B04 B08",
    "nodata=none": "row 'site-0': nodata is 'none', expected a number",
    "date=30.6.2021": "row 'site-0': date is '30.6.2021', expected a day such as 2021-06-30",
    "before=": "row 'site-0': no path under before",
    "key=a/b": "key 'a/b': expected 1 to 80 of the characters",
    "gsd_m=20": "row 'site-0': gsd_m is 20.0, that of most rows is None",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_with_a_fault_is_named_and_the_others_are_packed(tmp_path: Path, fault: str) -> None:
    source = write(tmp_path, faulty(tmp_path, fault), **DOCUMENT)
    result = pack.pack("pairs", source=source, out=tmp_path / "out")
    assert FAULTS[fault] in reasons(tmp_path / "out")
    assert str(tmp_path) not in reasons(tmp_path / "out")
    assert set(by_key(tmp_path / "out")) == {"site-1", "site-2"}
    assert result.quarantined == (2 if fault == "repeated key" else 1)


@pytest.mark.parametrize(
    ("rows", "document", "message"),
    [
        ([{"before": "a", "colour": "b"}], DOCUMENT, "column 'colour' is unknown; expected some of key, before, after"),
        ([{"before": "a"}], DOCUMENT, "no column after; expected before, after"),
        ([{"before": "a", "after": "b"}], DOCUMENT, "not one row of 1 can be used; the first: row 'a': no file a, b"),
        ([], {**DOCUMENT, "samples": []}, "expected either table = FILE or"),
    ],
)
def test_a_table_that_is_no_table_is_refused(tmp_path: Path, rows: Rows, document: Any, message: str) -> None:
    if "samples" in document:
        source = tmp_path / "samples.toml"
        source.write_bytes(files.toml(document))
    else:
        source = write(tmp_path, rows, **document)
    with pytest.raises((SettingError, SourceError), match=message):
        pack.pack("pairs", source=source, out=tmp_path / "out")


def test_masks_of_images_need_names_that_do_not_collide(tmp_path: Path) -> None:
    rows = [{"image": row["before"], "mask": row["mask"]} for row in pairs(tmp_path)]
    with pytest.raises(SettingError, match="masks without names; add classes"):
        pack.pack("images", source=write(tmp_path, rows, **DOCUMENT), out=tmp_path / "out")
    source = write(tmp_path, rows, **DOCUMENT, classes=["a", "b"], ignore=1)
    with pytest.raises(SettingError, match="ignore is 1, the value of class 'b'"):
        pack.pack("images", source=source, out=tmp_path / "out")
    source = write(
        tmp_path, [*rows, {"key": "x", "image": rows[0]["image"], "label": "a"}], **DOCUMENT, classes=["a", "b"]
    )
    with pytest.raises(SettingError, match="some rows have a mask, others a label"):
        pack.pack("images", source=source, out=tmp_path / "out")
    # The value 7 of the masks is no class.
    source = write(tmp_path, rows, **DOCUMENT, classes=["a", "b"])
    with pytest.raises(SourceError, match=r"3 in quarantine\.jsonl; the first: labels \[7\] are not in"):
        pack.pack("images", source=source, out=tmp_path / "out")


def test_a_changed_file_is_packed_again(tmp_path: Path) -> None:
    source = write(tmp_path, pairs(tmp_path), **DOCUMENT)
    first = pack.pack("pairs", source=source, out=tmp_path / "out").contract.fingerprint
    assert pack.pack("pairs", source=source, out=tmp_path / "out").contract.fingerprint == first
    raster(tmp_path / "2020" / "2.tif", image(99, (16, 16)), shift=2000)
    assert pack.pack("pairs", source=source, out=tmp_path / "out").contract.fingerprint != first


# --- downstream ----------------------------------------------------------------------------


def test_each_date_of_a_pair_is_an_image_for_pretraining(tmp_path: Path) -> None:
    pack.pack("pairs", source=write(tmp_path, pairs(tmp_path), **DOCUMENT), out=tmp_path / "out")
    dates = loader.Samples(tmp_path / "out", "train", ("image",))
    assert dates.keys == ["site-1-before", "site-1-after", "site-2-before", "site-2-after"]
    both = by_key(tmp_path / "out")
    for number, key in enumerate(dates.keys):
        pair, date = key.rsplit("-", 1)
        np.testing.assert_array_equal(dates.read(number, "image"), both[pair].arrays[f"image_{date}"])
    cut = windows.fit_to_windows(dates, 12)
    assert cut.size() == {"samples": 4, "windows": 2 * 3 + 2 * 4}
    batch = next(iter(loader.load(cut, loader.in_order(len(cut), len(cut)), threads=1)))
    assert batch.arrays["image"].shape == (14, 4, 12, 12)


def test_the_command_exits_with_3_where_rows_are_in_quarantine(tmp_path: Path) -> None:
    source = write(tmp_path, faulty(tmp_path, "missing"), **DOCUMENT)
    done = CliRunner().invoke(app, ["shard", "pairs", "-q", "--source", str(source), "--out", str(tmp_path / "out")])
    assert done.exit_code == ExitCode.FINDINGS
    assert "1 files or samples in" in done.stderr


def test_the_owner_states_the_licence_of_a_release(tmp_path: Path) -> None:
    pack.pack("pairs", source=write(tmp_path, pairs(tmp_path), **DOCUMENT), out=tmp_path / "out")
    words = [
        "release",
        "mine",
        "1.0",
        "--source",
        str(tmp_path / "out"),
        "--out",
        str(tmp_path / "release"),
        "-q",
        "--register",
        str(tmp_path),
    ]
    refused = CliRunner().invoke(app, words)
    assert "pairs: data of your own, without a licence; state one" in str(refused.exception)
    CliRunner().invoke(app, [*words, "--licence", "CC-BY-4.0"])
    (notice,) = (tmp_path / "release").glob("*/LICENSES/pixels.txt")
    assert notice.read_text().startswith("CC-BY-4.0")
    order = ReleaseRequest(name="a", version="1", source=tmp_path, out=tmp_path, licence="CC-BY-4.0")
    with pytest.raises(SettingError, match="eurosat has its own .* leave --licence out"):
        release_content.require_permission(cards.card("eurosat"), order, ours=False)
