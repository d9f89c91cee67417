"""Test the RGB edition of EuroSAT: JPEGs, coordinates from a table, and a level that no model of reflectance takes."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.warp import transform_bounds
from typer.testing import CliRunner

from sgdata import output_names
from sgdata.audits import checks, collect_evidence
from sgdata.cli import app
from sgdata.datasets import cards
from sgdata.errors import SettingError, SourceError
from sgdata.packing import pack, select_samples
from sgdata.rasters import small_jpeg
from sgdata.shards import contracts, shard_index, tar_format
from sgmodel.checkpoints import cards as checkpoint_cards
from sgmodel.models import specs
from sgmodel.models.factory import ModelRecipe
from tests import synthetic

RGB = select_samples.recipe_for("eurosat", ["edition=rgb"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return synthetic.eurosat_rgb(tmp_path / "source")


def jpeg(pixels: np.ndarray, mode: str | None = None) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, format="JPEG")
    return out.getvalue()


def packed(source: Path, out: Path, **inputs: Path) -> pack.PackResult:
    return pack.pack("eurosat", source=source, out=out, recipe=RGB, inputs=select_samples.SampleInputs(**inputs))  # type: ignore[arg-type]


def test_values_bands_and_ground_are_those_of_the_files(source: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app,
        ["shard", "eurosat", "--edition", "rgb", "--source", str(source), "--out", str(tmp_path / "out"),
         "--coordinates", str(source / "coordinates.tsv")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    contract = contracts.read(tmp_path / "out")
    assert (contract.level, contract.shape, contract.scale) == ("RGB8", (3, 64, 64), 1.0)
    assert [band.name for band in contract.bands] == ["B02", "B03", "B04"]
    index = pq.read_table(tmp_path / "out" / output_names.INDEX)
    assert b"geo" in index.schema.metadata
    rows = {row["key"]: row for row in index.to_pylist()}
    for key, row in rows.items():
        with Image.open(next(source.rglob(f"{key}.jpg"))) as image:
            true = np.moveaxis(np.asarray(image), -1, 0)[::-1]
        sample = tar_format.read_sample(tmp_path / "out", row)
        np.testing.assert_array_equal(sample.arrays["image"], true)
        assert sample.arrays["image"].dtype == np.uint8
    river = rows["River_2"]
    assert river["crs"] == "EPSG:32635"
    # A square of 640 m around 44.2 N, 25 E: in degrees 640 / 111.1 km and 640 / (111.3 km cos 44.2).
    north, east = (river["south"] + river["north"]) / 2, (river["west"] + river["east"]) / 2
    assert (north, east) == (pytest.approx(44.2, abs=1e-5), pytest.approx(25.0, abs=1e-5))
    assert river["north"] - river["south"] == pytest.approx(640 / 111_100, rel=0.05)
    assert river["east"] - river["west"] == pytest.approx(640 / 111_320 / np.cos(np.radians(44.2)), rel=0.05)


def test_a_zip_and_its_folder_give_the_same_shards(source: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "EuroSAT_RGB.zip", "w") as archive:
        for path in sorted(source.rglob("*.jpg")):
            archive.write(path, path.relative_to(source))
    table = source / "coordinates.tsv"
    folder = packed(source, tmp_path / "a", coordinates=table)
    zipped = packed(tmp_path / "EuroSAT_RGB.zip", tmp_path / "b", coordinates=table)
    assert folder.contract == zipped.contract
    assert (tmp_path / "a" / output_names.SUMS).read_bytes() == (tmp_path / "b" / output_names.SUMS).read_bytes()


GREY = np.full((64, 64), 90, np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 255, (64, 64, 3)).astype(np.uint8)
FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "CMYK": (lambda _: jpeg(COLOUR, "CMYK"), "JPEG is CMYK, expected RGB"),
    "grey": (lambda _: jpeg(GREY), "JPEG is L, expected RGB"),
    "another size": (lambda _: jpeg(COLOUR[:63]), "image is uint8 (3, 63, 64), expected uint8 (3, 64, 64)"),
    "cut short": (lambda it: it[:-200], "truncated"),
    "without its end": (lambda it: it[:-2], "truncated"),
    "bytes lost inside": (lambda it: it[:-200] + bytes(60) + it[-100:], "JPEG is damaged: libjpeg: Corrupt JPEG data"),
    "no JPEG": (lambda _: b"hello", "is no JPEG"),
    "a PNG by another name": (lambda _: b"\x89PNG\r\n\x1a\n" + bytes(64), "is no JPEG"),
    "empty": (lambda _: b"", "is no JPEG"),
    "a claim of gigabytes": (lambda it: _sized(it, 60_000), "exceeds limit"),
    "a claim of megabytes": (lambda it: _sized(it, 9_000), "JPEG claims: 243,000,000 values, at most"),
}


def _sized(content: bytes, side: int) -> bytes:
    at = content.index(b"\xff\xc0") + 5  # ITU-T T.81, B.2.2: the frame header begins with the precision
    return content[:at] + side.to_bytes(2, "big") * 2 + content[at + 4 :]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_image_is_quarantined_and_the_rest_is_packed(fault: str, source: Path, tmp_path: Path) -> None:
    change, reason = FAULTS[fault]
    path = source / "EuroSAT_RGB" / "River" / "River_2.jpg"
    path.write_bytes(change(path.read_bytes()))
    done = packed(source, tmp_path / "out")
    (row,) = [json.loads(line) for line in (tmp_path / "out" / output_names.QUARANTINE).read_text().splitlines()]
    assert (row["key"], done.contract.splits) == ("River_2", {"all": 5})
    assert reason in row["reason"]
    assert "0x" not in row["reason"], "an address in memory differs from run to run"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "no coordinates, expected one pair, in coordinates.tsv"),
        ("River/River_2\t95.0\t25.0", "coordinates '95.0', '25.0', expected degrees north and east, in"),
        ("River/River_2\tnan\t25.0", "coordinates 'nan', '25.0', expected"),
        ("River/River_2\t\t", "coordinates '', '', expected"),
        ("River/River_2\t44.2\t25.0\nRiver/River_2\t44.3\t25.0", "2 coordinates, expected one pair, in"),
    ],
)
def test_a_sample_without_a_place_is_quarantined(line: str, reason: str, source: Path, tmp_path: Path) -> None:
    table = source / "coordinates.tsv"
    lines = [text for text in table.read_text().splitlines() if "River_2\t" not in text]
    table.write_text("\n".join([*lines, *([line] if line else [])]) + "\n")
    done = packed(source, tmp_path / "out", coordinates=table)
    (row,) = [json.loads(line) for line in (tmp_path / "out" / output_names.QUARANTINE).read_text().splitlines()]
    assert row["file"] == "EuroSAT_RGB/River/River_2.jpg"
    assert reason in row["reason"]
    assert done.contract.splits == {"all": 5}


def test_tables_of_coordinates_that_are_none_are_refused(source: Path, tmp_path: Path) -> None:
    for name, content, message in (
        ("a.tsv", "name\tx\ty\nRiver_1\t1\t2\n", "columns are 'name, x, y'; expected name, latitude and longitude"),
        ("b.tsv", "name\tlatitude\tlongitude\nOther_1\t1\t2\n", "places none of 6 samples"),
        ("c.tsv", "", "expected name, latitude and longitude"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(SettingError, match=message):
            packed(source, tmp_path / "out", coordinates=tmp_path / name)
    with pytest.raises(SettingError, match="cannot be read"):
        packed(source, tmp_path / "out", coordinates=tmp_path / "absent.tsv")
    with pytest.raises(SettingError, match="differ in size"):
        inputs = select_samples.SampleInputs(coordinates=source / "coordinates.tsv")
        pack.pack("fmow", source=synthetic.fmow(tmp_path / "fmow"), out=tmp_path / "out", inputs=inputs)


def test_commas_and_other_column_names_are_read(source: Path, tmp_path: Path) -> None:
    rows = [line.split("\t") for line in (source / "coordinates.tsv").read_text().splitlines()[1:]]
    table = tmp_path / "it.csv"
    table.write_text("lon,lat,filename\n" + "".join(f"{lon},{lat},{name}.jpg\n" for name, lat, lon in rows))
    there = packed(source, tmp_path / "a", coordinates=source / "coordinates.tsv")
    assert packed(source, tmp_path / "b", coordinates=table).contract == there.contract


def test_a_georeference_in_the_file_is_preferred(tmp_path: Path) -> None:
    source = synthetic.eurosat(tmp_path / "ms", classes=("River",), each=2)
    (tmp_path / "it.tsv").write_text("name\tlatitude\tlongitude\nRiver_1\t10\t10\nRiver_2\t10\t10\n")
    inputs = select_samples.SampleInputs(coordinates=tmp_path / "it.tsv")
    pack.pack("eurosat", source=source, out=tmp_path / "out", inputs=inputs)
    assert {row["crs"] for row in shard_index.read_index(tmp_path / "out").to_pylist()} == {"EPSG:32635"}


# --- a level of its own --------------------------------------------------------------------


def display(**changes: object) -> contracts.Contract:
    space = cards.label_space("eurosat", "eurosat")
    contract = cards.contract_of("eurosat", cards.edition("eurosat", "rgb"), space, resampling="", resampling_version=1)
    return dataclasses.replace(contract, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("purpose", ["fine-tune", "predict"])
def test_no_setting_lets_a_model_of_reflectance_take_values_for_display(purpose: contracts.Purpose) -> None:
    ours = display()
    for theirs in (display(level="L1C"), display(level="L2A", scale=1e-4)):
        for one, other in ((ours, theirs), (theirs, ours)):
            with pytest.raises(SettingError, match="no setting waives this"):
                contracts.require(one, other, purpose, ["level", "scale", "bands"])
    contracts.require(ours, display(), purpose)


def test_released_weights_of_reflectance_are_refused(tmp_path: Path) -> None:
    from sgmodel.data import normalise

    recipe = ModelRecipe(backbone="linear", image_px=64)
    model = specs.TaskSpec(kind="classifier", recipe=recipe, bands=3, classes=10).build()
    how = normalise.resolve(normalise.NormaliseRecipe(scheme="minmax"), display())
    for name, shape in (("patch_embed.proj.weight", (8, 1, 3, 8, 8)), ("patch_embed.0.proj.weight", (8, 4, 8, 8))):
        torch.save({name: torch.zeros(shape)}, tmp_path / "it.pth")
        with pytest.raises(SettingError, match="take reflectance; the level of 'eurosat' is RGB8"):
            checkpoint_cards.fill(model, tmp_path / "it.pth", display(), how, accept=())


def test_an_audit_asks_of_display_values_what_they_can_answer(source: Path) -> None:
    subject = collect_evidence.detect_subject(source, dataset="eurosat", edition="rgb")
    by_name = {check.name: check for check in checks.run_checks(collect_evidence.collect_evidence(subject)).checks}
    for name in ("band order", "product level", "offset"):
        assert (by_name[name].state, by_name[name].message) == ("not applicable", checks.STRETCHED)
    assert by_name["saturation"].state == "pass"
    for path in source.rglob("*.jpg"):
        with Image.open(path) as image:
            pixels = np.asarray(image).copy()
        pixels[:12] = 255
        path.write_bytes(jpeg(pixels))
    again = checks.run_checks(
        collect_evidence.collect_evidence(collect_evidence.detect_subject(source, dataset="eurosat", edition="rgb"))
    )
    assert {check.name: check.state for check in again.checks}["saturation"] == "finding"


# --- real files ----------------------------------------------------------------------------


def test_real_images_and_their_place(real: Path, tmp_path: Path) -> None:
    table = real / "eurosat_rgb" / "coordinates.tsv"
    shutil.copytree(real / "eurosat" / "EuroSAT_RGB", tmp_path / "EuroSAT_RGB")
    packed(tmp_path / "EuroSAT_RGB", tmp_path / "out", coordinates=table)
    rows = {row["key"]: row for row in shard_index.read_index(tmp_path / "out").to_pylist()}
    assert set(rows) == {"AnnualCrop_1", "SeaLake_3000"}
    for key, row in rows.items():
        with rasterio.open(next((real / "eurosat" / "EuroSAT_MS").rglob(f"{key}.tif"))) as original:
            assert row["crs"] == str(original.crs)
            west, south, east, north = transform_bounds(original.crs, "EPSG:4326", *original.bounds)
        # 1e-5 degrees are a metre.
        for name, value in (("west", west), ("south", south), ("east", east), ("north", north)):
            assert row[name] == pytest.approx(value, abs=2e-5), (key, name)


def test_both_decoders_agree_on_real_images(real: Path) -> None:
    for path in (real / "eurosat" / "EuroSAT_RGB").rglob("*.jpg"):
        pixels = small_jpeg.read(path.read_bytes())
        with warnings.catch_warnings(action="ignore"), rasterio.open(path) as other:
            assert np.abs(pixels.astype(int) - other.read()).max() <= 8
        with pytest.raises(SourceError):
            small_jpeg.read(path.read_bytes()[:-40])
